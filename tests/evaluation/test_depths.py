"""Comparison of the depths of a nested network."""

import json
from pathlib import Path

import numpy as np
import pytest
from data.tiny_dataset import architecture, write_image
from evaluation.made_up import prune_document
from inference.tiny_model import make_model

from nnunet_ext.cli.main import main
from nnunet_ext.evaluation import depths
from nnunet_ext.evaluation.inputs import find_inputs
from nnunet_ext.training.architecture import NESTED

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "three": 3}


@pytest.mark.parametrize(
    ("dice", "tolerance", "depth"),
    [
        ({1: 0.80, 2: 0.895, 3: 0.90}, 0.01, 2),
        ({1: 0.80, 2: 0.88, 3: 0.90}, 0.01, 3),
        ({1: 0.95, 2: 0.5, 3: 0.90}, 0.0, 1),
        ({1: 0.80, 2: 0.88, 3: 0.90}, 1.0, 1),
        ({1: 0.80, 2: float("nan"), 3: float("nan")}, 0.01, None),
        ({1: float("nan"), 2: 0.88, 3: 0.885}, 0.01, 2),
    ],
)
def test_the_shallowest_within_the_tolerance(dice, tolerance, depth):
    assert depths.recommend(dice, tolerance) == depth


def inputs_of(tmp_path: Path, cases: dict, labels=None):
    """Label maps and predictions of some cases, of 4 voxels each."""
    model = make_model(tmp_path, labels=labels)
    for case, (truth, prediction) in cases.items():
        model.add(case, 1)
        for folder, values in (("labels", truth), ("predictions", prediction)):
            array = np.array(values, np.uint8).reshape(1, 2, 2)
            write_image(tmp_path / folder / f"{case}{model.ending}", array)
    return find_inputs(model.folder, model.images, tmp_path / "labels")


def test_measures_by_hand(tmp_path):
    cases = {"a": ([1, 1, 2, 0], [1, 0, 2, 2]), "b": ([1, 1, 1, 0], [0, 0, 0, 0])}
    found = depths.accuracy(inputs_of(tmp_path, cases), tmp_path / "predictions")
    one, two, three = (found["classes"][name] for name in ("one", "two", "three"))
    # of class one, a: 1 true positive, 1 missed; b: all 3 missed, and nothing predicted, so that there is no precision
    assert one == pytest.approx({"dice": (2 / 3) / 2, "iou": 0.5 / 2, "precision": 1.0, "recall": 0.5 / 2})
    assert two == pytest.approx({"dice": 2 / 3, "iou": 0.5, "precision": 0.5, "recall": 1.0})
    assert all(np.isnan(value) for value in three.values())
    assert found["dice"] == pytest.approx((one["dice"] + two["dice"]) / 2)
    assert found["recall"] == pytest.approx((one["recall"] + two["recall"]) / 2)


def test_regions(tmp_path):
    found = depths.accuracy(inputs_of(tmp_path, {"a": ([1, 2, 3, 0], [1, 1, 3, 0])}, REGIONS), tmp_path / "predictions")
    assert found["classes"]["whole"]["dice"] == 1
    assert found["classes"]["core"]["recall"] == 0.5
    assert found["classes"]["three"]["precision"] == 1


@pytest.mark.parametrize("gpu", [None, 2000.0])
def test_table(gpu):
    unknown = prune_document(gpu) | {"recommended": None}
    assert "No depth is recommended: no class is in these cases" in depths.format_depths(unknown)
    text = depths.format_depths(prune_document(gpu))
    lines = text.splitlines()
    head, first = lines[0], next(line for line in lines[1:] if line.lstrip().startswith("1"))
    assert ("GPU" in head) == (gpu is not None)
    assert "0.9000" in first
    assert "1,000" in first
    assert "Recommended: depth 1, the shallowest whose mean Dice is at most 0.01 below depth 3." in text


@pytest.fixture
def folders(tmp_path, monkeypatch):
    from nnunetv2 import paths

    for name in ("raw", "preprocessed"):
        monkeypatch.setattr(paths, f"nnUNet_{name}", str(tmp_path / name))
    raw, preprocessed = tmp_path / "raw" / "Dataset001_X", tmp_path / "preprocessed" / "Dataset001_X"
    for case in "ab":
        for file in (f"imagesTr/{case}_0000.nii.gz", f"imagesTr/{case}_0001.nii.gz", f"labelsTr/{case}.nii.gz"):
            (raw / file).parent.mkdir(parents=True, exist_ok=True)
            (raw / file).write_text(file)
    (raw / "dataset.json").write_text(json.dumps({"numTraining": 2, "file_ending": ".nii.gz"}))
    preprocessed.mkdir(parents=True)
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}]))
    return tmp_path


def test_validation_cases_of_a_fold(folders):
    (folders / "raw" / "Dataset001_X" / "imagesTr" / "b.json").write_text("spacing")
    (folders / "raw" / "Dataset001_X" / "imagesTr" / "b_0001.raw").write_text("voxels")
    for _ in range(2):  # again, over what is there
        images, labels = depths.link_validation_cases("Dataset001_X", 0, folders / "out", ".nii.gz")
    found = sorted(file.name for file in images.iterdir())
    assert found == ["b.json", "b_0000.nii.gz", "b_0001.nii.gz", "b_0001.raw"]  # some formats keep a part beside
    assert (images / "b.json").read_text() == "spacing"
    assert (images / "b_0001.nii.gz").read_text() == "imagesTr/b_0001.nii.gz"
    assert [file.read_text() for file in labels.iterdir()] == ["labelsTr/b.nii.gz"]


def test_files_of_the_user_stay(folders):
    mine = folders / "out" / "images" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match="mine.txt is not ours; move it elsewhere, or pass another -o"):
        depths.link_validation_cases("Dataset001_X", 0, folders / "out", ".nii.gz")
    assert mine.read_text() == "mine"


def test_cases_that_are_gone(folders):
    (folders / "raw" / "Dataset001_X" / "imagesTr" / "b_0000.nii.gz").unlink()
    (folders / "raw" / "Dataset001_X" / "imagesTr" / "b_0001.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"Dataset001_X lacks b of .*splits_final.json; put them back, or pass"):
        depths.link_validation_cases("Dataset001_X", 0, folders / "out", ".nii.gz")


@pytest.mark.parametrize(
    ("fold", "missing", "error", "message"),
    [
        ("all", None, ValueError, "fold all has no validation cases; name another fold, or pass images and labels"),
        (3, None, ValueError, "splits_final.json has 1 folds, not fold 3; name another one"),
        (
            0,
            "preprocessed/Dataset001_X/splits_final.json",
            FileNotFoundError,
            "the split that it was trained with; set",
        ),
        (0, "raw/Dataset001_X/dataset.json", FileNotFoundError, "dataset.json is missing, the raw dataset; set"),
    ],
)
def test_folds_without_validation_cases(folders, fold, missing, error, message):
    if missing:
        (folders / missing).unlink()
    with pytest.raises(error, match=message):
        depths.link_validation_cases("Dataset001_X", fold, folders / "out", ".nii.gz")


def nested_model(tmp_path, **change):
    """A nested model of depth 2; its weights are not looked at."""
    model = make_model(tmp_path)
    nested = architecture(3, 3) | {"network_class_name": NESTED}
    plans = json.loads((model.folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"] |= {"architecture": nested} | change
    (model.folder / "plans.json").write_text(json.dumps(plans))
    model.add("a", 1)
    return model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either -d DATASET (with -c, -p, -tr) or -m MODEL"),
        (["-m", "{model}", "-d", "1"], "expected either -d DATASET"),
        (["-m", "{model}", "-f", "4"], "has no fold_4/checkpoint_final.pth; it has the folds [0]"),
        (["-m", "{model}", "-i", "x"], "-i and --labels belong together"),
        (["-m", "{model}", "--write", "{model}"], "holds -o"),
        (["-m", "{model}", "--write", "{model}", "-o", "x"], "holds the model that is to be exported"),
        (["-m", "{model}", "--write", "{model}/pruned", "--overwrite_written"], "lies inside the model"),
        (["-m", "{model}", "--write", "{root}"], "holds"),
        (
            ["-m", "{model}", "--write", "{note}"],
            "note exists; pass --overwrite_written to replace it, or name another",
        ),
        (["-m", "{model}", "--write", "{note}", "--overwrite_written"], "note has no nnunet_ext_prune.json, by which"),
        (["-m", "{model}", "--write", "x.ZIP"], "--write makes a folder, got x.ZIP"),
        (["-m", "{model}", "--write", "{model}", "--overwrite_written", "-o", "x"], "holds the model"),
        (["-m", "{model}", "--write", "x.zip"], "--write makes a folder, got x.zip"),
        (
            ["-m", "{model}", "-i", "{images}", "--labels", "{images}", "--write", "{images}", "--overwrite_written"],
            "holds -i",
        ),
        (["-m", "{model}", "-i", "{images}", "--labels", "{images}"], "label map"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, arguments, message):
    model = nested_model(tmp_path)
    note = tmp_path / "note"
    note.write_text("mine")
    words = [word.format(model=model.folder, images=model.images, note=note, root=tmp_path) for word in arguments]
    before = sorted(tmp_path.rglob("*"))
    assert main(["prune", *words, "-device", "cpu"]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_other_models_are_one_line(tmp_path, capsys):
    plain = make_model(tmp_path / "plain")
    assert main(["prune", "-m", str(plain.folder), "-device", "cpu"]) == 1
    assert "cannot be pruned: its network is PlainConvUNet" in capsys.readouterr().err
    cascade = nested_model(tmp_path / "cascade", previous_stage="3d_lowres")
    assert main(["prune", "-m", str(cascade.folder), "-device", "cpu"]) == 1
    assert "is the second stage of a cascade, whose depths are not compared" in capsys.readouterr().err


def test_without_the_folder_of_models(monkeypatch, capsys):
    monkeypatch.setattr("nnunetv2.paths.nnUNet_results", None)
    assert main(["prune", "-d", "1", "-device", "cpu"]) == 1
    assert "nnUNet_results is not set, the folder of trained models; set it" in capsys.readouterr().err


def test_a_file_of_another_program_is_not_written_over(tmp_path):
    model = nested_model(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prune.json").write_text('{"trees": 3}')
    options = depths.PruneOptions(tmp_path / "out", device="cpu", overwrite=True)
    with pytest.raises(FileExistsError, match=r"prune\.json was not written by nnUNetv2_ext prune; name another"):
        depths.compare_depths(model.folder, 0, "checkpoint_final.pth", model.images, model.images, options)
    assert (tmp_path / "out" / "prune.json").read_text() == '{"trees": 3}'


def test_models_whose_files_lack_something_are_one_line(tmp_path, capsys):
    model = nested_model(tmp_path)
    for name, key in (("dataset", "file_ending"), ("plans", "configurations")):
        file = model.folder / f"{name}.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
        arguments = ["-m", str(model.folder), "-i", str(model.images), "--labels", str(model.images)]
        assert main(["prune", *arguments, "-device", "cpu", "-o", str(tmp_path / "out")]) == 1
        assert f"{file} has no {key}; expected a model folder written by" in capsys.readouterr().err
        file.write_text(json.dumps(content))
