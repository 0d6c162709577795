"""Parts that change the plans' network: plans beside the model name what was built, and other settings are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

STOCK_NETWORKS = "dynamic_network_architectures.architectures.unet."
Architecture = dict[str, Any]


def network_name(architecture: Architecture) -> str:
    """Return the class path of a network; nnU-Net looks for a class of its own that has moved by its last name."""
    name: str = architecture["network_class_name"]
    if name.startswith("dynamic_network_architectures."):
        return STOCK_NETWORKS + name.rpartition(".")[2]
    return name


def changed_plans(
    plans: dict[str, Any],
    configuration: str,
    change: Callable[[ConfigurationManager], Architecture],
    own: Callable[[ConfigurationManager], Architecture | None],
    trainer: str,
) -> dict[str, Any]:
    """Return a copy of plans with another network in one configuration.

    Args:
        plans: Of the dataset.
        configuration: Name.
        change: Makes the architecture that the settings ask for.
        own: Returns what the settings decide of an architecture, if the plans name such a network already.
        trainer: Name of the class, for messages.

    Raises:
        ValueError: If the plans have such a network already, with other settings.
    """
    plans = deepcopy(plans)
    manager = PlansManager(plans).get_configuration(configuration)
    architecture = change(manager)
    named = own(manager)
    for key, value in (named or {}).items():
        wanted = architecture["arch_kwargs"][key]
        if json.dumps(value) != json.dumps(wanted):
            raise ValueError(
                f"the plans already name {manager.network_arch_class_name} with {key} = {value}, but {trainer} has "
                f"{wanted}; set one of both to the other"
            )
    plans["configurations"][configuration]["architecture"] = architecture
    return plans


def build(architecture: Architecture, input_channels: int, output_channels: int, deep_supervision: bool) -> nn.Module:
    """Build a network as nnU-Net does."""
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        input_channels,
        output_channels,
        allow_init=True,
        deep_supervision=deep_supervision,
    )


def refuse_other_folds(trainer: Any, keys: Iterable[str]) -> None:
    """Raise RuntimeError if the model folder holds folds with other settings."""
    folder = Path(trainer.output_folder_base)
    if any(folder.glob("fold_*/checkpoint_*.pth")) and (folder / "plans.json").is_file():
        refuse_other_settings(trainer, json.loads((folder / "plans.json").read_text()), f"the model {folder}", keys)


def refuse_other_settings(trainer: Any, plans: dict[str, Any] | None, what: str, keys: Iterable[str]) -> None:
    """Raise RuntimeError if plans describe another network than the trainer's.

    Args:
        trainer: With plans of its own.
        plans: Those saved with weights; None says nothing.
        what: That has these plans, for the message.
        keys: Arguments of the network to compare.
    """
    if plans is None or trainer.configuration_name not in plans["configurations"]:
        return
    saved, own = (
        PlansManager(one).get_configuration(trainer.configuration_name).network_arch_init_kwargs
        for one in (plans, trainer.plans_manager.plans)
    )
    for key in keys:
        if json.dumps(saved.get(key)) != json.dumps(own.get(key)):
            raise RuntimeError(
                f"{what} was trained with {key} = {saved.get(key)}, but {type(trainer).__name__} has {own.get(key)} "
                "now; set it back, or give the trainer another name"
            )
