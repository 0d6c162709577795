"""Loading of checkpoints from others: weights and plain values, never arbitrary code."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ext.training.trust import TRUST_VARIABLE, trusted_by_environment

OF_TRAINING = ("network_weights", "trainer_name", "init_args")
_FOREIGN = re.compile(
    r"(?:Unsupported global: GLOBAL|Unsupported class|unrecognized function) (\S+)"
)  # in torch's errors
_SCALAR_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # up to numpy 1, and from numpy 2 on


def _scalar_of(module: str) -> Callable[..., Any]:
    """Return numpy's maker of scalars under the name that it has in one of numpy's versions.

    torch looks allowed functions up by module and name, and numpy moved this one: a checkpoint has the name of the
    numpy that wrote it. torch 2.5 takes no pairs of function and name, so the function itself carries the name.
    """
    make: Any = np.float64(0).__reduce__()[0]  # type: ignore[call-arg]

    def scalar(*arguments: Any) -> Any:
        return make(*arguments)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


def _allowed() -> list[Any]:
    """What nnU-Net's checkpoints hold beside tensors and plain values: numpy scalars in the curves."""
    kinds = {type(np.dtype(t)) for t in (np.float16, np.float32, np.float64, np.int32, np.int64)}
    return [*map(_scalar_of, _SCALAR_MODULES), np.dtype, *kinds]


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
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    if safe_globals is None:
        raise RuntimeError(f"torch {torch.__version__} cannot load checkpoints safely; use torch 2.5 or later")
    trusted = trusted_by_environment() if trusted is None else trusted
    mapped = mapped and zipfile.is_zipfile(path)  # torch maps no file of its format before 1.6
    try:
        with safe_globals(_allowed()):
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
