"""Reduced precision: bfloat16 on CPUs, switched on by an environment variable, and what a teacher labels in."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch

ENVIRONMENT = "nnUNet_ext_cpu_bf16"
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def cpu_has_bf16_units() -> bool:
    """Return whether the CPU multiplies bfloat16 in hardware (AMX or AVX512-BF16), as far as torch tells."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, check, lambda: False)()) for check in checks)


def bf16_on_cpu() -> bool:
    """Return whether trainers of ours use bfloat16 on CPUs: ``nnUNet_ext_cpu_bf16=1``, off by default.

    Raises:
        ValueError: If the variable is neither 0 nor 1.
    """
    text = os.environ.get(ENVIRONMENT, "0").lower()
    if text not in ("0", "1", "true", "false"):
        raise ValueError(f"the environment variable {ENVIRONMENT} must be 0 or 1, got {text!r}")
    return text in ("1", "true")


def refuse_unknown_precision(precision: str | None, device: torch.device) -> None:
    """Raise where a teacher cannot label in a precision.

    Args:
        precision: ``"bf16"``, ``"fp16"``, or None for that of the student.
        device: Where the networks lie.

    Raises:
        ValueError: If the precision is unknown, or fp16 is asked for on a CPU.
    """
    if precision is not None and precision not in _PRECISIONS:
        known = ", ".join(_PRECISIONS)
        raise ValueError(f"teacher_precision must be None (that of the student) or one of {known}, got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("teacher_precision 'fp16' is for GPUs, CPUs compute it in software; take 'bf16' or None")


def labelling_context(
    precision: str | None, device: torch.device, otherwise: Callable[[], AbstractContextManager]
) -> Callable[[], AbstractContextManager]:
    """Return what makes the context in which a teacher labels.

    Args:
        precision: ``"bf16"``, ``"fp16"``, or None for the other context.
        device: Where the networks lie.
        otherwise: Makes the context of the student's forward pass.
    """
    return otherwise if precision is None else partial(torch.autocast, device.type, dtype=_PRECISIONS[precision])
