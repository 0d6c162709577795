"""Export of trained models to folders and archives that plain nnU-Net predicts with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_ext import files
from nnunet_ext.model_sharing.choice_of_network import BOTH, FIRST, SECOND, chosen_networks, plans_of_network
from nnunet_ext.model_sharing.folders import (
    building,
    check_plain_name,
    check_target,
    copy_fingerprint,
    find_folds,
    read_model_json,
)
from nnunet_ext.model_sharing.private import for_inference, without_private_keys
from nnunet_ext.training.architecture import build, check_fit, second_architecture
from nnunet_ext.training.safe_load import load_checkpoint
from nnunet_ext.training.trusted_classes import STOCK_PACKAGE

STOCK_TRAINER = "nnUNetTrainer"
# What stock inference reads, and nothing else: no optimiser states, no curves.
_KEPT = ("network_weights", "inference_allowed_mirroring_axes")


def export_model(
    model: str | Path,
    output: str | Path,
    network: str = "1",
    folds: Sequence[int | str] | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    overwrite: bool = False,
) -> list[int | str]:
    """Write a model that predicts without this plugin, bit for bit the same.

    Args:
        model: Folder of the trained model, ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``.
        output: Folder to write, or a file ending in ``.zip`` for ``nnUNetv2_install_pretrained_model_from_zip``.
        network: Network to export, ``"1"``, ``"2"`` (the second of CPS, the student of a mean teacher) or ``"both"``;
            both become two folds each, whose logits stock prediction averages. Of networks of two kinds one can be
            exported, with plans that name its architecture.
        folds: Folds to export; None takes all that have the checkpoint.
        checkpoint_name: Name of the checkpoint file in each fold's folder.
        overwrite: Whether to replace what an earlier call wrote to ``output``; anything else is refused.

    Returns:
        The folds of the exported model.

    Raises:
        FileNotFoundError: If the model, a fold or the checkpoint is missing.
        FileExistsError: If ``output`` exists and is not empty, without ``overwrite``, or is not of an earlier call.
        ValueError: If the architecture is not a stock one, the weights do not fit it, the model has no second network,
            or ``output`` and the model hold one another.
    """
    model, output = Path(model), Path(output)
    check_target(model, output, overwrite)
    plans, dataset_json = (read_model_json(model / name) for name in ("plans.json", "dataset.json"))
    sources = find_folds(model, folds, checkpoint_name)
    first_checkpoint = model / f"fold_{sources[0]}" / checkpoint_name
    configuration = load_checkpoint(first_checkpoint, mapped=True)["init_args"]["configuration"]
    for key in ("dataset_name", "plans_name"):
        check_plain_name(plans.get(key), key, model / "plans.json")
    check_plain_name(configuration, "configuration", first_checkpoint)
    plans = _plans_to_export(plans, configuration, network, model)
    inside = f"{plans['dataset_name']}/{STOCK_TRAINER}__{plans['plans_name']}__{configuration}"
    with building(output, "export", inside) as built:
        written: list[int | str] = []
        for fold in sources:
            file = model / f"fold_{fold}" / checkpoint_name
            checkpoint = load_checkpoint(file)
            _check_architecture(plans, checkpoint, configuration, file)
            for weights in chosen_networks(checkpoint, network, file, "export it with"):
                check_fit(_expected_network(plans, dataset_json, configuration), weights, file)
                number = len(written) if network == "both" else fold
                target = built / f"fold_{number}" / "checkpoint_final.pth"
                target.parent.mkdir()
                _save(checkpoint | {"network_weights": weights}, configuration, target)
                written.append(number)
        files.write_json(built / "plans.json", for_inference(plans))
        files.write_json(built / "dataset.json", without_private_keys(dataset_json))
        copy_fingerprint(model, built)
        check_target(model, output, overwrite)  # somebody may have come meanwhile
    return written


def _save(checkpoint: dict[str, Any], configuration: str, target: Path) -> None:
    import torch

    content = {key: checkpoint[key] for key in _KEPT if key in checkpoint}
    content["trainer_name"] = STOCK_TRAINER
    content["init_args"] = {"configuration": configuration}
    with files.naming_full_disk(target):
        torch.save(content, target)


def _plans_to_export(plans: dict[str, Any], configuration: str, network: str, model: Path) -> dict[str, Any]:
    """Return plans that name the exported network alone, as that of the configuration.

    Raises:
        ValueError: If the model has networks of two kinds, and both are asked for, or one that stock does not have.
    """
    second = second_architecture(plans, configuration)
    if second is None:
        return plans
    chosen = {number: plans_of_network(plans, configuration, number) for number in (FIRST, SECOND)}
    names = {number: _network_name(of_number, configuration) for number, of_number in chosen.items()}
    stock = [number for number, name in names.items() if name.startswith(f"{STOCK_PACKAGE}.")]
    if network == BOTH or network not in stock:
        kinds = "; ".join(
            f"network {number} is {name.rpartition('.')[2]}, which {'needs no plugin' if number in stock else 'does'}"
            for number, name in names.items()
        )
        what = (
            "both cannot be folds of one exported model" if network == BOTH else f"network {network} needs nnunet_ext"
        )
        instead = f"export it with --network {stock[0]}, or " if stock else ""
        raise ValueError(
            f"{model} has networks of two kinds, so {what} ({kinds}); {instead}predict with nnunet_ext installed, by "
            f"nnUNetv2_predict --network {network}"
        )
    return chosen[network]


def _network_name(plans: dict[str, Any], configuration: str) -> str:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    name: str = PlansManager(plans).get_configuration(configuration).network_arch_class_name
    return name


def _check_architecture(plans: dict[str, Any], checkpoint: dict[str, Any], configuration: str, file: Path) -> None:
    """Refuse networks that plain nnU-Net does not have, and folds of several configurations."""
    trained = checkpoint["init_args"]["configuration"]
    if trained != configuration:
        raise ValueError(
            f"{file} is of the configuration {trained}, another fold of {configuration}; export them apart"
        )
    if configuration not in plans.get("configurations", {}):
        raise ValueError(
            f"{file} is of the configuration {configuration}, which plans.json beside it does not have; restore the "
            "plans that it was trained with"
        )
    name = _network_name(plans, configuration)
    if not name.startswith(f"{STOCK_PACKAGE}."):
        raise ValueError(
            f"the model of {checkpoint['trainer_name']} uses the architecture {name}, which plain nnU-Net does not "
            "have; predict with it where nnunet_ext is installed"
        )


def _expected_network(plans: dict[str, Any], dataset_json: dict[str, Any], configuration: str) -> nn.Module:
    """Return the network that stock prediction will build, without memory for its weights."""
    import torch
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    configuration_manager = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, configuration_manager, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    with torch.device("meta"):
        return build(configuration_manager.configuration["architecture"], channels, heads, False)
