"""A propagation model with random weights, and a driver that carries slices as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data.tiny_dataset import make_plans
from inference.tiny_model import LABELS, SPACING
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.propagation.driver import NoReferenceError, Propagated
from nnunet_ext.training.architecture import SPACE_TIME, build

NARROW = {
    "key_stages": [4, 4, 8],
    "key_blocks": [1, 1, 1],
    "value_stages": [4, 4, 8],
    "value_blocks": [1, 1, 1],
    "key_dim": 4,
    "value_dim": 8,
    "decoder_channels": [8, 8, 8],
    "norm": "instance",
}
TRAINER = "nnUNetTrainerPropagation"


def make_propagation_model(
    root: Path,
    labels: dict[str, Any] | None = None,
    folds: Sequence[int | str] = (0,),
    configuration: str = "2d",
    network: str = SPACE_TIME,
    **plans: Any,
) -> Path:
    """Write a propagation model with random weights and return its folder.

    Args:
        root: Where.
        labels: Of dataset.json.
        folds: Folds, each of other weights.
        configuration: Name of it.
        network: Class path of the network.
        plans: Changes to the plans, on the top level; ``file_ending`` and ``channels`` go to dataset.json, and
            ``change`` into the configuration.
    """
    ending, channels, change = (
        plans.pop(key, other) for key, other in (("file_ending", ".nii.gz"), ("channels", 1), ("change", {}))
    )
    content = make_plans(channels=channels)
    own = content["configurations"][configuration]
    own["spacing"] = SPACING[-len(own["spacing"]) :]
    if network == SPACE_TIME:
        own["architecture"] = {"network_class_name": SPACE_TIME, "arch_kwargs": dict(NARROW), "_kw_requires_import": []}
    own |= change
    content |= plans
    dataset_json = {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": labels or LABELS,
        "numTraining": 2,
        "file_ending": ending,
    }
    if any(isinstance(value, list) for value in dataset_json["labels"].values()):
        dataset_json["regions_class_order"] = [1, 2, 3]
    heads = PlansManager(content).get_label_manager(dataset_json).num_segmentation_heads
    folder = root / f"{TRAINER}__nnUNetPlans__{configuration}"
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    for seed, fold in enumerate(folds):
        torch.manual_seed(seed)
        weights = build(own["architecture"], channels, heads, False).state_dict()
        checkpoint = {
            "network_weights": weights,
            "trainer_name": TRAINER if network == SPACE_TIME else "nnUNetTrainer",
            "init_args": {"configuration": configuration},
            "inference_allowed_mirroring_axes": None,
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def carried_unchanged(networks, image, references, device, settings=None, progress=False) -> Propagated:
    """Stand in for the driver: each slice gets the labels of the nearest reference, the lower one of two."""
    places = sorted(references)
    maps = np.stack([np.asarray(references[place]) for place in places]) if places else np.zeros((0, 1, 1))
    classes = tuple(int(value) for value in np.unique(maps) if value > 0)
    if not classes:
        raise NoReferenceError("no class")
    total = image.shape[1]
    nearest = [min(range(len(places)), key=lambda n, at=index: abs(places[n] - at)) for index in range(total)]
    labels = torch.from_numpy(maps[nearest].astype(np.int16))
    channels = torch.from_numpy(np.searchsorted((0, *classes), labels.numpy().clip(0)))
    one_hot = torch.nn.functional.one_hot(channels, len(classes) + 1).movedim(-1, 0).half().contiguous()
    directions = torch.ones((total, 2), dtype=torch.bool)
    directions[places] = False
    agreement = torch.arange(total) / total
    agreement[places] = torch.nan
    return Propagated(classes, one_hot, labels, labels, labels, directions, agreement)
