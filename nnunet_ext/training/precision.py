"""bfloat16 on CPUs: switched on by an environment variable."""

from __future__ import annotations

import os

import torch

ENVIRONMENT = "nnUNet_ext_cpu_bf16"


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
