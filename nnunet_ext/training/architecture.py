"""Parts that change the plans' network: plans beside the model name what was built, and other settings are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext import files
from nnunet_ext.data.host import Trainer
from nnunet_ext.training.checkpoints import unfit_weights
from nnunet_ext.training.trusted_classes import STOCK_PACKAGE, check_classes

STOCK_NETWORKS = f"{STOCK_PACKAGE}.architectures.unet."
SECOND = "architecture_2"  # key of a configuration: the architecture of network 2 of CPS, where it is another one
Architecture = dict[str, Any]
NESTED = "nnunet_ext.networks.nested_unet.NestedAttentionUNet"
NESTED_KEYS = ("aggregation", "gate_ratio", "depth")
ENHANCED = {
    f"{STOCK_NETWORKS}{name}": f"nnunet_ext.networks.ife_unet.IFE{name}"
    for name in ("PlainConvUNet", "ResidualEncoderUNet")
}
ENHANCED_KEYS = ("ife_score", "ife_stages", "ife_ratios", "ife_axes", "ife_bins", "ife_step")
TRANSUNET = "nnunet_ext.networks.transunet.TransUNet"
TRANSUNET_KEYS = (
    "patch_size",
    "stem_channels",
    "channels",
    "blocks",
    "groups",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "dropout",
    "bridge_channels",
    "decoder_channels",
    "norm",
)
DEEPLAB = "nnunet_ext.networks.deeplab.DeepLabV3Plus"
DEEPLAB_KEYS = ("encoder_name", "decoder_channels", "atrous_rates", "dropout")
SPACE_TIME = "nnunet_ext.networks.space_time.SpaceTimeNetwork"
SPACE_TIME_KEYS = (
    "key_stages",
    "key_blocks",
    "value_stages",
    "value_blocks",
    "key_dim",
    "value_dim",
    "decoder_channels",
    "norm",
)
REFERENCE = "nnunet_ext.networks.reference_unet.ReferenceUNet"
REFERENCE_KEYS = ("windows", "hounsfield_channels", "position")
# class path of ours -> nnU-Net's own that it extends, None where it takes the place of any, and what settings decide
OWN_NETWORKS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    NESTED: (f"{STOCK_NETWORKS}PlainConvUNet", NESTED_KEYS),
    **{ours: (stock, ENHANCED_KEYS) for stock, ours in ENHANCED.items()},
    TRANSUNET: (None, TRANSUNET_KEYS),
    DEEPLAB: (None, DEEPLAB_KEYS),
    SPACE_TIME: (None, SPACE_TIME_KEYS),
    REFERENCE: (f"{STOCK_NETWORKS}PlainConvUNet", REFERENCE_KEYS),
}


def network_name(architecture: Architecture) -> str:
    """Return the class path of a network; nnU-Net looks for a class of its own that has moved by its last name."""
    name: str = architecture["network_class_name"]
    if name.startswith(f"{STOCK_PACKAGE}."):
        return STOCK_NETWORKS + name.rpartition(".")[2]
    return name


def refuse_reference(name: str, part: str) -> None:
    """Raise NotImplementedError if plans name the U-Net of the reference module for a part that would drop its input.

    Args:
        name: Class path of the plans' network.
        part: Part of a trainer's name, for the message.
    """
    if name == REFERENCE:
        raise NotImplementedError(
            f"{part} has no windows of CT and takes no position of the slice, which these plans of ReferencePlanner "
            "ask for; leave it out of the trainer's name, or use plans of another planner, e.g. -p nnUNetPlans"
        )


def stock_configuration(configuration: ConfigurationManager) -> ConfigurationManager:
    """Return a configuration with nnU-Net's own network where it names one of ours that extends it."""
    stock, _ = OWN_NETWORKS.get(configuration.network_arch_class_name, (None, ()))
    return ConfigurationManager(deepcopy(configuration.configuration)) if stock is None else _reset(configuration)


def _reset(configuration: ConfigurationManager) -> ConfigurationManager:
    """Return a configuration whose network of ours has no settings, nnU-Net's own network where it extends one."""
    content = deepcopy(configuration.configuration)
    architecture = content["architecture"]
    stock, keys = OWN_NETWORKS[architecture["network_class_name"]]
    architecture["network_class_name"] = stock or architecture["network_class_name"]
    architecture["arch_kwargs"] = {k: v for k, v in architecture["arch_kwargs"].items() if k not in keys}
    return ConfigurationManager(content)


def second_architecture(plans: dict[str, Any], configuration: str) -> Architecture | None:
    """Return the architecture of network 2 where plans name another one than that of network 1, else None."""
    if configuration not in plans.get("configurations", {}):
        return None
    found: Architecture | None = PlansManager(plans).get_configuration(configuration).configuration.get(SECOND)
    return found


def without_second(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return plans that say nothing of a network 2 in a configuration, a copy where they did."""
    if second_architecture(plans, configuration) is None:
        return plans
    plans = deepcopy(plans)
    # a configuration may inherit it from another one
    content = deepcopy(PlansManager(plans).get_configuration(configuration).configuration)
    plans["configurations"][configuration] = {key: value for key, value in content.items() if key != SECOND}
    return plans


def plans_of_second(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return plans in which a configuration has the network that network 2 has, a copy where that is another one."""
    architecture = second_architecture(plans, configuration)
    if architecture is None:
        return plans
    plans = without_second(plans, configuration)
    plans["configurations"][configuration]["architecture"] = deepcopy(architecture)
    return plans


def plans_for_part(plans: dict[str, Any], configuration: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return plans from which a part makes network 2: with nnU-Net's own network where another part's is named.

    Args:
        plans: Plans of the dataset, which may name a network of network 1's part.
        configuration: Name of the configuration.
        keys: Arguments of the network that the part of network 2 decides.
    """
    if second_architecture(plans, configuration) is not None:
        return plans_of_second(plans, configuration)
    manager = PlansManager(plans).get_configuration(configuration)
    name = network_name(manager.configuration["architecture"])
    if name not in (NESTED, *ENHANCED.values()) or OWN_NETWORKS[name][1] == keys:
        return plans
    plans = deepcopy(plans)
    plans["configurations"][configuration]["architecture"] = stock_configuration(manager).configuration["architecture"]
    return plans


def changed_plans(
    plans: dict[str, Any],
    configuration: str,
    change: Callable[[ConfigurationManager], Architecture],
    keys: tuple[str, ...],
    trainer: str,
) -> dict[str, Any]:
    """Return a copy of plans with another network in one configuration.

    Args:
        plans: Plans of the dataset.
        configuration: Name of the configuration to change.
        change: Makes the architecture that the settings ask for, from a configuration whose network has none of them.
        keys: Arguments of the network that the settings decide.
        trainer: Name of the trainer's class, for messages.

    Raises:
        ValueError: If the plans have such a network already, with other settings.
    """
    plans = deepcopy(plans)
    manager = PlansManager(plans).get_configuration(configuration)
    has_network_of_part = OWN_NETWORKS.get(network_name(manager.configuration["architecture"]), ("", ()))[1] == keys
    # a network of another part of ours stays, for this one to refuse
    architecture = change(_reset(manager) if has_network_of_part else manager)
    arguments = manager.network_arch_init_kwargs if has_network_of_part else {}
    for key in keys:
        setting = architecture["arch_kwargs"].get(key)
        if key in arguments and json.dumps(arguments[key]) != json.dumps(setting):
            raise ValueError(
                f"the plans already name {manager.network_arch_class_name} with {key} = {arguments[key]}, but "
                f"{trainer} has {setting}; set one of both to the other"
            )
    plans["configurations"][configuration]["architecture"] = architecture
    return plans


def build(architecture: Architecture, input_channels: int, output_channels: int, deep_supervision: bool) -> nn.Module:
    """Build a network as nnU-Net does, of nothing but networks and layers.

    Raises:
        ValueError: If the architecture names anything else.
    """
    check_classes(architecture)
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        input_channels,
        output_channels,
        allow_init=True,
        deep_supervision=deep_supervision,
    )


def check_fit(network: nn.Module, weights: Mapping[str, Any], file: Path, surplus: bool = False) -> None:
    """Refuse weights that are not those of a network.

    Args:
        network: Network of the plans beside the weights, without deep supervision; may be on the meta device.
        weights: Weights by name.
        file: File with the weights, for the message.
        surplus: Whether there may be more weights than the network has, as for one that was cut.

    Raises:
        ValueError: If they do not fit; names the file and the first difference.
    """
    for key, given, expected in unfit_weights(network.state_dict(), weights, surplus):
        if given is None:
            difference = f"lacks {key}"
        elif expected is None:
            difference = f"has {key}, which is one too many"
        else:
            difference = f"has {key} of the shape {given}, expected {expected}"
        raise ValueError(
            f"{file} {difference}: its network_weights are not those of the network in plans.json and dataset.json of "
            "the model; restore the files of this training"
        )


def refuse_other_folds(trainer: Trainer, keys: Iterable[str]) -> None:
    """Raise RuntimeError if the model folder holds folds with other settings."""
    folder = Path(trainer.output_folder_base)
    if any(folder.glob("fold_*/checkpoint_*.pth")) and (folder / "plans.json").is_file():
        refuse_other_settings(trainer, files.read_json(folder / "plans.json"), f"the model {folder}", keys)


def refuse_other_settings(trainer: Trainer, plans: dict[str, Any] | None, what: str, keys: Iterable[str]) -> None:
    """Raise RuntimeError if plans describe another network than the trainer's.

    Args:
        trainer: A trainer with plans of its own.
        plans: Plans saved with weights; None says nothing.
        what: What has the saved plans, for the message.
        keys: Arguments of the network to compare.
    """
    if plans is None or trainer.configuration_name not in plans["configurations"]:
        return
    if getattr(trainer, "network_number", 1) == 2:
        plans = plans_of_second(plans, trainer.configuration_name)
    saved, present = (
        PlansManager(content).get_configuration(trainer.configuration_name).network_arch_init_kwargs
        for content in (plans, trainer.plans_manager.plans)
    )
    for key in keys:
        if json.dumps(saved.get(key)) != json.dumps(present.get(key)):
            raise RuntimeError(
                f"{what} was trained with {key} = {saved.get(key)}, but {type(trainer).__name__} has "
                f"{present.get(key)} now; set it back, or give the trainer another name"
            )
