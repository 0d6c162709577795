"""The settings that ``nnUNetv2_ext profile`` compares: names for flags of ``nnUNetv2_predict_from_modelfolder``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_ENDINGS = (".log", ".json", ".png")  # files of the profile lie beside the folders
# Given by the profile itself, so that all settings predict the same images with the same model into their own folders.
_TAKEN = ("-h", "--help", "-i", "-o", "-m", "-f", "-chk", "--continue_prediction")


@dataclass(frozen=True)
class Setting:
    """One way to predict.

    Attributes:
        name: Name of the setting, of its folder and of its log.
        flags: Flags added to the stock command.
        summary: Gain and price for the user, in a few words.
        default: Whether the setting is run where no settings are named.
    """

    name: str
    flags: tuple[str, ...] = ()
    summary: str = ""
    default: bool = False


FAST = ("--fast_export", "--disable_tta", "-step_size", "0.7")
ENGINE = ("--fast_export", "--engine", "auto")
HALF = ("--precision", "bfloat16")  # of CPUs; on a GPU nnU-Net's own precision is float16
SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("stock", (), "nnU-Net's own way, to compare with", True),
        Setting("no_mirroring", ("--disable_tta",), "one pass of the network a patch instead of up to eight", True),
        Setting("step_0.7", ("-step_size", "0.7"), "patches overlap less, so there are fewer of them", True),
        Setting("fast_export", ("--fast_export",), "a cheaper way from logits to the label map", True),
        Setting("fast", FAST, "fast_export, no_mirroring and step_0.7 together", True),
        Setting("engine", ENGINE, "the network run by the fastest engine that is there", True),
        Setting("engine_bf16", (*ENGINE, *HALF), "and in half precision, on CPUs with units for it", True),
        Setting("skip_background", ("--fast_export", "--skip_background"), "windows of air are not run", True),
        Setting("fastest", (*FAST, *ENGINE[1:], *HALF, "--skip_background"), "all of these together", True),
        Setting(
            "forced_paper", ("--forced_spacing", "--fast_export"), "forced spacing of 3D-CPS as in its paper", True
        ),
        Setting(
            "forced_code",
            ("--forced_spacing", "1", "1", "1.5", "--fast_export"),
            "forced spacing as in the code of 3D-CPS",
        ),
        Setting("forced_fast", ("--forced_spacing", *FAST), "forced_paper and fast together"),
    )
}
# Settings that need a value of the user's; they are run where it is given.
TARGET, MAX_VOXELS = "target", "max_voxels"


def choose_settings(
    names: Sequence[str] | None = None,
    user_settings: Sequence[Setting] = (),
    target_spacing: Sequence[float] | None = None,
    max_voxels: int | None = None,
) -> list[Setting]:
    """Return the settings to run.

    Args:
        names: Names of settings, in the order to run them; None takes the default ones, then those that the values
            below make, then the user's own.
        user_settings: Settings that the user defined; those that are not among the names follow them.
        target_spacing: Spacing in mm, x y z, that makes the setting ``target``.
        max_voxels: Number of voxels that makes the setting ``max_voxels``.

    Raises:
        ValueError: If a name is unknown, needs a value that is not given, or is there twice.
    """
    with_values = _with_values(target_spacing, max_voxels)
    available = {**SETTINGS, **with_values}
    for setting in user_settings:
        if setting.name in available or setting.name in (TARGET, MAX_VOXELS):
            raise ValueError(f"there are two settings named {setting.name!r}, expected one; give yours another name")
        available[setting.name] = setting
    if names is None:
        names = [*(setting.name for setting in SETTINGS.values() if setting.default), *with_values]
    for name in names:
        if name not in available:
            raise ValueError(_unknown(name, available))
    chosen = [*names, *(setting.name for setting in user_settings if setting.name not in names)]
    repeated = [name for number, name in enumerate(chosen) if name in chosen[:number]]
    if repeated:
        raise ValueError(f"setting {repeated[0]!r} is named twice, expected each once; remove one")
    return [available[name] for name in chosen]


def parse_setting(text: str) -> Setting:
    """Return a setting of the user's own.

    Args:
        text: Name and flags, ``NAME=FLAGS``, e.g. ``coarse=-step_size 0.9 --disable_tta``.

    Raises:
        ValueError: If the name or the flags cannot be used.
    """
    name, equals, flags = text.partition("=")
    example = 'e.g. --setting coarse="-step_size 0.9 --disable_tta"'
    if not equals:
        raise ValueError(f"expected NAME=FLAGS, got {text!r}; write {example}")
    if not NAME.fullmatch(name) or name.endswith(_ENDINGS):
        raise ValueError(
            "a setting's name is that of a folder: letters, digits and _ . + -, not ending in "
            f"{' or '.join(_ENDINGS)}, got {name!r}; write {example}"
        )
    try:
        words = tuple(shlex.split(flags))
    except ValueError as error:
        raise ValueError(
            f"the flags of setting {name!r} cannot be split into words ({error}), got {flags!r}"
        ) from error
    if words and not words[0].startswith("-"):
        raise ValueError(f"the flags of setting {name!r} must begin with a flag, got {words[0]!r}; write {example}")
    # argparse takes beginnings of long flags for the whole
    taken = [word for word in words if any(_begins(word.split("=")[0], flag) for flag in _TAKEN)]
    if taken:
        raise ValueError(
            f"setting {name!r} has {taken[0]}, which is the profile's to give; expected other flags of "
            f"nnUNetv2_predict_from_modelfolder, so remove {taken[0]}"
        )
    return Setting(name, words, "of your own")


def _begins(word: str, flag: str) -> bool:
    return word == flag or (word.startswith("--") and len(word) > 2 and flag.startswith(word))


def describe_settings() -> str:
    """Return a table of the settings, for the help."""
    rows = [(setting.name, shlex.join(setting.flags) or "(no flag)", setting.summary) for setting in SETTINGS.values()]
    rows.append((TARGET, "--target_spacing SX SY SZ --fast_export", "where --target_spacing is given"))
    rows.append((MAX_VOXELS, "--max_voxels N --fast_export", "where --max_voxels is given"))
    name_width, flags_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"  {name:<{name_width}}  {flags:<{flags_width}}  {summary}" for name, flags, summary in rows]
    names = " ".join(setting.name for setting in SETTINGS.values() if setting.default)
    return "\n".join(["settings:", *lines, f"by default: {names}, and those that values are given for"])


def _with_values(target_spacing: Sequence[float] | None, max_voxels: int | None) -> dict[str, Setting]:
    settings = []
    if target_spacing is not None:
        flags = ("--target_spacing", *(f"{value:g}" for value in target_spacing), "--fast_export")
        settings.append(Setting(TARGET, flags, "resampled to this spacing instead of the plans'"))
    if max_voxels is not None:
        flags = ("--max_voxels", str(max_voxels), "--fast_export")
        settings.append(Setting(MAX_VOXELS, flags, "resampled to at most so many voxels"))
    return {setting.name: setting for setting in settings}


def _unknown(name: str, available: dict[str, Setting]) -> str:
    if name in (TARGET, MAX_VOXELS):
        value = "--target_spacing SX SY SZ" if name == TARGET else "--max_voxels N"
        return f"setting {name!r} needs a value, got none; pass {value}"
    return (
        f"there is no setting {name!r}, expected some of: {', '.join(available)}; correct the name, or define it with "
        f'--setting {name}="FLAGS"'
    )
