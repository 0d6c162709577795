"""What is looked at before nnU-Net preprocesses with plans of ours, and kept from other processes meanwhile."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from nnunet_ext.data.dataset_json import FILE
from nnunet_ext.data.plans import load_configuration, read_plans
from nnunet_ext.data.preprocessors import OUR_PREPROCESSORS
from nnunet_ext.files import only_here, read_json

_MARKS = ("nnunet_ext.", *OUR_PREPROCESSORS)  # in plans of ours, damaged ones too
_ONLY_2D = "nnunet_ext.networks.reference_unet.ReferenceUNet"


def guarded(dataset_name_or_id: int | str, plans_identifier: str, configurations: Iterable[str]) -> ExitStack:
    """Check plans of ours and lock what is preprocessed with them; the plans of others are not even parsed.

    Args:
        dataset_name_or_id: Dataset name or number.
        plans_identifier: Name of the plans, without ``.json``.
        configurations: Names of the configurations to preprocess; what the plans have not is left out, as nnU-Net does.

    Returns:
        A context that holds the locks. Preprocessors of ours check and lock for themselves.

    Raises:
        BusyError: If another process preprocesses one of the configurations.
        ValueError: If plans or dataset.json are no JSON, or the plans have a value that cannot be.
    """
    locks = ExitStack()
    preprocessed = Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(dataset_name_or_id)
    if not are_ours(preprocessed / f"{plans_identifier}.json"):
        return locks
    configurations = list(configurations)
    plans = read_plans(preprocessed, plans_identifier)
    refuse_only_3d(plans, plans_identifier, configurations)
    present = plans["configurations"]
    if (preprocessed / FILE).is_file():
        read_json(preprocessed / FILE, "copy that of the raw data there, or plan again")
    with locks:
        for name in configurations:
            if name in present:
                _, configuration = load_configuration(preprocessed, plans_identifier, name)
                if configuration.preprocessor_name not in OUR_PREPROCESSORS:
                    locks.enter_context(only_here(preprocessed / configuration.data_identifier, "preprocessed"))
        return locks.pop_all()


def refuse_only_3d(plans: dict[str, Any], plans_identifier: str, configurations: Iterable[str]) -> None:
    """Raise ValueError if nothing but configurations that plans of 2D networks do not have is asked for.

    Args:
        plans: Content of the plans; those of others pass.
        plans_identifier: Name of the plans, without ``.json``.
        configurations: Names of configurations that are asked for.
    """
    asked, present = list(configurations), plans["configurations"]
    networks = {one.get("architecture", {}).get("network_class_name") for one in present.values()}
    if asked and networks == {_ONLY_2D} and not any(name in present for name in asked):
        raise ValueError(
            f"the plans {plans_identifier} have no configuration {' or '.join(asked)}: networks of the reference "
            f"module are 2D; use -c {' '.join(present)}, or plans of another planner for 3D"
        )


def are_ours(plans_file: Path) -> bool:
    """Return whether plans are for a network or a preprocessor of ours, also where they are no JSON any more."""
    try:
        content = plans_file.read_bytes()
    except OSError:
        return False
    return any(mark.encode() in content for mark in _MARKS)
