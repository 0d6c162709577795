"""Loading of checkpoints from others: weights and plain values, never arbitrary code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch


def _allowed() -> list[Any]:
    """What nnU-Net's checkpoints hold beside tensors and plain values: numpy scalars in the curves."""
    scalar: Any = np.float64(0).__reduce__()[0]  # type: ignore[call-arg]
    return [scalar, np.dtype, *{type(np.dtype(t)) for t in (np.float16, np.float32, np.float64, np.int32, np.int64)}]


def load_checkpoint(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """Load an nnU-Net checkpoint on the CPU without executing code from it.

    Args:
        path: File.
        mapped: Map it into memory, so that only tensors that are used are read; copy them to keep them.

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
    try:
        with safe_globals(_allowed()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises several kinds for damaged and for unsafe files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be loaded as a checkpoint of weights and plain values ({reason})") from error
    missing = {"network_weights", "trainer_name", "init_args"} - set(checkpoint)
    if missing:
        raise ValueError(f"{path} lacks {sorted(missing)}; expected a checkpoint of nnUNetv2_train")
    return checkpoint
