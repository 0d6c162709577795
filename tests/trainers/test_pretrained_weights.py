"""Pretrained weights that do not fit are refused in a sentence, by every trainer of ours."""

from pathlib import Path

import pytest
import torch
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from reference import tiny

from nnunet_ext.plugin.seam_training import _with_callback

NAMES = (
    "nnUNetTrainerCPS",
    "nnUNetTrainerCWCD",
    "nnUNetTrainerIFECurvature",
    "nnUNetTrainerANUNet",
    "nnUNetTrainer_2epochs",
)
load = _with_callback(run_training.maybe_load_checkpoint)


def weights_of(trainer):
    if not trainer.was_initialized:
        trainer.initialize()
    return dict(trainer.network.state_dict())


def first_convolution(weights):
    """Both names of the weight that sees the image."""
    keys = [key for key, value in weights.items() if value.ndim == 5 and value.shape[1] == 1 and "stages.0" in key]
    return [key for key in keys if weights[key].shape[2:] == (3, 3, 3)]


def save(tmp_path, weights):
    path = tmp_path / "pretrained.pth"
    torch.save({"network_weights": weights}, path)
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_an_image_with_other_channels(make_trainer, tmp_path, name):
    weights = weights_of(make_trainer(name))
    keys = first_convolution(weights)
    assert keys
    for key in keys:
        weights[key] = torch.cat([weights[key]] * 2, 1)
    path = save(tmp_path, weights)
    with pytest.raises(ValueError, match=rf"{name}: encoder\S+ has shape \(4, 2, 3, 3, 3\) there and") as error:
        load(make_trainer(name), False, False, path)
    assert "trained with 2 input channel(s), this data has 1" in str(error.value)
    assert path in str(error.value)
    assert len(str(error.value)) < 500
    assert "tensor" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_another_network(make_trainer, tmp_path, name):
    plans = tiny.plans()
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["features_per_stage"] = [5, 6, 8]
    path = save(tmp_path, weights_of(make_trainer(name, plans=plans)))
    with pytest.raises(
        ValueError, match=r"has shape .* there and .* here, and \d+ more weights do not fit; .*same net"
    ):
        load(make_trainer(name), False, False, path)


def test_weights_that_are_missing(make_trainer, tmp_path):
    weights = weights_of(make_trainer("nnUNetTrainerCWCD"))
    path = save(tmp_path, {key: value for key, value in weights.items() if "encoder.stages.1" not in key})
    with pytest.raises(ValueError, match=r"encoder\.stages\.1\S+ is missing there and \(6, 4, 3, 3, 3\) here"):
        load(make_trainer("nnUNetTrainerCWCD"), False, False, path)


@pytest.mark.parametrize("name", ["nnUNetTrainerCWCD", "nnUNetTrainerIFECurvature"])
@pytest.mark.parametrize("content", [b"garbage", b"", None])
@pytest.mark.parametrize("trusted", [False, True])
def test_what_is_no_checkpoint(make_trainer, tmp_path, monkeypatch, name, content, trusted):
    path = tmp_path / "pretrained.pth"
    kind, message = ValueError, "cannot be loaded as a checkpoint of weights and plain values .*copy or train it again"
    missing = "there is no checkpoint .*pretrained.pth"
    if trusted:
        monkeypatch.setenv("nnUNet_ext_trust_weights", "1")
        kind, message = (
            RuntimeError,
            "is not a whole nnU-Net checkpoint.*; give a checkpoint of nnU-Net after -pretrain",
        )
        missing = "-pretrained_weights .*pretrained.pth is no file; give a checkpoint"
    if content is None:
        kind, message = FileNotFoundError, missing
    else:
        path.write_bytes(content)
    with pytest.raises(kind, match=message):
        load(make_trainer(name), False, False, str(path))


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_fit_are_taken(make_trainer, tmp_path, name):
    cls = None if name == "nnUNetTrainerANUNet" else nnUNetTrainer
    plain = make_trainer(name, cls=cls)
    path = save(tmp_path, weights_of(plain))
    trainer = make_trainer(name)
    load(trainer, False, False, path)
    for key in trainer.network.state_dict():
        if "encoder" in key and "all_modules" not in key and "stages.0" in key and key in plain.network.state_dict():
            torch.testing.assert_close(trainer.network.state_dict()[key], plain.network.state_dict()[key])
    assert Path(path).is_file()
