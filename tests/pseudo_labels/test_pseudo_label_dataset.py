"""Names, folds and lists of a new dataset."""

import json

import pytest
from pseudo_labels.panels import make_source

from nnunet_ext.pseudo_labels.cases import find_source
from nnunet_ext.pseudo_labels.dataset import (
    NewDataset,
    Roots,
    _dataset_json,
    _with_pseudo_labels,
    output_name,
    refuse_existing,
    split_of_true_cases,
    with_ignore_label,
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    return make_source(tmp_path, monkeypatch)


@pytest.fixture
def roots(tiny):
    return Roots(tiny.root / "raw", tiny.root / "preprocessed")


@pytest.mark.parametrize(
    ("output", "source", "name"),
    [
        ("914", "Dataset904_Hippo", "Dataset914_Hippo_pseudo"),
        ("15", "Dataset914_Hippo_pseudo", "Dataset015_Hippo_pseudo"),
        ("Dataset916_Mine", "Dataset904_Hippo", "Dataset916_Mine"),
    ],
)
def test_names(output, source, name):
    assert output_name(output, source) == name


@pytest.mark.parametrize("output", ["0", "1000", "Dataset9_x", "Dataset914_../x", "-1"])
def test_names_that_are_none(output):
    with pytest.raises(ValueError, match=f"-o is '{output}', expected the number"):
        output_name(output, "Dataset904_Hippo")


def test_what_a_killed_run_left_is_no_dataset(roots):
    folder = roots.preprocessed / "Dataset914_X"
    folder.mkdir()
    (folder / "splits_final.json").write_text("[]")
    refuse_existing("Dataset914_X", roots)
    with pytest.raises(FileExistsError, match="number 914, Dataset914_X, and"):
        refuse_existing("Dataset914_Y", roots)
    (folder / "nnUNetPlans.json").write_text("{}")
    with pytest.raises(FileExistsError, match="name another number with -o"):
        refuse_existing("Dataset914_X", roots)


def test_folds_are_those_of_nnunet(tiny, roots):
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    source = find_source("777", roots.preprocessed)
    assert split_of_true_cases(source) == generate_crossval_split(sorted(source.true))
    for number in (3, 4):
        (tiny.raw / "imagesTr" / f"case_{number}_0000.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"has 3 case\(s\) with true labels and no splits_final.json, expected 5"):
        split_of_true_cases(find_source("777", roots.preprocessed))


def test_no_pseudo_label_gets_into_a_validation_set(roots):
    new = NewDataset("Dataset914_X", find_source("777", roots.preprocessed), ["scan_0"], False, {})
    with pytest.raises(ValueError, match="fold 0 would be validated with scan_0, which has no true label"):
        _with_pseudo_labels([{"train": ["case_1"], "val": ["case_0", "scan_0"]}], new)


def test_a_case_that_no_fold_uses_stays_out(tiny, roots):
    """It may be damaged: nnU-Net's own planning would fail on what the splits leave out."""
    tiny.write_splits({"train": ["case_1", "case_2"], "val": ["case_0"]})
    new = NewDataset("Dataset914_X", find_source("777", roots.preprocessed), ["scan_0"], False, {})
    content = _dataset_json(new, roots)
    assert sorted(content["dataset"]) == ["case_0", "case_1", "case_2", "scan_0"]
    assert content["numTraining"] == 4
    assert not {"case_3", "case_4"} & set(content["unlabeled"])


def test_paths_hold_elsewhere(tiny, roots, monkeypatch, tmp_path):
    """Variables stay, what lies in nnUNet_raw is named from there, and anything else as it is."""
    archive = tmp_path / "archive"
    archive.mkdir()
    monkeypatch.setenv("ARCHIVE", str(archive))
    for name in ("a_0000.nii.gz", "b_0000.nii.gz", "c_0000.nii.gz"):
        (archive / name).write_bytes(b"")
    content = json.loads((tiny.raw / "dataset.json").read_text())
    content["unlabeled"] = {
        "a": {"images": ["$ARCHIVE/a_0000.nii.gz"]},
        "b": {"images": [str(archive / "b_0000.nii.gz")]},
        "c": {"images": ["../../archive/c_0000.nii.gz"]},
    }
    (tiny.raw / "dataset.json").write_text(json.dumps(content))
    source = find_source("777", roots.preprocessed)
    found = _dataset_json(NewDataset("Dataset914_X", source, ["a"], False, {}, left_out=["scan_2"]), roots)
    assert found["dataset"]["a"] == {"images": ["$ARCHIVE/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    assert found["unlabeled"] == {
        "b": {"images": [str(archive / "b_0000.nii.gz")]},
        "c": {"images": [str(archive / "c_0000.nii.gz")]},
        "scan_0": {"images": ["../Dataset777_Tiny/imagesUnlabeled/scan_0_0000.nii.gz"]},
        "scan_1": {"images": ["../Dataset777_Tiny/imagesUnlabeled/scan_1_0000.nii.gz"]},
    }


@pytest.mark.parametrize(
    ("labels", "ignore"),
    [
        ({"background": 0, "one": 1}, 2),
        ({"background": 0, "whole": [1, 2, 3], "core": 2}, 4),
        ({"background": 0, "one": 1, "ignore": 2}, 2),
    ],
)
def test_the_ignored_label_is_the_highest(labels, ignore):
    found = with_ignore_label(labels)
    assert found == labels | {"ignore": ignore}
    assert list(found)[: len(labels)] == list(labels)
