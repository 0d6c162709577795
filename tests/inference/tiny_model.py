"""A model with random weights in nnU-Net's folders, and images to predict with it."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data.tiny_dataset import architecture, make_plans, write_image
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import gaussian_filter

from nnunet_ext.trainers import find_trainer
from nnunet_ext.trainers.ife import IFECurvaturePart
from nnunet_ext.training.architecture import NESTED, SECOND, build
from nnunet_ext.training.checkpoints import SECOND_NETWORK
from nnunet_ext.training.enhancement import enhanced_architecture

LABELS = {"background": 0, "one": 1, "two": 2, "three": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "three": 3}
SPACING = [2.0, 1.5, 1.25]  # of the plans, array order


def smooth_image(seed: int, shape: Sequence[int] = (20, 26, 30)) -> np.ndarray:
    """Return smooth noise around 100, without a zero; what lies on a border is not cropped."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(0, 1, shape), 2)
    return (100 + 20 * noise / noise.std()).clip(1, None).astype(np.float32)


@dataclass(frozen=True)
class TinyModel:
    """A trained model and its images.

    Attributes:
        folder: Model folder, for ``nnUNetv2_predict_from_modelfolder``.
        images: Folder of images.
        ending: File ending.
        configuration: Name of it.
    """

    folder: Path
    images: Path
    ending: str
    configuration: str

    def predictor(self, kind: type[Any], **options: Any) -> Any:
        """Return a predictor of this model: nnU-Net's, or ours with options."""
        predictor = kind(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False, **options)
        predictor.initialize_from_trained_model_folder(str(self.folder), (0,), "checkpoint_final.pth")
        return predictor

    def add(self, name: str, seed: int, spacing: Sequence[float] = (3.0, 1.0, 1.0), **more: Any) -> Path:
        """Write an image; spacing in array order, ``shape`` and geometry as keywords."""
        array = smooth_image(seed, more.pop("shape", (20, 26, 30)))
        return write_image(self.images / f"{name}_0000{self.ending}", array, spacing, **more)


def make_model(
    root: Path, configuration: str = "3d_fullres", labels: dict[str, Any] | None = None, **plans: Any
) -> TinyModel:
    """Write a model with random weights whose predictions hold all its labels.

    Args:
        root: Where.
        configuration: ``3d_fullres`` or ``2d``.
        labels: Of dataset.json.
        plans: Changes to the plans, on the top level; ``file_ending`` goes to dataset.json, and ``change`` into the
            configuration.
    """
    ending = plans.pop("file_ending", ".nii.gz")
    change = plans.pop("change", {})
    content = make_plans()
    spacing = SPACING[-2:] if configuration == "2d" else SPACING
    content["configurations"][configuration] |= {"spacing": list(spacing)} | copy.deepcopy(change)
    content |= plans
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": labels or LABELS,
        "numTraining": 2,
        "file_ending": ending,
    }
    if labels and any(isinstance(value, list) for value in labels.values()):
        dataset_json["regions_class_order"] = [1, 2, 3]
    manager = PlansManager(content)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    torch.manual_seed(0)
    made = manager.get_configuration(configuration)
    channels = (
        1 if made.previous_stage_name is None else 1 + len(manager.get_label_manager(dataset_json).foreground_labels)
    )
    network = nnUNetTrainer.build_network_architecture(manager, made, channels, heads, enable_deep_supervision=False)
    head = network.decoder.seg_layers[-1]
    with torch.no_grad():  # large differences between classes, as after training, and none that always wins
        head.weight.mul_(20)
        head.bias.zero_()
        patch = torch.from_numpy(smooth_image(9, (16,) * len(made.patch_size)))[None, None]
        patch = torch.cat([(patch - 100) / 20, *[torch.zeros_like(patch)] * (channels - 1)], 1)
        head.bias.copy_(-network.eval()(patch).mean([0, *range(2, patch.ndim)]))
    folder = root / "model"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(content))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": configuration},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    (root / "images").mkdir()
    return TinyModel(folder, root / "images", ending, configuration)


def make_nested_model(root: Path, configuration: str = "3d_fullres") -> TinyModel:
    """Write a model of depth 2 trained with ANUNet, with attention gates, and one image, case ``a``."""
    model = make_model(root, configuration)
    nested = architecture(2 if configuration == "2d" else 3, 3) | {"network_class_name": NESTED}
    nested["arch_kwargs"] |= {"aggregation": "concat", "gate_ratio": 0.5, "depth": 2}
    plans = json.loads((model.folder / "plans.json").read_text())
    plans["configurations"][configuration]["architecture"] = nested
    (model.folder / "plans.json").write_text(json.dumps(plans))
    manager = PlansManager(plans)
    trainer = find_trainer("nnUNetTrainerANUNet")
    network = trainer.build_network_architecture(manager, manager.get_configuration(configuration), 1, 4, False)
    file = model.folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False) | {"trainer_name": "nnUNetTrainerANUNet"}
    torch.save(content | {"network_weights": network.state_dict()}, file)
    model.add("a", 1)
    return model


def make_pair_model(root: Path, *folds: int, **arguments: Any) -> TinyModel:
    """Write a model of CPS whose network 1 is nnU-Net's own and whose network 2 is a nested one of depth 1.

    Args:
        root: Where.
        folds: Further folds than 0.
        arguments: Of :func:`make_model`.
    """
    model = make_model(root, **arguments)
    plans = json.loads((model.folder / "plans.json").read_text())
    nested = architecture(2 if model.configuration == "2d" else 3, 2) | {"network_class_name": NESTED}
    nested["arch_kwargs"] |= {"aggregation": "concat", "gate_ratio": 0.5, "depth": 1}
    plans["configurations"][model.configuration][SECOND] = nested
    (model.folder / "plans.json").write_text(json.dumps(plans))
    content = torch.load(model.folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    heads = content["network_weights"]["decoder.seg_layers.0.bias"].numel()
    for fold in (0, *folds):
        torch.manual_seed(fold + 1)
        second = build(nested, 1, heads, False).eval()
        scale = 1 + 0.1 * fold
        first = {key: value * scale for key, value in content["network_weights"].items()}
        with torch.no_grad():  # large differences between classes, as after training
            last = list(second.state_dict().values())[-2:]
            last[0].mul_(20)
            last[1].zero_()
        weights = {"network_weights": first, SECOND_NETWORK: {"network_weights": second.state_dict()}}
        (model.folder / f"fold_{fold}").mkdir(exist_ok=True)
        name = {"trainer_name": "nnUNetTrainerCPS_UNet_ANUNet"}
        torch.save(content | weights | name, model.folder / f"fold_{fold}" / "checkpoint_final.pth")
    return model


def make_enhanced_model(root: Path, part: type = IFECurvaturePart, configuration: str = "3d_fullres") -> TinyModel:
    """Write a model with instructive feature enhancement in its first stage, and one image, case ``case``."""
    settings = type("Settings", (part,), {"ife_stages": (0,), "ife_ratios": (0.5,)})  # the network has two stages
    enhanced = enhanced_architecture(settings, PlansManager(make_plans()).get_configuration(configuration))
    model = make_model(root, configuration, change={"architecture": enhanced})
    model.add("case", 1)
    return model
