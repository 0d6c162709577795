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

# Estimates on the careful side, so that what is chosen is not slower than torch on a machine that is worse than those
# measured. Seconds that an engine costs before its first window: OpenVINO took 1 to 3 to import, convert, try and
# compile small networks on two cores; a GPU's compiler took 12 for nnU-Net's default network. While it starts, the
# network is run a few times: traced, and compared with what it became. And what is left of a window's time: OpenVINO
# took half of torch's or less in float32 on a CPU with AVX512, the compiled network a third.
_START = {OPENVINO: 8.0, COMPILE: 20.0}
_WINDOWS_OF_START = {OPENVINO: 4, COMPILE: 1}
_LEFT = {OPENVINO: 0.6, COMPILE: 0.5}
# Assumed where nobody has timed a window; short, so that many of them are wanted.
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
    reason = why_only_torch(device)
    if reason is not None:
        return EngineChoice(TORCH, own, reason)
    faster = OPENVINO if device.type == "cpu" else COMPILE
    needed = break_even(faster, seconds_per_window)
    if windows < needed:
        return EngineChoice(TORCH, own, f"{windows} windows are too few to pay the start of {faster} ({needed})")
    return EngineChoice(faster, own, f"{windows} windows pay its start ({needed})")


def why_only_torch(device: torch.device) -> str | None:
    """Return why no other engine is faster on a device, or None where one may be.

    Args:
        device: Where networks run.
    """
    if device.type not in ("cpu", "cuda"):
        return f"the only one on {device.type}"
    if device.type == "cpu" and not available(OPENVINO):
        return f"OpenVINO, which is faster on CPUs, is not installed; {PIP_LINE}"
    if device.type == "cpu" and not _is_known_cpu():
        return "OpenVINO is not known to be faster on this kind of CPU"
    return None


def break_even(engine: str, seconds_per_window: float | None = None) -> int:
    """Return from how many windows on an engine pays what it costs to start.

    Args:
        engine: ``"openvino"`` or ``"compile"``.
        seconds_per_window: What one window takes in torch, where that is known.
    """
    seconds = _SECONDS[engine] if seconds_per_window is None else max(seconds_per_window, 1e-6)
    start = _START[engine] + _WINDOWS_OF_START[engine] * seconds
    return int(start / (seconds * (1 - _LEFT[engine]))) + 1


def _is_known_cpu() -> bool:
    """Whether OpenVINO has code of its own for a CPU: x86 with AVX2 or more."""
    return platform.machine().lower() in ("x86_64", "amd64") and "AVX" in torch.backends.cpu.get_cpu_capability()
