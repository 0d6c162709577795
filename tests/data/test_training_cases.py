import json
from pathlib import Path

import pytest
import torch
from data.tiny_dataset import TinyDataset, make_plans
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.data.preprocess import preprocess_unlabeled
from nnunet_ext.data.training_cases import labelled_names, unlabeled_dataset

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
    (folder / "a.json").write_text("{")
    (folder / ".c.1.json.tmp").write_text("{}")
    assert unlabeled_dataset(trainer(tiny)).identifiers == ["b"]
    (folder / "b.b2nd").unlink()
    with pytest.raises(FileNotFoundError, match="no preprocessed unlabelled case"):
        unlabeled_dataset(trainer(tiny))


def test_other_plans_are_refused_with_the_command(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    tiny.add_unlabeled("b", 2)
    preprocess()
    with pytest.raises(RuntimeError, match=f"2 of 2 unlabelled cases .* other plans than .* Run: {COMMAND}"):
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
