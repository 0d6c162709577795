"""Loading of checkpoints from others: weights and plain values, never arbitrary code."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ext.training.trusted_classes import TRUST_VARIABLE, trusted_by_environment

OF_TRAINING = ("network_weights", "trainer_name", "init_args")
_FOREIGN = re.compile(  # in torch's errors
    r"(?:Unsupported global: GLOBAL|Unsupported class|unrecognized function|but got <class) '?([\w.]+)"
)
_SAFE_SINCE = (2, 6)  # weights_only of earlier torch could be made to run code (CVE-2025-32434)
_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # up to numpy 1, and from numpy 2 on
_NUMBERS = ("?", *np.typecodes["AllInteger"], "f2", "f4", "f8", "g", "U1", "S1")  # texts too: trainers log some


def _under_all_names(make: Callable[..., Any], name: str) -> list[Callable[..., Any]]:
    """Return a function of numpy's under the names that it has in numpy's versions.

    torch looks allowed functions up by module and name, and numpy moved these: a checkpoint has the name of the numpy
    that wrote it, so each function carries one of the names.
    """

    def named(module: str) -> Callable[..., Any]:
        def function(*arguments: Any) -> Any:
            return make(*arguments)

        function.__module__, function.__name__, function.__qualname__ = module, name, name
        return function

    return [named(module) for module in _NUMPY_MODULES]


def _allowed() -> list[Any]:
    """What nnU-Net's checkpoints hold beside tensors and plain values: numbers and arrays of numpy, in the curves."""
    scalar: Any = np.float64(0).__reduce__()[0]  # type: ignore[call-arg]
    array: Any = np.zeros(1).__reduce__()[0]
    kinds = {type(np.dtype(number)) for number in _NUMBERS}
    return [
        *_under_all_names(scalar, "scalar"),
        *_under_all_names(array, "_reconstruct"),
        np.ndarray,
        np.dtype,
        bytes,
        *kinds,
    ]


def load_checkpoint(
    path: str | Path,
    mapped: bool = False,
    required: Iterable[str] = OF_TRAINING,
    trusted: bool | None = None,
    remedy: str = f"set {TRUST_VARIABLE}=1",
) -> dict[str, Any]:
    """Load an nnU-Net checkpoint on the CPU without executing code from it.

    Args:
        path: File.
        mapped: Map it into memory, so that only tensors that are used are read; copy them to keep them.
        required: Keys that it must have.
        trusted: Load it as nnU-Net does, which runs whatever code is in it; None asks the environment.
        remedy: How a user says that it is to be trusted, for the message.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If torch is too old to do so safely.
        ValueError: If the file holds anything else than weights and plain values, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    trusted = trusted_by_environment() if trusted is None else trusted
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if not trusted and version < _SAFE_SINCE:
        raise RuntimeError(
            f"torch {torch.__version__} cannot load checkpoints safely; use torch 2.6 or later, or, if you trust "
            f"whoever made {path}, {remedy}"
        )
    mapped = mapped and zipfile.is_zipfile(path)  # torch maps no file of its format before 1.6
    try:
        with contextlib.nullcontext() if trusted else torch.serialization.safe_globals(_allowed()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=not trusted, mmap=mapped)
    except Exception as error:  # torch raises several kinds for damaged and for unsafe files
        raise ValueError(
            f"{path} cannot be loaded as a checkpoint of weights and plain values {_why(error, remedy)}"
        ) from error
    missing = set(required) - set(checkpoint if isinstance(checkpoint, dict) else ())
    if missing:
        of = "nnUNetv2_train" if set(required) == set(OF_TRAINING) else "weights"
        raise ValueError(f"{path} lacks {sorted(missing)}; expected a checkpoint of {of}")
    return checkpoint  # type: ignore[no-any-return]


def _why(error: Exception, remedy: str) -> str:
    """Say why torch refused a file, and what to do; its own text is long, and names code that a user does not have."""
    text = str(error).strip()
    foreign = _FOREIGN.search(text)
    if foreign is not None:
        return f"(it also holds {foreign[1]}, which may run code); if you trust whoever made it, {remedy}"
    reason = text.splitlines()[0] if text and not text.startswith("Weights only load failed") else type(error).__name__
    return f"({reason}); it is damaged or something else, so copy or train it again"


def check_weights(paths: Iterable[str | Path], remedy: str, required: Iterable[str] = OF_TRAINING) -> None:
    """Load files that nnU-Net is about to load with whatever code is in them, and let go of them.

    Args:
        paths: Files.
        remedy: How a user says that they are to be trusted, for the message.
        required: Keys that they must have.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one holds more than weights and plain values, or is damaged.
    """
    for path in paths:
        load_checkpoint(path, True, required, False, remedy)
