"""Plans, checked once before anything is done with them: what is wrong in them would fail in every case."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nnunetv2
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.files import read_json

_REMEDY = "correct it there, or plan again"


def load_configuration(
    preprocessed: Path, plans_identifier: str, configuration: str, channels: int | None = None
) -> tuple[PlansManager, ConfigurationManager]:
    """Load plans and one of their configurations, and check everything on which preprocessing depends.

    Args:
        preprocessed: The dataset's folder in ``nnUNet_preprocessed``.
        plans_identifier: Name of the plans, without ``.json``.
        configuration: Name of the configuration.
        channels: Channels that dataset.json declares; None does not compare.

    Raises:
        FileNotFoundError: If the plans do not exist.
        ValueError: If they have no such configuration, or a value that cannot be; names file, key and value.
    """
    plans_file = preprocessed / f"{plans_identifier}.json"
    plans = read_plans(preprocessed, plans_identifier)
    if configuration not in plans["configurations"]:
        raise ValueError(
            f"{plans_file} has no configuration {configuration!r}; it has {', '.join(plans['configurations'])}"
        )
    plans_manager = PlansManager(plans)
    try:
        manager = plans_manager.get_configuration(configuration)
    except (KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:  # inheritance, or an old format
        raise ValueError(
            f"{plans_file}, configuration {configuration!r} cannot be used ({error}); {_REMEDY}"
        ) from error
    _check_plans(plans_file, plans, channels)
    _check_configuration(f"{plans_file}, configuration {configuration!r}", manager.configuration, channels)
    return plans_manager, manager


def read_plans(preprocessed: Path, plans_identifier: str) -> dict[str, Any]:
    """Return the content of plans, of which nothing is checked but that there are configurations.

    Args:
        preprocessed: The dataset's folder in ``nnUNet_preprocessed``.
        plans_identifier: Name of the plans, without ``.json``.

    Raises:
        FileNotFoundError: If the plans do not exist.
        ValueError: If they are no JSON, or have no configurations.
    """
    plans_file = preprocessed / f"{plans_identifier}.json"
    if not plans_file.is_file():
        raise FileNotFoundError(
            f"there are no plans {plans_file}; run nnUNetv2_plan_and_preprocess (or nnUNetv2_plan_experiment) first, "
            "or name other plans with -p"
        )
    plans: dict[str, Any] = read_json(plans_file, "restore it, or plan again")
    if not isinstance(plans.get("configurations"), dict):
        raise ValueError(f"{plans_file} has no 'configurations', expected an object with them; {_REMEDY}")
    return plans


def check_readable(dataset_name_or_id: int | str, plans_identifier: str) -> None:
    """Raise where plans, or the dataset.json beside them, cannot be read; nnU-Net's loader does not name the file.

    Args:
        dataset_name_or_id: Dataset name or number.
        plans_identifier: Name of the plans, without ``.json``.

    Raises:
        FileNotFoundError: If one of them is missing.
        ValueError: If one of them is no JSON.
    """
    preprocessed = Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(dataset_name_or_id)
    read_plans(preprocessed, plans_identifier)
    read_json(preprocessed / "dataset.json", "copy that of the raw data there, or plan again")


def _check_plans(file: Path, plans: dict[str, Any], channels: int | None) -> None:
    """Check what all configurations share."""
    _expect(file, plans, "transpose_forward", "an order of the axes such as [0, 1, 2]", _is_order)
    _expect(file, plans, "image_reader_writer", "the name of a reader of nnU-Net", _finds(_find_reader))
    key = "foreground_intensity_properties_per_channel"
    _expect(file, plans, key, "an object with one entry a channel", lambda value: isinstance(value, dict))
    missing = [str(channel) for channel in range(channels or 0) if str(channel) not in plans[key]]
    if missing and plans[key]:
        raise ValueError(
            f"{file} has no {key} for channel {missing[0]} of dataset.json ({channels} channels); plan again"
        )


def _check_configuration(where: str, configuration: dict[str, Any], channels: int | None) -> None:
    expect: list[tuple[str, str, Callable[[Any], bool]]] = [
        ("data_identifier", "the name of a folder, without a path", is_folder_name),
        ("spacing", "2 or 3 positive numbers in mm", lambda v: _is_list(v, _is_positive) and len(v) in (2, 3)),
        ("patch_size", "2 or 3 positive whole numbers", lambda v: _is_list(v, _is_size) and len(v) in (2, 3)),
        ("normalization_schemes", "a list of names of nnU-Net's normalisations", _is_names),
        ("use_mask_for_norm", "a list of true and false", lambda v: _is_list(v, lambda one: isinstance(one, bool))),
        ("preprocessor_name", "the name of a preprocessor", _finds(_find_preprocessor)),
        ("resampling_fn_data", "the name of a resampling function of nnU-Net", _finds(_find_resampling)),
        ("resampling_fn_seg", "the name of a resampling function of nnU-Net", _finds(_find_resampling)),
    ]
    for key, expected, is_right in expect:
        _expect(where, configuration, key, expected, is_right)
    if len(configuration["spacing"]) != len(configuration["patch_size"]):
        raise ValueError(
            f"{where} has the spacing {configuration['spacing']} and the patch_size {configuration['patch_size']}, "
            f"expected as many numbers in both; {_REMEDY}"
        )
    for scheme in configuration["normalization_schemes"]:
        if _find(_in_nnunet("normalization"), scheme) is None:
            raise ValueError(f"{where} has normalization_schemes {scheme!r}, which nnU-Net does not have; {_REMEDY}")
    for key in ("normalization_schemes", "use_mask_for_norm"):
        if channels is not None and len(configuration[key]) != channels:
            raise ValueError(
                f"{where} has {len(configuration[key])} {key}, but dataset.json has {channels} channel(s): these plans "
                "were made for other data; plan this dataset, or correct its channel_names"
            )
    for key in ("resampling_fn_data", "resampling_fn_seg"):
        _check_options(where, configuration, key)


def _check_options(where: str, configuration: dict[str, Any], key: str) -> None:
    """Check that the options of a resampling function are some that it has."""
    options = configuration.get(f"{key}_kwargs")
    function = _find_resampling(configuration[key])
    try:
        inspect.signature(function).bind_partial(**options)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(
            f"{where} has {key}_kwargs {options!r:.80}, expected options of {configuration[key]} ({error}); {_REMEDY}"
        ) from error


def is_folder_name(value: Any) -> bool:
    """Return whether a value names a folder and cannot lead elsewhere."""
    if not isinstance(value, str) or not value.strip() or value.startswith("."):
        return False
    return not any(sign in value for sign in ("/", "\\", ":", "\0"))


def _expect(
    where: str | Path, values: dict[str, Any], key: str, expected: str, is_right: Callable[[Any], bool]
) -> None:
    if key not in values:
        raise ValueError(f"{where} has no {key!r}, expected {expected}; {_REMEDY}")
    if not is_right(values[key]):
        raise ValueError(f"{where} has {key} {values[key]!r:.80}, expected {expected}; {_REMEDY}")


def _is_list(value: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(is_right(one) for one in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_size(value: Any) -> bool:
    return _is_positive(value) and value == int(value)


def _is_names(value: Any) -> bool:
    return _is_list(value, lambda one: isinstance(one, str))


def _is_order(value: Any) -> bool:
    return _is_list(value, _is_number) and sorted(value) == [0, 1, 2]


def _finds(find: Callable[[str], Any]) -> Callable[[Any], bool]:
    return lambda name: isinstance(name, str) and find(name) is not None


def _in_nnunet(package: str) -> tuple[str, str]:
    folder = os.path.join(nnunetv2.__path__[0], "preprocessing", *([package] if package else []))
    return folder, f"nnunetv2.preprocessing.{package}".rstrip(".")


def _find(place: tuple[str, str], name: str) -> Any:
    return recursive_find_python_class(place[0], name, place[1])


def _find_preprocessor(name: str) -> Any:
    try:
        return _find(_in_nnunet(""), name)
    except ValueError:  # a name that is almost one of ours
        return None


def _find_resampling(name: str) -> Any:
    try:
        return recursive_find_resampling_fn_by_name(name)
    except RuntimeError:
        return None


def _find_reader(name: str) -> Any:
    try:
        return recursive_find_reader_writer_by_name(name)
    except RuntimeError:
        return None
