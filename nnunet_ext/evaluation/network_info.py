"""Parameters and memory of a trainer's network, beside the plans' own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.files import read_json
from nnunet_ext.plugin import compat
from nnunet_ext.trainers._companion import companion_class
from nnunet_ext.training.architecture import NESTED, SPACE_TIME, network_name, plans_for_part, stock_configuration
from nnunet_ext.training.nesting import nested_step_memory
from nnunet_ext.training.propagation_settings import default_triples
from nnunet_ext.training.step_memory import (
    GIB,
    cps_step_memory,
    optimizer_of,
    propagation_step_memory,
    supervised_step_memory,
)
from nnunet_ext.training.trusted_classes import check_classes


def read_plans(dataset: str, plans_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return plans and dataset.json of a dataset that was planned.

    Raises:
        FileNotFoundError: If the dataset was not planned with plans of this name.
    """
    name = maybe_convert_to_dataset_name(dataset)
    folder = Path(str(nnUNet_preprocessed)) / name
    file = folder / f"{plans_name}.json"
    if not file.is_file():
        existing = ", ".join(sorted(path.stem for path in folder.glob("*Plans*.json"))) or "none"
        raise FileNotFoundError(f"there are no plans {file}; this dataset has: {existing}")
    return read_json(file, "plan again"), read_json(folder / "dataset.json", "plan again")


def compare_networks(
    plans: dict[str, Any], dataset_json: dict[str, Any], trainer: str, configurations: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return size and memory of a trainer's network and of nnU-Net's own, by configuration.

    Args:
        plans: Content of the plans file of the dataset.
        dataset_json: Content of dataset.json of the dataset.
        trainer: Name of a trainer: one of ours, of nnU-Net's, or the user's.
        configurations: Names of configurations; ``None`` takes all of the plans.

    Returns:
        Configuration -> ``patch_size``, ``batch_size``, and for ``"plain"`` and ``"trainer"`` the network's class,
        ``networks`` (how many are trained), ``parameters`` (of one) and ``gib`` (of a training step, estimated). For a
        trainer of two different networks also ``network_2``: class and parameters of the second one.

    Raises:
        ValueError: If there is no such configuration, or the network cannot be built or run for it.
        RuntimeError: If there is no such trainer (nnU-Net's own error).
    """
    manager = PlansManager(plans)
    unknown = [name for name in configurations or () if name not in manager.available_configurations]
    if unknown:
        raise ValueError(
            f"the plans have no configuration {unknown[0]}, but {', '.join(manager.available_configurations)}"
        )
    cls = recursive_find_trainer_class_by_name(trainer)
    comparison = {}
    for name in configurations or manager.available_configurations:
        configuration = manager.get_configuration(name)
        comparison[name] = {
            "patch_size": list(configuration.patch_size),
            "batch_size": configuration.batch_size,
            "plain": _network_and_memory(nnUNetTrainer, manager, stock_configuration(configuration), dataset_json),
            "trainer": _of_trainer(cls, manager, name, dataset_json),
        }
    return comparison


def _of_trainer(cls: Any, manager: PlansManager, name: str, dataset_json: dict[str, Any]) -> dict[str, Any]:
    """Return size and memory of a trainer's network, or of both where they are different ones."""
    configuration = manager.get_configuration(name)
    if getattr(cls, "companion_bases", None) is None:
        return _network_and_memory(cls, manager, configuration, dataset_json)
    companion = companion_class(cls)
    other = PlansManager(plans_for_part(manager.plans, name, getattr(companion, "network_keys", ())))
    second = companion, other, other.get_configuration(name)
    found = _network_and_memory(cls, manager, configuration, dataset_json, second)
    with torch.device("meta"):
        network_2 = _build(*second, *_channels_and_heads(manager, configuration, dataset_json))
    return found | {"network_2": {"network": _class_path(network_2), "parameters": _parameters(network_2)}}


def _network_and_memory(
    cls: type,
    manager: PlansManager,
    configuration: ConfigurationManager,
    dataset_json: dict[str, Any],
    second: tuple[Any, PlansManager, ConfigurationManager] | None = None,
) -> dict[str, Any]:
    """Return size and memory of a trainer's network; with network 2 and its plans, the memory is that of both."""
    channels, heads = _channels_and_heads(manager, configuration, dataset_json)
    regions = manager.get_label_manager(dataset_json).has_regions
    networks = getattr(cls, "number_of_networks", 1)
    taught = getattr(cls, "has_teacher", False)  # unlabelled patches go through the network with the labelled ones
    patches = configuration.batch_size * (2 if taught else 1)
    size = (configuration.patch_size, patches, channels, heads, regions)
    make = partial(_build, cls, manager, configuration, channels, heads)
    try:
        with torch.device("meta"):
            network = _build(cls, manager, configuration, channels, heads)
        nested = _with_hybrid_loss(cls, configuration)
        if _carries_masks(cls, configuration):
            step = propagation_step_memory(make, configuration.patch_size, default_triples(configuration.batch_size))
        elif nested is not None:
            step = nested_step_memory(nested, *size)
        elif networks == 1:
            step = supervised_step_memory(make, *size, optimizer_name=optimizer_of(cls))
        else:
            optimizers = (optimizer_of(cls), optimizer_of(cls if second is None else second[0]))
            make_2 = None if second is None else partial(_build, *second, channels, heads)
            step = cps_step_memory(make, *size, second=make_2, optimizers=optimizers)
    except Exception as error:
        # anything can go wrong in networks of others
        raise ValueError(
            f"the network of {cls.__name__} cannot be built and run for this configuration (patch "
            f"{list(configuration.patch_size)}); name others with -c. {type(error).__name__}: {error}"
        ) from error
    if taught:
        step += sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    return {
        "network": _class_path(network),
        "networks": networks,
        "parameters": _parameters(network),
        "gib": step / GIB,
    }


def _channels_and_heads(
    manager: PlansManager, configuration: ConfigurationManager, dataset_json: dict[str, Any]
) -> tuple[int, int]:
    """Return the image channels and the outputs of a network."""
    channels = determine_num_input_channels(manager, configuration, dataset_json)
    return channels, manager.get_label_manager(dataset_json).num_segmentation_heads


def _class_path(network: torch.nn.Module) -> str:
    return f"{type(network).__module__}.{type(network).__qualname__}"


def _parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _with_hybrid_loss(cls: Any, configuration: ConfigurationManager) -> dict[str, Any] | None:
    """Return the architecture of a trainer of one nested network that keeps the loss of such networks, else None."""
    change = getattr(cls, "network_architecture", None)
    if change is None or _has_own_loss(cls) or getattr(cls, "number_of_networks", 1) > 1:
        return None
    architecture: dict[str, Any] = change(cls, configuration)
    return architecture if network_name(architecture) == NESTED else None


def _carries_masks(cls: Any, configuration: ConfigurationManager) -> bool:
    """Whether a trainer trains mask propagation, on triples of slices."""
    change = getattr(cls, "network_architecture", None)
    return change is not None and network_name(change(cls, configuration)) == SPACE_TIME


def _has_own_loss(cls: Any) -> bool:
    """Whether a trainer's loss is not that of its network: a part says so, and of classes of users it is seen."""
    maker = compat.class_with_loss(cls)
    if maker is not None and not maker.__module__.startswith(("nnunet_ext.", "nnunetv2.")):
        return True
    return bool(getattr(cls, "has_own_loss", True))


def _build(
    cls: Any, manager: PlansManager, configuration: ConfigurationManager, channels: int, heads: int
) -> torch.nn.Module:
    """Build a trainer's network with deep supervision."""
    check_classes(configuration.configuration["architecture"])
    network: torch.nn.Module = compat.build_network(cls, manager, configuration, channels, heads, True)
    return network
