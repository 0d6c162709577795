import json
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from data.tiny_dataset import TinyDataset, make_plans
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.data.preprocess import preprocess_unlabeled
from nnunet_ext.data.signature import digest
from nnunet_ext.data.training_cases import check_labelled_cases, labelled_names, unlabeled_dataset

COMMAND = "nnUNetv2_ext preprocess_unlabeled -d Dataset777_Tiny -p nnUNetPlans -c 3d_fullres"


def trainer(tiny: TinyDataset, fold: int | str = 0, configuration: str = "3d_fullres", **changes) -> nnUNetTrainer:
    plans = make_plans(**changes) | {"continue_training": False}
    dataset_json = json.loads((tiny.preprocessed / "dataset.json").read_text())
    return nnUNetTrainer(plans, configuration, fold, dataset_json, torch.device("cpu"))


def preprocess(configuration: str = "3d_fullres") -> Path:
    return preprocess_unlabeled(777, "nnUNetPlans", configuration, 1, show_progress_bar=False).folder


def test_all_unlabelled_cases_of_the_configuration(tiny: TinyDataset):
    tiny.add_unlabeled("b", 1)
    tiny.add_unlabeled("a", 2)
    folder = preprocess()
    preprocess("2d")
    for fold in (0, "all"):
        dataset = unlabeled_dataset(trainer(tiny, fold))
        assert (dataset.identifiers, dataset.source_folder) == (["a", "b"], str(folder))
    assert unlabeled_dataset(trainer(tiny, configuration="2d")).source_folder.endswith("nnUNetPlans_2d_unlabeled")


def test_nothing_there_says_the_command_and_where_to_put_cases(tiny: TinyDataset):
    with pytest.raises(FileNotFoundError) as raised:
        unlabeled_dataset(trainer(tiny))
    text = str(raised.value)
    assert "no preprocessed unlabelled case in" in text
    assert f"Run: {COMMAND}" in text
    assert str(tiny.raw / "imagesUnlabeled") in text


def test_an_unfinished_case_does_not_count(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    folder = preprocess()
    (folder / "a.json").unlink()
    (folder / ".c.1.json.tmp").write_text("{}")
    assert unlabeled_dataset(trainer(tiny)).identifiers == ["b"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def other_shape(file: Path) -> None:
    file.unlink()
    blosc2.asarray(np.ones((1, 12, 15, 11), np.uint8), urlpath=str(file))


@pytest.mark.parametrize(
    ("file", "harm", "problem"),
    [
        ("a.json", lambda file: file.write_text("{"), r"a\.json is damaged"),
        ("a.b2nd", Path.unlink, r"a\.b2nd is missing"),
        ("valid/a.b2nd", Path.unlink, r"valid/a\.b2nd is missing"),
        ("a.b2nd", cut, r"a\.b2nd is damaged \("),
        ("valid/a.b2nd", cut, r"valid/a\.b2nd is damaged \("),
        (
            "valid/a.b2nd",
            other_shape,
            r"valid/a\.b2nd has shape \(1, 12, 15, 11\), but the image has \(1, 12, 15, 12\)",
        ),
    ],
)
def test_a_damaged_case_is_refused_with_the_command_that_mends_it(tiny: TinyDataset, file, harm, problem):
    tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    folder = preprocess()
    harm(folder / file)
    with pytest.raises(RuntimeError, match=rf"{folder}/{problem}.*; to make the damaged cases again, run: {COMMAND}"):
        unlabeled_dataset(trainer(tiny))
    preprocess()
    assert unlabeled_dataset(trainer(tiny)).identifiers == ["a", "b"]


def logged(tiny: TinyDataset) -> tuple[list[str], str]:
    one = trainer(tiny)
    identifiers = unlabeled_dataset(one).identifiers
    return identifiers, Path(one.log_file).read_text()


def test_the_log_says_how_many_are_used_of_how_many(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    preprocess()
    identifiers, log = logged(tiny)
    assert identifiers == ["a", "b"]
    assert "Unlabelled cases: 2 used, of 2 in the raw dataset" in log
    assert "WARNING" not in log


def test_cases_that_are_not_used_are_named_with_reason_and_command(tiny: TinyDataset, capsys):
    for seed, name in enumerate("abc"):
        tiny.add_unlabeled(name, seed)
    broken = tiny.raw / "imagesUnlabeled" / "b_0000.nii.gz"
    broken.write_bytes(b"this is no image")
    preprocess()
    tiny.add_unlabeled("d", 4)
    tiny.add_unlabeled("e", 5).rename(tiny.raw / "imagesUnlabeled" / "e.nii.gz")
    identifiers, log = logged(tiny)
    assert identifiers == ["a", "c"]
    assert "Unlabelled cases: 2 used, of 5 in the raw dataset" in log
    assert f"WARNING: 3 unlabelled case(s) are NOT trained on (named on stderr). To preprocess them: {COMMAND}" in log
    assert str(tiny.raw) not in log  # the model's folder names no patient
    said = capsys.readouterr().err
    assert f"  b: {broken} cannot be read (" in said
    assert "  d: not preprocessed yet" in said
    assert "has no channel suffix" in said


def test_scans_that_changed_are_named(tiny: TinyDataset, capsys):
    tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    preprocess()
    tiny.add_unlabeled("b", 3, spacing=(1, 1, 1.2))
    identifiers, log = logged(tiny)
    assert identifiers == ["a", "b"]
    assert "the scans of 1 unlabelled case(s) changed since they were preprocessed (named on stderr)" in log
    assert f"To do them again: {COMMAND}" in log
    assert "  b\n" in capsys.readouterr().err


def test_without_the_raw_dataset_the_log_says_so(tiny: TinyDataset, capsys):
    tiny.add_unlabeled("a", 1)
    preprocess()
    shutil.rmtree(tiny.raw)
    identifiers, log = logged(tiny)
    assert identifiers == ["a"]
    assert "Unlabelled cases: 1 used. They could not be compared with the raw dataset." in log
    assert f"{tiny.raw}/dataset.json is missing" in capsys.readouterr().err


def test_where_only_preprocessed_data_are_known(tiny: TinyDataset, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    with pytest.raises(FileNotFoundError, match=rf"no preprocessed unlabelled case in .*\. Run: {COMMAND}$"):
        unlabeled_dataset(trainer(tiny))
    monkeypatch.setenv("nnUNet_raw", str(tiny.raw.parent))
    tiny.add_unlabeled("a", 1)
    preprocess()
    monkeypatch.delenv("nnUNet_raw")
    identifiers, log = logged(tiny)
    assert identifiers == ["a"]
    assert "Unlabelled cases: 1 used. They could not be compared with the raw dataset." in log


def test_a_case_that_failed_when_it_was_done_again_is_not_used(tiny: TinyDataset, capsys):
    image = tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    preprocess()
    image.write_bytes(b"this is no image")
    preprocess()
    identifiers, log = logged(tiny)
    assert identifiers == ["b"]
    assert "1 used, of 2 in the raw dataset" in log
    assert f"  a: {image} cannot be read (" in capsys.readouterr().err
    (tiny.raw / "imagesUnlabeled" / "b_0000.nii.gz").write_bytes(b"")
    preprocess()
    with pytest.raises(
        FileNotFoundError, match=r"no preprocessed unlabelled case in .* When last tried, 2 failed \(a: "
    ):
        unlabeled_dataset(trainer(tiny))


def test_a_configuration_that_inherits_its_data_takes_the_cases_as_they_are(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    folder = preprocess()
    metadata = json.loads((folder / "a.json").read_text())
    metadata["plans_signature"]["patch_size"] = [16, 16, 16]  # as cases were noted when it was part of what is compared
    metadata["plans_digest"] = digest(metadata["plans_signature"])
    (folder / "a.json").write_text(json.dumps(metadata))
    assert unlabeled_dataset(trainer(tiny, patch_size=[8, 8, 8])).identifiers == ["a"]
    tiny.write_plans(make_plans(patch_size=[8, 8, 8]))
    summary = preprocess_unlabeled(777, "nnUNetPlans", "3d_fullres", 1, show_progress_bar=False)
    assert (summary.done, summary.kept) == ([], ["a"])
    assert unlabeled_dataset(trainer(tiny)).identifiers == ["a"]


def test_other_plans_are_refused_with_the_command(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    preprocess()
    reason = rf"2 of 2 unlabelled cases .* other plans than .*, are now \(spacing changed\)\. Run: {COMMAND}"
    with pytest.raises(RuntimeError, match=reason):
        unlabeled_dataset(trainer(tiny, spacing=[1.0, 1.0, 2.0]))


def test_one_stale_case_is_enough(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    folder = preprocess()
    metadata = json.loads((folder / "b.json").read_text()) | {"plans_digest": "other"}
    (folder / "b.json").write_text(json.dumps(metadata))
    with pytest.raises(RuntimeError, match=r"1 of 2 unlabelled cases .* \(e\.g\. b\)"):
        unlabeled_dataset(trainer(tiny))


def test_hidden_cases_of_this_fold_and_of_no_other(tiny: TinyDataset):
    for seed, name in enumerate("lmn"):
        tiny.add_labelled(name, seed)
    tiny.add_unlabeled("u", 5)
    tiny.write_splits(
        {"train": ["n"], "val": [], "unlabeled": ["l", "m"]},
        {"train": ["l"], "val": [], "unlabeled": ["m"]},
        {"train": ["l", "m"], "val": ["n"]},
    )
    preprocess()
    assert unlabeled_dataset(trainer(tiny, 0)).identifiers == ["l", "m", "u"]
    assert unlabeled_dataset(trainer(tiny, 1)).identifiers == ["m", "u"]
    assert unlabeled_dataset(trainer(tiny, 2)).identifiers == ["u"]
    with pytest.raises(ValueError, match="fold all has no split of its own"):
        unlabeled_dataset(trainer(tiny, "all"))


def test_hidden_cases_of_other_folds_alone_are_nothing(tiny: TinyDataset):
    tiny.add_labelled("l", 1)
    tiny.write_splits({"train": [], "val": [], "unlabeled": ["l"]}, {"train": ["l"], "val": []})
    preprocess()
    assert unlabeled_dataset(trainer(tiny, 0)).identifiers == ["l"]
    with pytest.raises(FileNotFoundError, match="no preprocessed unlabelled case"):
        unlabeled_dataset(trainer(tiny, 1))


def test_a_missing_hidden_case_is_refused(tiny: TinyDataset):
    for seed, name in enumerate("lm"):
        tiny.add_labelled(name, seed)
    tiny.add_unlabeled("u", 5)
    tiny.write_splits({"train": [], "val": [], "unlabeled": ["l"]})
    preprocess()
    tiny.write_splits({"train": [], "val": [], "unlabeled": ["l", "m"]})
    with pytest.raises(FileNotFoundError, match=rf"withholds the labels of \['m'\], but .* Run: {COMMAND}"):
        unlabeled_dataset(trainer(tiny))
    preprocess()
    assert unlabeled_dataset(trainer(tiny)).identifiers == ["l", "m", "u"]


def test_a_dataset_without_labelled_cases_is_named(tiny: TinyDataset):
    folder = tiny.preprocessed / "nnUNetPlans_3d_fullres"
    command = "nnUNetv2_preprocess -d 777 -plans_name nnUNetPlans -c 3d_fullres"
    with pytest.raises(FileNotFoundError, match=f"{folder} does not exist, but nnUNetTrainer needs .* run {command}"):
        labelled_names(trainer(tiny))
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=f"{folder} has no preprocessed labelled case, but .* run {command}"):
        labelled_names(trainer(tiny))
    for name in ("b", "a"):
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{name}{ending}").write_bytes(b"")
    assert labelled_names(trainer(tiny)) == ["a", "b"]


@pytest.mark.parametrize(
    ("file", "harm", "problem"),
    [
        ("a.b2nd", cut, r"a\.b2nd is damaged \("),
        ("a_seg.b2nd", cut, r"a_seg\.b2nd is damaged \("),
        ("a_seg.b2nd", other_shape, r"a_seg\.b2nd has shape \(1, 12, 15, 11\), but the image has \(1, 12, 15, 12\)"),
        ("a.pkl", Path.unlink, r"a\.pkl is missing"),
        ("a.pkl", lambda file: file.write_bytes(b""), r"a\.pkl is empty"),
        ("a_seg.b2nd", Path.unlink, r"a_seg\.b2nd is missing"),
    ],
)
def test_a_damaged_labelled_case_is_named_with_the_command(tiny: TinyDataset, file, harm, problem):
    folder = tiny.preprocessed / "nnUNetPlans_3d_fullres"
    folder.mkdir()
    for name in ("a", "b"):
        for ending in (".b2nd", "_seg.b2nd"):
            blosc2.asarray(np.ones((1, 12, 15, 12), np.float32), urlpath=str(folder / f"{name}{ending}"))
        (folder / f"{name}.pkl").write_bytes(b"properties")
    check_labelled_cases(trainer(tiny), ["a", "b"])
    harm(folder / file)
    command = "nnUNetv2_preprocess -d 777 -plans_name nnUNetPlans -c 3d_fullres"
    with pytest.raises(RuntimeError, match=rf"{folder}/{problem}.*; to make the labelled cases again, run: {command}"):
        check_labelled_cases(trainer(tiny), ["a", "b"])
    check_labelled_cases(trainer(tiny), ["b"])
