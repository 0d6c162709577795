"""A tiny dataset in nnU-Net's folders, with plans written by hand; a fixture for the tests of several folders."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from reference.architecture import architecture as unet

NAME = "Dataset777_Tiny"
SHAPE = (12, 16, 14)
SPACING = (2.4, 0.9, 0.8)  # mm, array order; the plans', so that nothing is resampled
TILT = 0.2  # radians about the first axis of the image: the usual oblique scan
DIRECTION = (1, 0, 0, 0, float(np.cos(TILT)), -float(np.sin(TILT)), 0, float(np.sin(TILT)), float(np.cos(TILT)))
LABELS = {"background": 0, "organ": 1}


def scan(seed: int, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Make an image with a border of zeros, a notch of zeros open to the outside, and an enclosed hole of zeros."""
    image = np.random.default_rng(seed).normal(100, 20, shape).clip(1, None).astype(np.float32)
    image[:, :, :2] = 0
    image[:, -1] = 0
    image[:5, 1:6, 5:9] = 0
    image[7:9, 8:10, 7:9] = 0
    return image


def write_image(path: Path, array: np.ndarray, spacing: Sequence[float] = SPACING, **geometry: Any) -> Path:
    """Write an array ``(z, y, x)``; spacing (z, y, x), origin and direction as SimpleITK has them (x, y, z)."""
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(spacing[-array.ndim :])])
    if array.ndim == 3:
        image.SetDirection(DIRECTION)
    if "origin" in geometry:
        image.SetOrigin(geometry["origin"])
    if "direction" in geometry:
        image.SetDirection(geometry["direction"])
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))
    return path


def architecture(dimensions: int, stages: int) -> dict[str, Any]:
    """Return a plain U-Net of features 4, 8, 8, ..."""
    return unet(dimensions, [4, *[8] * (stages - 1)])


def make_configuration(dimensions: int, plans_name: str, channels: int, stages: int) -> dict[str, Any]:
    """Return a configuration of the scans' spacing and a patch of 16 voxels an axis."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "data_identifier": f"{plans_name}_{'2d' if dimensions == 2 else '3d_fullres'}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [16] * dimensions,
        "median_image_size_in_voxels": list(SHAPE[-dimensions:]),
        "spacing": list(SPACING[-dimensions:]),
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": architecture(dimensions, stages),
        "batch_dice": False,
    }


def make_plans(plans_name: str = "nnUNetPlans", channels: int = 1, stages: int = 2, **changes: Any) -> dict[str, Any]:
    """Return plans of 3d_fullres and 2d; ``changes`` go into the configuration 3d_fullres."""
    statistics = {"max": 200.0, "mean": 100.0, "median": 100.0, "min": 1.0, "percentile_00_5": 50.0}
    statistics |= {"percentile_99_5": 150.0, "std": 20.0}
    return {
        "dataset_name": NAME,
        "plans_name": plans_name,
        "original_median_spacing_after_transp": list(SPACING),
        "original_median_shape_after_transp": list(SHAPE),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "2d": make_configuration(2, plans_name, channels, stages),
            "3d_fullres": make_configuration(3, plans_name, channels, stages) | changes,
        },
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): dict(statistics) for c in range(channels)},
    }


class TinyDataset:
    """Folders of one dataset."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.raw = root / "raw" / NAME
        self.preprocessed = root / "preprocessed" / NAME
        self.results = root / "results"
        for folder in (self.raw, self.preprocessed, self.results):
            folder.mkdir(parents=True)

    def write_dataset_json(self, channels: int = 1, labels: dict | None = None, **more: Any) -> dict[str, Any]:
        """Write dataset.json where nnU-Net has it and return it."""
        content = {
            "channel_names": {str(c): f"channel{c}" for c in range(channels)},
            "labels": labels or LABELS,
            "numTraining": 2,
            "file_ending": ".nii.gz",
            **more,
        }
        for folder in (self.raw, self.preprocessed):
            (folder / "dataset.json").write_text(json.dumps(content))
        return content

    def write_plans(self, plans: dict[str, Any]) -> dict[str, Any]:
        """Write plans into the preprocessed folder and return them."""
        (self.preprocessed / f"{plans['plans_name']}.json").write_text(json.dumps(plans))
        return plans

    def write_splits(self, *splits: dict[str, list[str]]) -> None:
        """Write splits_final.json."""
        (self.preprocessed / "splits_final.json").write_text(json.dumps(splits))

    def add_unlabeled(self, name: str, seed: int, channel: int = 0, **geometry: Any) -> Path:
        """Write a channel of an unlabelled case."""
        return write_image(self.raw / "imagesUnlabeled" / f"{name}_{channel:04d}.nii.gz", scan(seed), **geometry)

    def add_labelled(self, name: str, seed: int, label: np.ndarray | None = None) -> tuple[Path, Path]:
        """Write a labelled case; by default its label is 1 inside the non-zero mask."""
        image = scan(seed)
        label = (image > 0).astype(np.uint8) if label is None else label
        return (
            write_image(self.raw / "imagesTr" / f"{name}_0000.nii.gz", image),
            write_image(self.raw / "labelsTr" / f"{name}.nii.gz", label),
        )


def set_environment(monkeypatch: pytest.MonkeyPatch, root: Path) -> TinyDataset:
    """Let nnU-Net look into ``root``; it asks the environment at each use (nnunetv2.paths)."""
    dataset = TinyDataset(root)
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(root / variable))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # 0 would make stock planners call torch.set_num_threads(0)
    monkeypatch.delenv("nnUNet_compile", raising=False)
    return dataset


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TinyDataset]:
    """An empty dataset with dataset.json and stock plans; every nnUNet_* variable points into this test's folder."""
    dataset = set_environment(monkeypatch, tmp_path)
    dataset.write_dataset_json()
    dataset.write_plans(make_plans())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other at this size
    yield dataset
    torch.set_num_threads(threads)
