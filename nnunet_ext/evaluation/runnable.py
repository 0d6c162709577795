"""Which settings of a profile can be run here: engines that are installed, precisions that the device has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from nnunet_ext.engines.engine import AUTO, OPENVINO, TORCH
from nnunet_ext.evaluation.settings import SETTINGS, Setting

_ENGINE, _PRECISION = "--engine", "--precision"
_SAME_ON_GPU = {"engine_bf16": "engine"}


def runnable(settings: Iterable[Setting], device: str) -> tuple[list[Setting], dict[str, str]]:
    """Take out the settings that cannot be run here, or would be another one's.

    Args:
        settings: Settings to run.
        device: Device that predicts, as nnU-Net takes it.

    Returns:
        The others, as the device runs them, and why each of those that are left out is.

    Raises:
        ValueError: If none is left.
    """
    left, reasons = [], {}
    for setting in settings:
        reason = _why_not(setting, device)
        if reason is None:
            left.append(_on_device(setting, device))
        else:
            reasons[setting.name] = reason
    if not left:
        name, reason = next(iter(reasons.items()))
        raise ValueError(f"no setting can be run here ({name}: {reason}); name others with --settings")
    return left, reasons


def _why_not(setting: Setting, device: str) -> str | None:
    engine, precision = _value(setting.flags, _ENGINE), _value(setting.flags, _PRECISION)
    if engine is None and precision is None:
        return None

    import torch

    from nnunet_ext.engines.choice import PIP_LINE, available, check

    is_ours = SETTINGS.get(setting.name) == setting
    if is_ours and device != "cpu":
        precision = None
        if setting.name in _SAME_ON_GPU:
            own = "float16" if device == "cuda" else "float32"
            return f"on {device} nnU-Net's own precision is {own}, so it is the same as {_SAME_ON_GPU[setting.name]}"
    if is_ours and engine == AUTO and precision is None and device == "cpu" and not available(OPENVINO):
        return f"OpenVINO is not installed, so it would be fast_export; {PIP_LINE}"
    try:
        check(engine or TORCH, precision, torch.device(device))
    except ValueError as error:
        return str(error)
    return None


def _on_device(setting: Setting, device: str) -> Setting:
    """Return a setting of ours without its precision, which is for CPUs, where the device is another one."""
    if device == "cpu" or SETTINGS.get(setting.name) != setting or _PRECISION not in setting.flags:
        return setting
    place = setting.flags.index(_PRECISION)
    return replace(setting, flags=setting.flags[:place] + setting.flags[place + 2 :])


def _value(flags: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag, the last one where it is given twice."""
    value = None
    for word, following in zip(flags, (*flags[1:], ""), strict=False):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value
