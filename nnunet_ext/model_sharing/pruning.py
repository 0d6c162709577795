"""Nested networks cut at a depth: only what that depth needs is built, loaded and run."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_ext import files
from nnunet_ext.model_sharing.both_networks import average_of
from nnunet_ext.model_sharing.choice_of_network import (
    BOTH,
    FIRST,
    SECOND,
    chosen_networks,
    joined,
)
from nnunet_ext.model_sharing.folders import (
    as_folds,
    building,
    check_target,
    copy_fingerprint,
    find_folds,
    folds_that_predict,
    read_model_json,
)
from nnunet_ext.model_sharing.private import for_inference, without_private_keys
from nnunet_ext.training.architecture import (
    NESTED,
    build,
    check_fit,
    plans_of_second,
    second_architecture,
    without_second,
)
from nnunet_ext.training.safe_load import load_checkpoint
from nnunet_ext.training.trusted_classes import check_classes, trusted_by_environment, trusting


@dataclass(frozen=True)
class Pruned:
    """A network cut at a depth and its weights, from which nnU-Net's predictor is initialised.

    Attributes:
        network: Network of that depth without deep supervision, or the average of two, with the weights of the first
            fold.
        plans: Plans with the depth in the configuration.
        configuration: Name of the configuration, e.g. ``3d_fullres``.
        parameters: State dictionary of the network for each fold.
        dataset_json: Content of the model's dataset.json.
        trainer: Name of the trainer that trained the model.
        mirroring_axes: Spatial axes that the model may be mirrored along, None if none.
    """

    network: nn.Module
    plans: dict[str, Any]
    configuration: str
    parameters: list[dict[str, Tensor]]
    dataset_json: dict[str, Any]
    trainer: str
    mirroring_axes: tuple[int, ...] | None


def depth_of(plans: dict[str, Any], configuration: str, title: str) -> int:
    """Return the depth of the nested network of a configuration.

    Args:
        plans: Content of the model's plans.json.
        configuration: Name of the configuration, e.g. ``3d_fullres``.
        title: Name of the model in messages, e.g. ``the model FOLDER``.

    Raises:
        ValueError: If it has another network.
    """
    manager = PlansManager(plans).get_configuration(configuration)
    if manager.network_arch_class_name != NESTED:
        name = manager.network_arch_class_name.rpartition(".")[2]
        second = second_architecture(plans, configuration)
        if second is not None and second["network_class_name"] == NESTED:
            raise ValueError(
                f"network 1 of {title} cannot be pruned: it is {name}; its network 2 is a nested one, so predict with "
                "--network 2 --prune_depth N"
            )
        raise ValueError(
            f"{title} cannot be pruned: its network is {name}, and only the nested networks of trainers with ANUNet in "
            "their name can be; predict without --prune_depth"
        )
    kwargs = manager.network_arch_init_kwargs
    depth: int = kwargs.get("depth") or kwargs["n_stages"] - 1
    return depth


def pruned_plans(plans: dict[str, Any], configuration: str, depth: int, title: str) -> dict[str, Any]:
    """Return a copy of plans whose network has a depth.

    Args:
        plans: Content of the model's plans.json.
        configuration: Name of the configuration, e.g. ``3d_fullres``.
        depth: Depth of the pruned network, 1 to that of the model.
        title: Name of the model in messages, e.g. ``the model FOLDER``.

    Raises:
        ValueError: If the network is not a nested one, or not as deep.
    """
    deepest = depth_of(plans, configuration, title)
    if not 1 <= depth <= deepest:
        raise ValueError(f"prune depth must lie between 1 and {deepest}, the depth of {title}, got {depth}")
    plans = deepcopy(plans)
    content = plans["configurations"][configuration]
    if "architecture" not in content:
        content["architecture"] = deepcopy(
            PlansManager(plans).get_configuration(configuration).configuration["architecture"]
        )
    content["architecture"]["arch_kwargs"]["depth"] = depth
    return plans


def load_pruned(
    model: str | Path,
    folds: Sequence[int | str] | None,
    checkpoint_name: str,
    depth: int,
    trusted: bool = False,
    network: str = FIRST,
) -> Pruned:
    """Build the network of a model to a depth, and take the weights that it needs out of the checkpoints.

    Args:
        model: Folder of the trained model, as given to -m.
        folds: Folds to load; None takes all that have the checkpoint but ``all``, as nnU-Net does.
        checkpoint_name: Name of the checkpoint file in each fold's folder.
        depth: Depth of the pruned network, 1 to that of the model.
        trusted: Whether to load checkpoints with whatever code is in them, and to import whatever the plans name.
        network: Which network of each checkpoint, ``"1"``, ``"2"`` or ``"both"``.

    Raises:
        FileNotFoundError: If the folder, a fold or the checkpoint is missing.
        ValueError: If the network is not a nested one, or not as deep, or there is no such network.
    """
    model = Path(model)
    plans, dataset_json = (read_model_json(model / f"{name}.json") for name in ("plans", "dataset"))
    found = folds_that_predict(model, as_folds(folds), checkpoint_name)
    # weights that are not taken are not read
    first = load_checkpoint(model / f"fold_{found[0]}" / checkpoint_name, mapped=True, trusted=trusted)
    configuration, trainer = first["init_args"]["configuration"], first["trainer_name"]
    title = f"the model {model}"
    if network == BOTH:
        _refuse_both(plans, configuration, title)
    is_second = network == SECOND and second_architecture(plans, configuration) is not None
    plans = plans_of_second(plans, configuration) if is_second else plans
    plans = pruned_plans(plans, configuration, depth, f"network 2 of {title}" if is_second else title)
    plans = without_second(plans, configuration)
    with trusting(trusted):
        cut = _build(plans, configuration, dataset_json, None if is_second else trainer)
    parameters: list[dict[str, Tensor]] = []
    for fold in found:
        file = model / f"fold_{fold}" / checkpoint_name
        checkpoint = load_checkpoint(file, mapped=True, trusted=trusted)
        chosen = chosen_networks(checkpoint, network, file, "predict with")
        for weights in chosen:
            check_fit(cut, weights, file, surplus=True)
        parameters.append(joined([{key: weights[key].clone() for key in cut.state_dict()} for weights in chosen]))
    regions = PlansManager(plans).get_label_manager(dataset_json).has_regions
    predicting = average_of([cut, deepcopy(cut)] if network == BOTH else [cut], regions)
    predicting.load_state_dict(parameters[0])
    axes = first.get("inference_allowed_mirroring_axes")
    return Pruned(predicting, plans, configuration, parameters, dataset_json, trainer, axes)


def _refuse_both(plans: dict[str, Any], configuration: str, title: str) -> None:
    """Raise ValueError if a model has two networks of different kinds."""
    second = second_architecture(plans, configuration)
    if second is None:
        return
    first = PlansManager(plans).get_configuration(configuration).network_arch_class_name
    names = {FIRST: first, SECOND: second["network_class_name"]}
    nested = [number for number, name in names.items() if name == NESTED]
    kinds = " and ".join(f"network {number} is {name.rpartition('.')[2]}" for number, name in names.items())
    if not nested:
        raise ValueError(
            f"{title} cannot be pruned: {kinds}, and only the nested networks of trainers with ANUNet in their name "
            "can be; predict without --prune_depth"
        )
    raise ValueError(
        f"{title} has two networks of different kinds, of which network {nested[0]} alone can be cut ({kinds}); "
        f"predict with --network {nested[0]}, or without --prune_depth"
    )


def _build(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], trainer: str | None) -> nn.Module:
    """Build the network of plans by a trainer's class, or by the plans alone where that builds another one."""
    manager = PlansManager(plans)
    architecture = manager.get_configuration(configuration).configuration["architecture"]
    check_classes(architecture)
    if trainer is None:
        channels = determine_num_input_channels(manager, manager.get_configuration(configuration), dataset_json)
        return build(architecture, channels, manager.get_label_manager(dataset_json).num_segmentation_heads, False)
    cls = recursive_find_trainer_class_by_name(trainer)
    network: nn.Module = cls.build_network_architecture(
        manager,
        manager.get_configuration(configuration),
        determine_num_input_channels(manager, manager.get_configuration(configuration), dataset_json),
        manager.get_label_manager(dataset_json).num_segmentation_heads,
        enable_deep_supervision=False,
    )
    return network


def pruned_network(plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], depth: int) -> nn.Module:
    """Return the network of a depth on the meta device: its modules and shapes without memory for weights.

    Raises:
        ValueError: If the network is not a nested one, or not as deep.
    """
    manager = PlansManager(pruned_plans(plans, configuration, depth, "the model"))
    configuration_manager = manager.get_configuration(configuration)
    with torch.device("meta"):
        return build(
            configuration_manager.configuration["architecture"],
            determine_num_input_channels(manager, configuration_manager, dataset_json),
            manager.get_label_manager(dataset_json).num_segmentation_heads,
            False,
        )


def write_pruned(
    model: Path,
    output: Path,
    depth: int,
    folds: Sequence[int | str] | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    overwrite: bool = False,
) -> list[int | str]:
    """Write a model that is pruned for good: it predicts without ``--prune_depth``, where this plugin is installed.

    Args:
        model: Folder of the trained model, as given to -m.
        output: Folder that the pruned model is written to.
        depth: Depth of the pruned network, 1 to that of the model.
        folds: Folds to write; None takes all that have the checkpoint.
        checkpoint_name: Name of the checkpoint file in each fold's folder.
        overwrite: Whether to replace what an earlier call wrote to ``output``; anything else is refused.

    Returns:
        The folds of the written model.

    Raises:
        FileNotFoundError: If the model, a fold or the checkpoint is missing.
        FileExistsError: If ``output`` exists and is not empty, without ``overwrite``, or is not of an earlier call.
        ValueError: If the network is not a nested one, or not as deep, or ``output`` and the model hold one another.
    """
    check_target(model, output, overwrite, "prune", "--overwrite_written")
    if output.suffix.lower() == ".zip":
        raise ValueError(f"a pruned model is written as a folder, got {output}; nnUNetv2_export_model_to_zip packs one")
    written = find_folds(model, folds, checkpoint_name)
    with building(output, "prune", model.name) as built:
        for fold in written:
            pruned = load_pruned(model, [fold], checkpoint_name, depth, trusted_by_environment())
            target = built / f"fold_{fold}" / "checkpoint_final.pth"
            target.parent.mkdir(parents=True)
            content = {
                "network_weights": pruned.parameters[0],
                "trainer_name": pruned.trainer,
                "init_args": {"configuration": pruned.configuration},
                "inference_allowed_mirroring_axes": pruned.mirroring_axes,
            }
            with files.naming_full_disk(target):
                torch.save(content, target)
        files.write_json(built / "plans.json", for_inference(pruned.plans))
        files.write_json(built / "dataset.json", without_private_keys(pruned.dataset_json))
        copy_fingerprint(model, built)
        check_target(model, output, overwrite, "prune", "--overwrite_written")  # somebody may have come meanwhile
    return written
