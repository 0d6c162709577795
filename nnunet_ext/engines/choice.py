"""Which engine and precision fit a machine and an amount of work."""

from __future__ import annotations

import importlib.util
import platform

import torch

from nnunet_ext.engines.engine import (
    AUTO,
    BFLOAT16,
    COMPILE,
    ENGINES,
    FLOAT16,
    FLOAT32,
    OPENVINO,
    PRECISIONS,
    TORCH,
    EngineChoice,
)
from nnunet_ext.training.precision import cpu_has_bf16_units

PIP_LINE = "pip install nnunetv2-ext[openvino]"

# Seconds that an engine costs before its first window, and what it leaves of a window's time. OpenVINO: importing,
# converting, trying and compiling a network of nnU-Net's size for the first time, and half the time of torch in
# float32. Compiling on a GPU: 12 s for nnU-Net's default network, whose windows then take a third.
_START = {OPENVINO: 8.0, COMPILE: 20.0}
_LEFT = {OPENVINO: 0.6, COMPILE: 0.5}
# Where nobody has timed a window: those that pay the start where each takes 50 ms on a CPU, as those of the smallest
# data sets do, and 30 ms on a GPU.
_SECONDS = {OPENVINO: 0.05, COMPILE: 0.03}


def available(engine: str) -> bool:
    """Return whether what an engine needs is installed.

    Args:
        engine: Name of an engine. What compiles for torch is only found out by compiling.
    """
    return engine != OPENVINO or importlib.util.find_spec("openvino") is not None


def precisions_of(device: torch.device) -> list[str]:
    """Return the precisions that a device has units for.

    Args:
        device: Where networks run.
    """
    if device.type == "cuda":
        return [FLOAT32, *([BFLOAT16] if torch.cuda.is_bf16_supported(including_emulation=False) else []), FLOAT16]
    return [FLOAT32, BFLOAT16] if device.type == "cpu" and cpu_has_bf16_units() else [FLOAT32]


def check(engine: str, precision: str | None, device: torch.device) -> None:
    """Raise where an engine or a precision cannot be had.

    Args:
        engine: Name of an engine, or ``"auto"``.
        precision: Name of a precision; ``None`` for the device's own.
        device: Where networks run.

    Raises:
        ValueError: If a name is unknown, the engine is not installed or not for the device, or the device has no units
            for the precision.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if engine == OPENVINO and device.type != "cpu":
        raise ValueError(
            f"engine openvino runs on CPUs, and the device is {device.type}; add -device cpu, or take engine compile"
        )
    if engine == COMPILE and device.type not in ("cpu", "cuda"):
        raise ValueError(f"engine compile runs on CPUs and CUDA devices, not on {device.type}; take engine torch")
    if not available(engine):
        raise ValueError(f"engine openvino needs OpenVINO, which is not installed; {PIP_LINE}")
    there = precisions_of(device)
    if precision is not None and precision not in there:
        name = {"cpu": "this CPU", "cuda": "this GPU"}.get(device.type, f"the device {device.type}")
        raise ValueError(f"{name} has no units for {precision} and would be slower with it; it has {', '.join(there)}")


def choose(
    engine: str,
    precision: str | None,
    device: torch.device,
    windows: int,
    seconds_per_window: float | None = None,
) -> EngineChoice:
    """Choose an engine and a precision.

    ``"auto"`` changes how fast a prediction is, and what comes out no more than rounding does: the precision is that of
    nnU-Net on the device unless another one is asked for.

    Args:
        engine: Name of an engine, or ``"auto"``.
        precision: Name of a precision; ``None`` for nnU-Net's, float16 on CUDA devices and float32 elsewhere.
        device: Where networks run.
        windows: How many passes through a network there will be: windows, times mirrored versions, times networks.
        seconds_per_window: What one pass takes in torch, where that is known.

    Raises:
        ValueError: As :func:`check`.
    """
    check(engine, precision, device)
    own = precision or (FLOAT16 if device.type == "cuda" else FLOAT32)
    if engine != AUTO:
        return EngineChoice(engine, own, "as asked for")
    if device.type not in ("cpu", "cuda"):
        return EngineChoice(TORCH, own, f"the only one on {device.type}")
    faster = OPENVINO if device.type == "cpu" else COMPILE
    if faster == OPENVINO and not available(OPENVINO):
        return EngineChoice(TORCH, own, f"OpenVINO, which is faster on CPUs, is not installed; {PIP_LINE}")
    if faster == OPENVINO and not _is_measured_cpu():
        return EngineChoice(TORCH, own, "OpenVINO is not known to be faster on this kind of CPU")
    needed = break_even(faster, seconds_per_window)
    if windows < needed:
        return EngineChoice(TORCH, own, f"{windows} windows are too few to pay the start of {faster} ({needed})")
    return EngineChoice(faster, own, f"{windows} windows pay its start ({needed})")


def break_even(engine: str, seconds_per_window: float | None = None) -> int:
    """Return from how many windows on an engine pays what it costs to start.

    Args:
        engine: ``"openvino"`` or ``"compile"``.
        seconds_per_window: What one window takes in torch, where that is known.
    """
    seconds = _SECONDS[engine] if seconds_per_window is None else max(seconds_per_window, 1e-6)
    return int(_START[engine] / (seconds * (1 - _LEFT[engine]))) + 1


def _is_measured_cpu() -> bool:
    """Whether a CPU is one of those on which OpenVINO was measured: x86 with AVX2 or more."""
    return platform.machine().lower() in ("x86_64", "amd64") and "AVX" in torch.backends.cpu.get_cpu_capability()
