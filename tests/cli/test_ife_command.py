"""``nnUNetv2_ext ife``."""

import json

import numpy as np
import pytest
import torch
from inference.tiny_model import make_enhanced_model, make_model
from PIL import Image

from nnunet_ext.cli.main import main
from nnunet_ext.figures.enhancement import enhanced_stages, load_network
from nnunet_ext.trainers.ife import IFECurvaturePart, IFEEntropyPart


def run(*arguments):
    return main(["ife", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize("part", [IFECurvaturePart, IFEEntropyPart])
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_a_picture_and_the_selected_channels(tmp_path, capsys, part, configuration):
    model = make_enhanced_model(tmp_path, part, configuration)
    assert run("-m", model.folder, "-i", model.images / "case_0000.nii.gz", "-o", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    with Image.open(tmp_path / "out" / "case.png") as picture:
        assert min(picture.size) > 300
    plans, dataset_json = (json.loads((model.folder / f"{n}.json").read_text()) for n in ("plans", "dataset"))
    network, prepared = load_network(
        model.folder, plans, dataset_json, model.folder / "fold_0" / "checkpoint_final.pth"
    )
    stages = enhanced_stages(network, prepared, (str(model.images / "case_0000.nii.gz"),), torch.device("cpu"))
    assert [stage.number for stage in stages] == [int(n) for n in network.enhancements]
    for stage in stages:
        chosen = " ".join(map(str, stage.ranking[: stage.selected]))
        assert f"encoder stage {stage.number}: channels {chosen}\n" in printed
        assert (np.diff(stage.scores[stage.ranking]) <= 0).all()
        assert len(stage.features) == len(stage.scores)


def test_wrong_input_is_one_line(tmp_path, capsys):
    model = make_enhanced_model(tmp_path / "ife")
    plain = make_model(tmp_path / "plain")
    image = model.images / "case_0000.nii.gz"
    for arguments, message in (
        (
            ("-m", plain.folder, "-i", image),
            "has no instructive feature enhancement; give one trained with IFECurvature",
        ),
        (("-m", model.folder, "-i", model.images / "case.nii.gz"), "its name must end in _0000.nii.gz"),
        (
            ("-m", model.folder, "-i", model.images / "b_0000.nii.gz"),
            "b_0000.nii.gz is missing; give the first channel of a case",
        ),
        (("-m", tmp_path / "none", "-i", image), "there is no model folder"),
        (("-m", model.folder, "-i", image, "-f", 3), "has no fold_3/checkpoint_final.pth"),
    ):
        assert run(*arguments, "-o", tmp_path / "out") == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_plans_that_name_a_program_start_none(tmp_path, capsys):
    model = make_enhanced_model(tmp_path)
    plans = json.loads((model.folder / "plans.json").read_text())
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    kwargs |= {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": ["touch", str(tmp_path / "ran")]}}
    (model.folder / "plans.json").write_text(json.dumps(plans))
    assert run("-m", model.folder, "-i", model.images / "case_0000.nii.gz", "-o", tmp_path / "out") == 1
    assert "the plans name 'subprocess.Popen' as nonlin, expected a network or a layer" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_plans_that_are_missing_or_no_json_are_one_line(tmp_path, capsys):
    model = make_enhanced_model(tmp_path)
    arguments = ("-m", model.folder, "-i", model.images / "case_0000.nii.gz", "-o", tmp_path / "out")
    (model.folder / "plans.json").write_text("{")
    assert run(*arguments) == 1
    assert "plans.json is no JSON (line 1, column 2: " in capsys.readouterr().err
    (model.folder / "plans.json").unlink()
    assert run(*arguments) == 1
    assert "plans.json is missing; expected a model folder written by nnUNetv2_train" in capsys.readouterr().err
