"""Whole runs: what is made, what is kept when they are repeated, and what is refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from data.tiny_dataset import write_image
from inference.tiny_model import REGIONS, smooth_image
from pseudo_labels.panels import (
    CPU,
    add_folds,
    add_scan,
    change_weights,
    make_folds,
    make_source,
    read_checkpoint,
    read_json,
    write_checkpoint,
)

from nnunet_ext import files
from nnunet_ext.data.unlabeled import find_unlabeled_cases
from nnunet_ext.pseudo_labels import dataset as dataset_module
from nnunet_ext.pseudo_labels import run as run_module
from nnunet_ext.pseudo_labels.consensus import MemberFailedError
from nnunet_ext.pseudo_labels.run import Options, pseudo_label
from nnunet_ext.pseudo_labels.selection import Rule

BEST_HALF = Rule(top=0.5)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_source(tmp_path, monkeypatch)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They are tested elsewhere, and take longer than all else."""
    monkeypatch.setattr(run_module.report, "draw_pictures", lambda *_: [])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_folds(tmp_path_factory.mktemp("model"), 1)


def run(tiny, model, output="914", rule=BEST_HALF, **more):
    inputs = {key: more.pop(key) for key in ("images", "folds") if key in more}
    options = Options(rule=rule, settings=CPU, processes=0, progress_bar=False, **more)
    return pseudo_label("777", [model.folder], output, options, **inputs)


def labels_in(file):
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def predicted(monkeypatch):
    """Note the scans that are predicted."""
    names = []
    original = run_module._predict_scan
    monkeypatch.setattr(run_module, "_predict_scan", lambda *a: names.append(a[3]) or original(*a))
    return names


def test_what_is_made_of_a_dataset(tiny, model):
    outcome = run(tiny, model)
    folder = tiny.root / "raw" / "Dataset914_Tiny_pseudo"
    assert outcome.dataset == folder
    accepted = [case.name for case in outcome.selection.accepted]
    assert len(accepted) == 2
    content = read_json(folder / "dataset.json")
    assert content["labels"] == {"background": 0, "one": 1, "two": 2, "three": 3}
    assert content["numTraining"] == 7
    assert list(content["dataset"]) == [*(f"case_{n}" for n in range(5)), *sorted(accepted)]
    assert content["dataset"]["case_0"] == {
        "images": ["../Dataset777_Tiny/imagesTr/case_0_0000.nii.gz"],
        "label": "../Dataset777_Tiny/labelsTr/case_0.nii.gz",
    }
    rest = ({"scan_0", "scan_1", "scan_2"} - set(accepted)).pop()
    assert content["unlabeled"] == {rest: {"images": [f"../Dataset777_Tiny/imagesUnlabeled/{rest}_0000.nii.gz"]}}
    unlabelled, problems = find_unlabeled_cases(folder, content)  # as semi-supervised trainers do
    assert list(unlabelled) == [rest]
    assert problems == []
    splits = read_json(tiny.root / "preprocessed" / folder.name / "splits_final.json")
    assert sorted(name for split in splits for name in split["val"]) == [f"case_{n}" for n in range(5)]
    for split in splits:
        assert set(split["train"]) == {f"case_{n}" for n in range(5)} - set(split["val"]) | set(accepted)
    assert read_json(folder / "splits_final.json") == splits
    record = read_json(folder / "pseudo_labels.json")
    assert record["cycle"] == 1
    assert record["source_dataset"] == "Dataset777_Tiny"
    assert [member["fold"] for member in record["members"]] == [0, 1]
    assert all(len(member["sha256"]) == 64 for member in record["members"])
    assert record["labels"].keys() == set(accepted)
    assert record["not_accepted"].keys() == {rest}
    assert record["accepted_by"]["top"] == 0.5
    rows = list(csv.DictReader((folder / "pseudo_label_scores.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["accepted", "accepted", "rejected"]
    assert sorted((float(row["score"]) for row in rows), reverse=True) == [float(row["score"]) for row in rows]
    first = next(csv.DictReader((folder / "annotate_first.csv").read_text().splitlines()))
    assert first["case"] == rest
    for name in accepted:
        image = SimpleITK.ReadImage(str(tiny.raw / "imagesUnlabeled" / f"{name}_0000.nii.gz"))
        label = SimpleITK.ReadImage(str(folder / "labelsTr" / f"{name}.nii.gz"))
        assert label.GetSize() == image.GetSize()
        assert label.GetDirection() == pytest.approx(image.GetDirection())


def test_no_true_label_is_opened(tiny, model, monkeypatch):
    """Those of labelled cases, of withheld ones, and of what lies there for judging afterwards."""
    for name in ("scan_0", "scan_1"):
        judge = tiny.raw / "labelsUnlabeled" / f"{name}.nii.gz"
        judge.parent.mkdir(exist_ok=True)
        judge.write_bytes(b"whoever opens this fails")
    names = [f"case_{n}" for n in range(4)]
    tiny.write_splits({"train": names[1:], "val": names[:1], "unlabeled": ["case_4"]})
    seen = []
    for name in ("ReadImage", "ImageFileReader"):
        original = getattr(SimpleITK, name)
        monkeypatch.setattr(SimpleITK, name, lambda *a, o=original: seen.append(str(a)) or o(*a))
    original_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: seen.append(str(self)) or original_open(self, *a, **k))
    outcome = run(tiny, model, rule=Rule(top=1.0))
    assert outcome.failures == {}
    assert "case_4" in [case.name for case in outcome.selection.accepted]  # its label is a pseudo-label now
    assert seen
    assert not [path for path in seen if "Dataset777_Tiny/labels" in path]
    content = read_json(outcome.dataset / "dataset.json")
    assert content["dataset"]["case_4"]["label"] == "labelsTr/case_4.nii.gz"
    assert labels_in(outcome.dataset / "labelsTr" / "case_4.nii.gz").max() > 0
    splits = read_json(tiny.root / "preprocessed" / outcome.dataset.name / "splits_final.json")
    assert splits == [
        {"train": ["case_1", "case_2", "case_3", "case_4", "scan_0", "scan_1", "scan_2"], "val": ["case_0"]}
    ]


def test_other_thresholds_need_no_prediction(tiny, model, monkeypatch):
    nothing = run(tiny, model, rule=Rule(0.999, 0.999))
    assert nothing.dataset is None
    assert "would accept a tenth" in nothing.message
    assert not (tiny.root / "raw" / "Dataset914_Tiny_pseudo").exists()
    assert not (tiny.root / "preprocessed" / "Dataset914_Tiny_pseudo").exists()
    assert (nothing.report / "pseudo_label_scores.csv").is_file()
    names = predicted(monkeypatch)
    assert run(tiny, model).kept == 3
    assert (
        run(tiny, model, output="Dataset915_More", rule=Rule(0.1, 0.1), score="slice").dataset.name == "Dataset915_More"
    )
    assert names == []


def test_a_killed_run_goes_on(tiny, model, monkeypatch):
    names = predicted(monkeypatch)
    save = run_module.Store.save

    def killed(self, case, *arguments):
        if case == "scan_1":
            (self.folder / "consensus" / "scan_1.nii.gz").write_bytes(b"half of it")
            raise KeyboardInterrupt
        save(self, case, *arguments)

    monkeypatch.setattr(run_module.Store, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, model)
    monkeypatch.setattr(run_module.Store, "save", save)
    assert run(tiny, model).kept == 1
    assert names == ["scan_0", "scan_1", "scan_1", "scan_2"]


@pytest.mark.parametrize("at", ["labels", "dataset.json"])
def test_a_run_that_is_killed_while_the_dataset_is_made_goes_on(tiny, model, monkeypatch, at):
    target = {"labels": "_write_label", "dataset.json": "_dataset_json"}[at]

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dataset_module, target, killed)
        patch.setattr(files, "remove", lambda _: None)  # a killed process removes nothing
        with pytest.raises(KeyboardInterrupt):
            run(tiny, model)
    assert not (tiny.root / "raw" / "Dataset914_Tiny_pseudo").exists()
    outcome = run(tiny, model)
    assert outcome.kept == 3
    assert (outcome.dataset / "dataset.json").is_file()
    assert len(read_json(tiny.root / "preprocessed" / outcome.dataset.name / "splits_final.json")) == 5


def test_changed_scans_and_networks_are_predicted_again(tiny, tmp_path, monkeypatch):
    model = make_folds(tmp_path / "own", 1)
    run(tiny, model, rule=Rule(1, 1))
    names = predicted(monkeypatch)
    add_scan(tiny, "scan_2", 99)
    run(tiny, model, rule=Rule(1, 1))
    assert names == ["scan_2"]
    content = read_checkpoint(model, 1)
    write_checkpoint(model, content | {"network_weights": change_weights(content["network_weights"], 50)}, 1)
    run(tiny, model, rule=Rule(1, 1))
    assert names[1:] == ["scan_0", "scan_1", "scan_2"]


def test_bad_scans_cost_no_other(tiny, model, monkeypatch):
    (tiny.raw / "imagesUnlabeled" / "scan_0_0000.nii.gz").write_bytes(b"no image")
    original = run_module.find_consensus

    def fails_once(panel, prepared, *arguments):
        if prepared[0].record["voxels"] and fails_once.calls == 0:
            fails_once.calls += 1
            raise MemberFailedError("model fold 1 cannot predict it: no memory")
        return original(panel, prepared, *arguments)

    fails_once.calls = 0
    monkeypatch.setattr(run_module, "find_consensus", fails_once)
    outcome = run(tiny, model, rule=Rule(top=1.0))
    assert outcome.failures.keys() == {"scan_0", "scan_1"}
    assert "scan_0_0000.nii.gz" in outcome.failures["scan_0"]
    assert outcome.failures["scan_1"] == "model fold 1 cannot predict it: no memory"
    content = read_json(outcome.dataset / "dataset.json")
    assert "scan_2" in content["dataset"]
    assert content["unlabeled"] == {}
    assert read_json(outcome.dataset / "pseudo_labels.json")["failed"] == outcome.failures


def test_uncertain_voxels_are_ignored(tiny, model):
    outcome = run(tiny, model, ignore_uncertain=True, min_probability=0.6)
    content = read_json(outcome.dataset / "dataset.json")
    assert content["labels"]["ignore"] == 4
    assert len(outcome.selection.accepted) == 2
    for case in outcome.selection.accepted:
        found = labels_in(outcome.dataset / "labelsTr" / f"{case.name}.nii.gz")
        consensus, uncertain = (
            labels_in(outcome.report / kind / f"{case.name}.nii.gz") for kind in ("consensus", "uncertain")
        )
        assert (found == np.where(uncertain > 0, 4, consensus)).all()
        share = read_json(outcome.dataset / "pseudo_labels.json")["labels"][case.name]["ignored_share"]
        assert share == pytest.approx((found == 4).mean())
        assert 0 < share < 1


def test_thresholds_that_would_do_nothing_are_refused():
    with pytest.raises(ValueError, match="--partial accepts every scan in part, .* leave out --partial, or"):
        Options(rule=Rule(0.5), partial=True)


def test_partial_takes_every_scan_and_regions_keep_their_order(tmp_path, monkeypatch):
    tiny = make_source(tmp_path, monkeypatch, labels=REGIONS, regions_class_order=[1, 2, 3])
    outcome = run(tiny, make_folds(tmp_path / "m", 1, labels=REGIONS), rule=Rule(), partial=True)
    assert len(outcome.selection.accepted) == 3
    content = read_json(outcome.dataset / "dataset.json")
    assert content["labels"] == REGIONS | {"ignore": 4}
    assert content["regions_class_order"] == [1, 2, 3]
    assert content["unlabeled"] == {}


def test_a_later_cycle_takes_no_pseudo_label_for_a_true_one(tiny, model, tmp_path, monkeypatch):
    first = run(tiny, model)
    accepted = [case.name for case in first.selection.accepted]
    add_scan(tiny, accepted[0], 77)  # another image by now
    options = Options(rule=Rule(top=1.0), settings=CPU, processes=0, progress_bar=False)
    second = pseudo_label("914", [model.folder], "915", options)
    assert second.dataset.name == "Dataset915_Tiny_pseudo"
    assert second.changed == [accepted[0]]
    record = read_json(second.dataset / "pseudo_labels.json")
    assert record["cycle"] == 2
    assert record["labels"].keys() == {"scan_0", "scan_1", "scan_2"}
    content = read_json(second.dataset / "dataset.json")
    assert content["dataset"]["case_0"]["label"] == "../Dataset777_Tiny/labelsTr/case_0.nii.gz"
    assert content["dataset"]["scan_0"]["images"] == ["../Dataset777_Tiny/imagesUnlabeled/scan_0_0000.nii.gz"]
    splits = read_json(tiny.root / "preprocessed" / second.dataset.name / "splits_final.json")
    assert sorted(name for split in splits for name in split["val"]) == [f"case_{n}" for n in range(5)]
    assert all(split["train"].count("scan_0") == 1 for split in splits)


def test_scans_of_a_folder(tiny, model, tmp_path):
    folder = tmp_path / "more"
    for number in range(2):
        write_image(folder / f"new_{number}_0000.nii.gz", smooth_image(60 + number), (3.0, 1.0, 1.0))
    (folder / "stray.nii.gz").write_bytes(b"")
    outcome = run(tiny, model, images=folder)
    assert outcome.failures.keys() == {"stray.nii.gz"}
    content = read_json(outcome.dataset / "dataset.json")
    name = outcome.selection.accepted[0].name
    assert content["dataset"][name]["images"] == [str(folder / f"{name}_0000.nii.gz")]
    assert {"scan_0", "scan_1", "scan_2"} < content["unlabeled"].keys()


def test_a_dataset_that_exists_is_refused_at_once(tiny, model, monkeypatch):
    names = predicted(monkeypatch)
    (tiny.root / "results" / "Dataset914_Other").mkdir()
    with pytest.raises(FileExistsError, match="a dataset of the number 914, Dataset914_Other, and it is not replaced"):
        run(tiny, model)
    with pytest.raises(ValueError, match="-o is 'x y', expected the number of a new dataset"):
        run(tiny, model, output="x y")
    assert names == []


def test_models_of_another_question_than_the_dataset_are_refused(tiny, model):
    tiny.write_dataset_json(labels={"background": 0, "one": 1}, channel_names={"0": "CT"})
    with pytest.raises(ValueError, match="differ in label 'two': 2 and 'missing'"):
        run(tiny, model)


def test_a_second_run_at_the_same_time_is_refused(tiny, model):
    outcome = run(tiny, model, rule=Rule(1, 1))
    with (
        files.only_here(outcome.report, "pseudo-labelled"),
        pytest.raises(files.BusyError, match="is being pseudo-labelled by process"),
    ):
        run(tiny, model)


def test_three_folds_are_three_members(tiny, tmp_path):
    outcome = run(tiny, add_folds(make_folds(tmp_path / "three", 1), 2), folds=[0, 2])
    assert [member.fold for member in outcome.members] == [0, 2]
