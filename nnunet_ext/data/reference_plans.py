"""Plans of the reference module, in front of commands that would take them for others."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.data.hounsfield import hounsfield_channels
from nnunet_ext.data.plans import read_plans
from nnunet_ext.data.position import has_position
from nnunet_ext.data.preprocess_guard import are_ours, refuse_only_3d


def plans_of_ours(dataset_name_or_id: int | str, plans_identifier: str) -> bool:
    """Return whether plans name anything of ours; those of others are not even parsed.

    Args:
        dataset_name_or_id: Dataset name or number; one that does not exist has no plans.
        plans_identifier: Name of the plans, without ``.json``.
    """
    try:
        preprocessed = Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(dataset_name_or_id)
    except (RuntimeError, ValueError):  # nnU-Net says so
        return False
    return are_ours(preprocessed / f"{plans_identifier}.json")


def refuse_training(dataset_name_or_id: int | str, plans_identifier: str, configuration: str, trainer: type) -> None:
    """Raise if plans of the reference module are to be trained in 3D, or by a trainer that is not one of ours.

    nnU-Net's trainers would change the position of slices in their augmentation, and Hounsfield units as if they were
    z-scores.

    Args:
        dataset_name_or_id: Dataset name or number.
        plans_identifier: Name of the plans, without ``.json``.
        configuration: Name of the configuration.
        trainer: Class of the trainer.

    Raises:
        ValueError: Says what to use instead.
    """
    preprocessed = Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(dataset_name_or_id)
    plans = read_plans(preprocessed, plans_identifier)
    refuse_only_3d(plans, plans_identifier, [configuration])
    if configuration not in plans["configurations"]:
        return  # nnU-Net says so
    manager = PlansManager(plans).get_configuration(configuration)
    held = [
        name
        for name, is_held in (
            ("the position of slices", has_position(manager)),
            ("CT in Hounsfield units", bool(hounsfield_channels(manager))),
        )
        if is_held
    ]
    if held and not any(cls.__module__.startswith("nnunet_ext.") for cls in trainer.__mro__):
        raise ValueError(
            f"data of the plans {plans_identifier} hold {' and '.join(held)}, which the augmentation of "
            f"{trainer.__name__} would spoil; use -tr nnUNetTrainer_1000epochs, which trains as nnUNetTrainer does "
            "otherwise, or another trainer of nnunet_ext (nnUNetv2_ext trainers lists them)"
        )
