"""Trained propagation models: found, checked against the model that they work with, and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext.data.dataset_json import number_of_channels
from nnunet_ext.inference.case import Model
from nnunet_ext.model_sharing.folders import as_folds, find_folds, read_model_json, sha256_of
from nnunet_ext.training.architecture import SPACE_TIME, build, check_fit
from nnunet_ext.training.safe_load import load_checkpoint
from nnunet_ext.training.trusted_classes import trusting

TRAINED_BY = "train one with nnUNetv2_train DATASET 2d FOLD -tr nnUNetTrainerPropagation"
REMEDY = "pass --trust_model"
_DIGITS = 12  # of the SHA-256 of a checkpoint that name it


@dataclass(frozen=True)
class PropagationModel:
    """A trained propagation model.

    Attributes:
        folder: Its folder.
        folds: Folds whose networks are averaged.
        checkpoint_name: Name of the checkpoint file in each fold's folder.
        model: Plans by which its cases are prepared and exported.
        trusted: Whether its checkpoints may hold code.
    """

    folder: Path
    folds: tuple[int | str, ...]
    checkpoint_name: str
    model: Model
    trusted: bool = False

    @property
    def checkpoints(self) -> list[Path]:
        """File of each fold."""
        return [self.folder / f"fold_{fold}" / self.checkpoint_name for fold in self.folds]

    @property
    def axis(self) -> int:
        """Array axis of the image along which masks are carried."""
        return int(self.model.plans.transpose_forward[0])

    def describe(self) -> str:
        """Return what names the model in reports: folder, folds and the beginnings of their checkpoints' SHA-256."""
        hashes = [sha256_of(file)[:_DIGITS] for file in self.checkpoints]
        return f"{self.folder.name}: {', '.join(f'fold {f} {h}' for f, h in zip(self.folds, hashes, strict=True))}"

    def load(self, device: torch.device) -> list[nn.Module]:
        """Build the network of each fold on a device.

        Raises:
            ValueError: If weights are not those of the network in the plans.
        """
        model, networks = self.model, []
        channels = determine_num_input_channels(model.plans, model.configuration, model.dataset_json)
        heads = model.plans.get_label_manager(model.dataset_json).num_segmentation_heads
        for file in self.checkpoints:
            with trusting(self.trusted):
                network = build(model.configuration.configuration["architecture"], channels, heads, False)
            weights = load_checkpoint(file, mapped=True, trusted=self.trusted or None)["network_weights"]
            check_fit(network, weights, file)
            network.load_state_dict(weights)
            networks.append(network.to(device).eval())
        return networks


def open_model(
    path: Path,
    folds: Sequence[int | str] | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    trusted: bool = False,
    flag: str = "-m",
) -> PropagationModel:
    """Find a propagation model and check that it is one.

    Args:
        path: Its folder, or that of one of its folds.
        folds: Folds whose networks are averaged; None takes all that have the checkpoint, ``all`` only if it is the
            only one.
        checkpoint_name: Name of the checkpoint file in each fold's folder.
        trusted: Whether checkpoints may hold code.
        flag: Option that names it, for messages.

    Raises:
        FileNotFoundError: If the folder, a fold or the checkpoint is missing.
        ValueError: If it is another model, or a 3d one, or has checkpoints with code in them.
    """
    if path.name.startswith("fold_") and folds is None and (path / checkpoint_name).is_file():
        path, folds = path.parent, [path.name.removeprefix("fold_")]
    found = _find_folds(path, as_folds(folds), checkpoint_name, flag)
    if folds is None and len(found) > 1:
        found = [fold for fold in found if fold != "all"]
    plans, dataset_json = (read_model_json(path / f"{name}.json") for name in ("plans", "dataset"))
    contents = [
        load_checkpoint(path / f"fold_{fold}" / checkpoint_name, mapped=True, trusted=trusted or None, remedy=REMEDY)
        for fold in found
    ]
    name, trainer = contents[0]["init_args"]["configuration"], contents[0]["trainer_name"]
    if name not in plans["configurations"]:
        raise ValueError(
            f"{flag} {path} is of the configuration {name}, which {path / 'plans.json'} does not have; restore the "
            "plans that it was trained with"
        )
    manager = PlansManager(plans)
    configuration = manager.get_configuration(name)
    _check_kind(configuration, f"{flag} {path}", name, trainer)
    model = Model(manager, configuration, dataset_json)
    return PropagationModel(path, tuple(found), checkpoint_name, model, trusted)


def _find_folds(path: Path, folds: Sequence[int | str] | None, name: str, flag: str) -> list[int | str]:
    """Find folds, and say by which option they were named where another one names a model, too."""
    if flag == "-m":
        return find_folds(path, folds, name)
    try:
        return find_folds(path, folds, name, "finish its training")  # -chk is of the model that segments
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{flag}: {error}") from error


def _check_kind(configuration: ConfigurationManager, title: str, name: str, trainer: str) -> None:
    """Raise ValueError if a model carries no masks from slice to slice."""
    if len(configuration.spacing) != 2:
        raise ValueError(
            f"{title} is of the configuration {name} ({trainer}), which is 3d; masks are carried from slice to slice "
            f"by a propagation model of a 2d configuration: {TRAINED_BY}"
        )
    if not is_propagation(configuration):
        network = configuration.network_arch_class_name.rpartition(".")[2]
        raise ValueError(
            f"{title} is no propagation model: {trainer} has trained a {network}, which segments images; {TRAINED_BY}"
        )


def is_propagation(configuration: ConfigurationManager) -> bool:
    """Whether the network of a configuration carries masks from slice to slice and segments nothing alone."""
    return bool(configuration.network_arch_class_name == SPACE_TIME)


def check_partner(carrier: PropagationModel, plans: PlansManager, configuration: Any, dataset_json: dict) -> None:
    """Check that a propagation model can carry what another model segments.

    Args:
        carrier: The propagation model.
        plans: nnU-Net's PlansManager of the model that segments.
        configuration: nnU-Net's ConfigurationManager of it.
        dataset_json: Content of its dataset.json.

    Raises:
        ValueError: If it is a propagation model itself, or its classes, channels, files or reader are others.
    """
    if is_propagation(configuration):
        raise ValueError(
            "the model of the prediction is a propagation model, which segments nothing alone; name a model that "
            "segments (-tr or -m) beside --propagate, or carry slices that you annotated by nnUNetv2_ext propagate"
        )
    own, title = carrier.model.dataset_json, f"--propagate {carrier.folder}"
    for what, values in (
        ("the classes", [classes_of(content) for content in (own, dataset_json)]),
        ("the regions_class_order", [content.get("regions_class_order") for content in (own, dataset_json)]),
        ("this number of channels:", [number_of_channels(content) for content in (own, dataset_json)]),
        ("files ending in", [content["file_ending"] for content in (own, dataset_json)]),
        (
            "images read by",
            [manager.image_reader_writer_class.__name__ for manager in (carrier.model.plans, plans)],
        ),
    ):
        if values[0] != values[1]:
            raise ValueError(
                f"{title} has {what} {values[0]}, but the model of the prediction {values[1]}; both must be the same: "
                "name a propagation model of the same dataset"
            )


def check_propagation(
    propagate: Path,
    segmenting: Path,
    folds: Sequence[int | str] | None,
    checkpoint_name: str,
    trusted: bool = False,
    save_probabilities: bool = False,
) -> None:
    """Check a propagation model and the model whose slices it is to carry, before anything is written.

    Args:
        propagate: Folder of the propagation model.
        segmenting: Folder of the model that segments.
        folds: Folds of it; None takes all that have the checkpoint.
        checkpoint_name: Name of the checkpoint file in each of its folds' folders.
        trusted: Whether checkpoints may hold code.
        save_probabilities: Whether probabilities are to be written.

    Raises:
        FileNotFoundError: If something is missing.
        ValueError: If the models do not fit each other, or there are no such probabilities.
    """
    carrier = open_model(propagate, trusted=trusted, flag="--propagate")
    plans, dataset_json = (read_model_json(segmenting / f"{name}.json") for name in ("plans", "dataset"))
    fold = find_folds(segmenting, folds, checkpoint_name)[0]
    content = load_checkpoint(
        segmenting / f"fold_{fold}" / checkpoint_name, mapped=True, trusted=trusted or None, remedy=REMEDY
    )
    manager = PlansManager(plans)
    configuration = manager.get_configuration(content["init_args"]["configuration"])
    check_partner(carrier, manager, configuration, dataset_json)
    check_probabilities(carrier, save_probabilities)


def check_probabilities(carrier: PropagationModel, save_probabilities: bool) -> None:
    """Refuse probabilities of regions: what is carried is the label of each voxel.

    Raises:
        ValueError: If the dataset has regions and probabilities are wanted.
    """
    model = carrier.model
    if save_probabilities and model.plans.get_label_manager(model.dataset_json).has_regions:
        raise ValueError(
            "--save_probabilities does not go with --propagate where the dataset has regions: labels are carried, of "
            "which no probabilities of regions can be made; leave one of both out"
        )


def classes_of(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return the labels of a dataset.json but for the one to be ignored, in order of their values, as text is shown."""
    labels = {name: value for name, value in dataset_json["labels"].items() if name != "ignore"}
    as_lists = {name: list(map(int, v)) if isinstance(v, (list, tuple)) else int(v) for name, v in labels.items()}
    return dict(sorted(as_lists.items(), key=lambda item: (str(item[1]), item[0])))
