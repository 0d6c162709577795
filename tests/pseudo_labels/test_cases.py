"""Which scans get pseudo-labels, and what would let a network be measured by what networks say."""

import json
import shutil

import pytest
from pseudo_labels.panels import add_scan, make_source

from nnunet_ext.pseudo_labels.cases import find_source

TRAIN, VAL = ["case_1", "case_2", "case_3", "case_4"], ["case_0"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    return make_source(tmp_path, monkeypatch)


def find(tiny, folder=None):
    return find_source("777", tiny.root / "preprocessed", folder)


def write_record(tiny, **labels):
    (tiny.raw / "pseudo_labels.json").write_text(json.dumps({"cycle": 1, "labels": labels}))


def test_unlabelled_scans_and_true_cases(tiny):
    tiny.write_splits({"train": TRAIN, "val": VAL})
    source = find(tiny)
    assert list(source.scans) == ["scan_0", "scan_1", "scan_2"]
    assert list(source.true) == [f"case_{n}" for n in range(5)]
    assert source.splits == [{"train": TRAIN, "val": VAL}]
    assert source.true["case_3"].label == str(tiny.raw / "labelsTr" / "case_3.nii.gz")


def test_a_labelled_case_whose_image_is_damaged_is_not_lost_in_silence(tiny):
    image = tiny.raw / "imagesTr" / "case_2_0000.nii.gz"
    image.unlink()
    image.symlink_to(tiny.raw / "nowhere.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"labelled case case_2 cannot be used: .*Mend it, or remove the case"):
        find(tiny)


def test_a_withheld_case_whose_image_is_damaged_is_a_failure(tiny):
    tiny.write_splits({"train": TRAIN[:2], "val": VAL, "unlabeled": TRAIN[2:]})
    image = tiny.raw / "imagesTr" / "case_4_0000.nii.gz"
    image.unlink()
    image.symlink_to(tiny.raw / "nowhere.nii.gz")
    assert "case_4" in find(tiny).failures


def test_withheld_labels_make_scans(tiny):
    tiny.write_splits({"train": TRAIN[:2], "val": VAL, "unlabeled": TRAIN[2:]})
    source = find(tiny)
    assert list(source.scans) == ["case_3", "case_4", "scan_0", "scan_1", "scan_2"]
    assert list(source.true) == ["case_0", "case_1", "case_2"]


def test_labels_of_an_earlier_cycle_are_no_true_ones(tiny):
    write_record(tiny, case_4={})
    tiny.write_splits({"train": TRAIN, "val": VAL})
    source = find(tiny)
    assert "case_4" in source.scans
    assert "case_4" not in source.true
    assert source.splits == [{"train": TRAIN[:3], "val": VAL}]


@pytest.mark.parametrize(
    ("splits", "error"),
    [
        ([{"train": TRAIN, "val": VAL, "unlabeled": ["case_9"]}], "lists 'case_9' under 'unlabeled'"),
        ([{"train": TRAIN, "val": []}], "fold 0: the list 'val' is missing or empty"),
        ([{"train": [*TRAIN, "else"], "val": VAL}], "fold 0: 'train' names else, no labelled case"),
        (
            [{"train": TRAIN[1:], "val": VAL, "unlabeled": TRAIN[:1]}, {"train": TRAIN[1:], "val": TRAIN[:1]}],
            "fold 1: 'val' names case_1, whose labels another list 'unlabeled' withholds",
        ),
    ],
)
def test_wrong_splits(tiny, splits, error):
    tiny.write_splits(*splits)
    with pytest.raises(ValueError, match=error):
        find(tiny)


def test_no_fold_is_validated_with_a_pseudo_label(tiny):
    write_record(tiny, case_0={})
    tiny.write_splits({"train": TRAIN, "val": VAL})
    with pytest.raises(ValueError, match="'val' names case_0 with pseudo-labels .* expected true labels alone"):
        find(tiny)


def test_a_damaged_record_is_not_passed_over(tiny):
    (tiny.raw / "pseudo_labels.json").write_text("{}")
    with pytest.raises(ValueError, match="pseudo-labels would be taken for true ones"):
        find(tiny)


@pytest.mark.parametrize("how", ["name", "file", "copy"])
def test_a_validation_case_gets_no_pseudo_label(tiny, tmp_path, how):
    folder, image = tmp_path / "scans", tiny.raw / "imagesTr" / "case_2_0000.nii.gz"
    folder.mkdir()
    if how == "name":
        shutil.copyfile(tiny.raw / "imagesUnlabeled" / "scan_0_0000.nii.gz", folder / image.name)
        error = "case_2 .* is called as a labelled case"
    else:
        target = folder / "other_0000.nii.gz"
        shutil.copyfile(image, target) if how == "copy" else target.symlink_to(image)
        error = "other_0000.nii.gz is the image of the labelled case case_2, with which folds are validated"
    with pytest.raises(ValueError, match=error):
        find(tiny, folder)


def test_scans_of_a_folder(tiny, tmp_path):
    source = find(tiny, tiny.raw / "imagesUnlabeled")
    assert list(source.scans) == ["scan_0", "scan_1", "scan_2"]
    assert source.others == {}
    folder = tmp_path / "scans"
    folder.mkdir()
    shutil.copyfile(add_scan(tiny, "scan_1", 90), folder / "scan_0_0000.nii.gz")
    with pytest.raises(ValueError, match="scan_0 of .* is called as an unlabelled scan of the dataset"):
        find(tiny, folder)
    (folder / "scan_0_0000.nii.gz").rename(folder / "new_0000.nii.gz")
    (folder / "two_0000.nii.gz").write_bytes(b"")
    (folder / "two_0001.nii.gz").write_bytes(b"")
    (folder / "late_0001.nii.gz").write_bytes(b"")
    source = find(tiny, folder)
    assert list(source.scans) == ["new"]
    assert "late has the channel file(s) late_0001.nii.gz, expected 1" in source.failures["late"]
    assert "two has the channel file(s) two_0000.nii.gz, two_0001.nii.gz, expected 1" in source.failures["two"]
    assert list(source.others) == ["scan_0", "scan_1", "scan_2"]


def test_nothing_to_label(tiny):
    shutil.rmtree(tiny.raw / "imagesUnlabeled")
    with pytest.raises(FileNotFoundError, match="has no unlabelled scan. Looked in .* Or name a folder with -i"):
        find(tiny)


def test_a_true_label_that_is_missing_is_named(tiny):
    (tiny.raw / "labelsTr" / "case_1.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="the label of case_1: .* does not exist"):
        find(tiny)


def test_a_dataset_of_scans_alone_is_refused(tiny):
    shutil.rmtree(tiny.raw / "imagesTr")
    with pytest.raises(ValueError, match="has no case with a true label"):
        find(tiny)
