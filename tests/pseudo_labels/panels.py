"""Tiny networks that are asked, and a dataset whose scans they label."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from data.tiny_dataset import TinyDataset, set_environment, write_image
from inference.tiny_model import LABELS, TinyModel, make_model, smooth_image

from nnunet_ext.pseudo_labels.panel import Settings
from nnunet_ext.training.checkpoints import SECOND_NETWORK, TEACHING

CPU = Settings(device="cpu", step_size=1.0)
SHAPE = (12, 18, 18)  # of the scans, small enough for a few patches


def change_weights(weights: dict[str, Any], seed: int, share: float = 0.03) -> dict[str, Any]:
    """Return weights with noise: another network of the same kind."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: value + share * value.std(unbiased=False) * torch.randn(value.shape, generator=generator)
        for key, value in weights.items()
    }


def read_checkpoint(model: TinyModel, fold: int = 0) -> dict[str, Any]:
    return torch.load(model.folder / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)


def write_checkpoint(model: TinyModel, content: dict[str, Any], fold: int = 0) -> None:
    folder = model.folder / f"fold_{fold}"
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "checkpoint_final.pth")


def add_folds(model: TinyModel, *folds: int, share: float = 0.03) -> TinyModel:
    """Write further folds, whose networks differ a little."""
    first = read_checkpoint(model)
    for fold in folds:
        weights = change_weights(first["network_weights"], fold, share)
        write_checkpoint(model, first | {"network_weights": weights}, fold)
    return model


def add_network(model: TinyModel, key: str) -> TinyModel:
    """Let fold 0 have a second network, as CPS or a mean teacher leave it."""
    content = read_checkpoint(model)
    weights = change_weights(content["network_weights"], 7)
    added = {SECOND_NETWORK: {"network_weights": weights}, TEACHING: {"student": weights}}[key]
    write_checkpoint(model, content | {key: added})
    return model


def make_folds(root: Path, *folds: int, share: float = 0.03, **arguments: Any) -> TinyModel:
    root.mkdir(parents=True, exist_ok=True)
    return add_folds(make_model(root, **arguments), *folds, share=share)


def make_source(
    root: Path, monkeypatch: Any, unlabelled: int = 3, labels: dict[str, Any] | None = None, **more: Any
) -> TinyDataset:
    """Write a dataset of five labelled cases and some scans; the files of the labels are no label maps."""
    dataset = set_environment(monkeypatch, root)
    dataset.write_dataset_json(labels=labels or LABELS, channel_names={"0": "CT"}, numTraining=5, **more)
    for number in range(5):
        write_image(
            dataset.raw / "imagesTr" / f"case_{number}_0000.nii.gz", smooth_image(number, SHAPE), (3.0, 1.0, 1.0)
        )
        label = dataset.raw / "labelsTr" / f"case_{number}.nii.gz"
        label.parent.mkdir(exist_ok=True)
        label.write_bytes(b"whoever opens this fails")
    for number in range(unlabelled):
        add_scan(dataset, f"scan_{number}", 20 + number)
    return dataset


def add_scan(dataset: TinyDataset, name: str, seed: int) -> Path:
    path = dataset.raw / "imagesUnlabeled" / f"{name}_0000.nii.gz"
    return write_image(path, smooth_image(seed, SHAPE), (3.0, 1.0, 1.0))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def copy_model(model: TinyModel, target: Path) -> TinyModel:
    shutil.copytree(model.folder, target)
    return TinyModel(target, model.images, model.ending, model.configuration)
