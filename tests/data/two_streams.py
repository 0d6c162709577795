"""A preprocessed dataset of two labelled and two unlabelled cases, and its two-stream loader; for several tests."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from data.tiny_dataset import LABELS, TinyDataset, make_plans, scan
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import binary_fill_holes

from nnunet_ext.data.loaders import TwoStreamLoader, two_stream_loader
from nnunet_ext.data.preprocess import preprocess_unlabeled
from nnunet_ext.data.training_cases import unlabeled_dataset


class MirrorsOnly(nnUNetTrainer):
    """Augments in a way that can be computed by hand: image and mask stay aligned voxel by voxel."""

    @staticmethod
    def get_training_transforms(patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes, *args, **kwargs):
        stock = nnUNetTrainer.get_training_transforms(
            patch_size, rotation_for_DA, deep_supervision_scales, mirror_axes, *args, **kwargs
        )
        for step in stock.transforms:
            if isinstance(step, SpatialTransform):
                step.p_rotation = step.p_scaling = 0
        return ComposeTransforms([step for step in stock.transforms if not isinstance(step, RandomTransform)])


Make = Callable[..., tuple[Any, TwoStreamLoader]]


@pytest.fixture
def make(tiny: TinyDataset) -> Make:
    """Return a function that preprocesses two labelled and two unlabelled cases and builds trainer and loader."""

    def build(
        trainer_class: type = nnUNetTrainer,
        configuration: str = "3d_fullres",
        json_extra: dict[str, Any] | None = None,
        deep_supervision: bool = False,
        unlabelled: bool = True,
        two_d_changes: dict[str, Any] | None = None,
        **changes: Any,
    ) -> tuple[Any, TwoStreamLoader]:
        content = tiny.write_dataset_json(**(json_extra or {"labels": LABELS}))
        plans = make_plans(stages=3, **changes)
        plans["configurations"]["2d"].update(two_d_changes or {})
        tiny.write_plans(plans)
        manager = PlansManager(plans)
        folder = tiny.preprocessed / f"nnUNetPlans_{configuration}"
        folder.mkdir()
        for seed, name in enumerate("lm"):
            # The label is 1 wherever nnU-Net's non-zero mask is, so that the target shows what the mask must be.
            image, label = tiny.add_labelled(name, seed, binary_fill_holes(scan(seed) != 0).astype(np.uint8))
            used = manager.get_configuration(configuration)
            preprocessor = used.preprocessor_class(verbose=False)
            preprocessor.run_case_save(str(folder / name), [str(image)], str(label), manager, used, content)
            tiny.add_unlabeled(f"u{name}", seed)
        tiny.write_splits({"train": ["l", "m"], "val": ["l"]})
        preprocess_unlabeled(777, "nnUNetPlans", configuration, 1, show_progress_bar=False)
        trainer = trainer_class(plans | {"continue_training": False}, configuration, 0, content, torch.device("cpu"))
        trainer.enable_deep_supervision = deep_supervision
        trainer.initialize()
        np.random.seed(1)
        torch.manual_seed(1)
        return trainer, two_stream_loader(trainer, unlabeled_dataset(trainer) if unlabelled else None)

    return build
