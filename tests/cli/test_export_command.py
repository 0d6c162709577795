"""``nnUNetv2_ext export``: its arguments, what it prints, its exit status."""

import json
import shlex
import zipfile

import pytest
import torch
from inference.tiny_model import make_model
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_ext.cli.main import main


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path / "a place")


def export(*arguments):
    return main(["export", *map(str, arguments)])


def test_printed_commands_can_be_pasted(model, tmp_path, capsys):
    for name, command in (("my model", "nnUNetv2_predict_from_modelfolder"), ("my model.ZIP", "nnUNetv2_install")):
        target = tmp_path / name
        assert export("-m", model.folder, "-o", target) == 0
        words = shlex.split(capsys.readouterr().out.splitlines()[-1])
        assert any(word.startswith(command) for word in words)
        assert str(target) in words
        assert target.exists()
    assert zipfile.is_zipfile(tmp_path / "my model.ZIP")


@pytest.mark.parametrize("flags", [(), ("--stock",)])
def test_stock_is_what_export_does_anyway(model, tmp_path, capsys, flags):
    assert export("-m", model.folder, "-o", tmp_path / "out", *flags) == 0
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(tmp_path / "out"), (0,), "checkpoint_final.pth")
    assert predictor.trainer_name == "nnUNetTrainer"
    plans = json.loads((model.folder / "plans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "nnunet_ext.networks.nested_unet.NestedAttentionUNet"
    (model.folder / "plans.json").write_text(json.dumps(plans))
    capsys.readouterr()
    assert export("-m", model.folder, "-o", tmp_path / "other", *flags) == 1
    assert "NestedAttentionUNet, which plain nnU-Net does not have; predict with it where" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_the_trained_fold_is_kept(model, capsys):
    checkpoint = model.folder / "fold_0" / "checkpoint_final.pth"
    before = checkpoint.read_bytes()
    assert export("-m", model.folder, "-o", model.folder / "fold_0", "--overwrite") == 1
    error = capsys.readouterr().err
    assert "fold_0 lies inside the model" in error
    assert len(error.splitlines()) == 1
    assert checkpoint.read_bytes() == before


def test_replacing_is_for_what_was_exported(model, tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.nii.gz").write_bytes(b"irreplaceable")
    assert export("-m", model.folder, "-o", tmp_path / "raw", "--overwrite") == 1
    assert "remove it by hand, or name another place" in capsys.readouterr().err
    assert (tmp_path / "raw" / "a.nii.gz").is_file()
    for flags in ((), ("--overwrite",)):
        assert export("-m", model.folder, "-o", tmp_path / "out", *flags) == 0
