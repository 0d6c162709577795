"""Datasets without a labelled case, through nnU-Net's own functions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.tiny_dataset import TinyDataset, make_plans, scan, write_image

from nnunet_ext.data.failures import drain
from nnunet_ext.data.unlabeled_only import UnlabelledOnly, labelled_cases, unlabelled_only
from nnunet_ext.data.verify import verify_unlabelled_only
from nnunet_ext.planners.preprocessor import SemiSupervisedPreprocessor


@pytest.fixture
def no_labels(tiny: TinyDataset) -> TinyDataset:
    tiny.write_dataset_json(numTraining=0)
    for seed, name in enumerate("uv"):
        tiny.add_unlabeled(name, seed)
    return tiny


def test_the_unlabelled_cases_are_examples_and_nothing_to_iterate_over(no_labels: TinyDataset):
    dataset = unlabelled_only(no_labels.raw)
    assert list(dataset) == []
    assert list(dataset.keys()) == ["u", "v"]
    assert Path(dataset["u"]["images"][0]).name == "u_0000.nii.gz"
    assert labelled_cases(dataset) == {}
    with pytest.raises(ValueError, match="no labels, .* -fpe GlobalIntensityFingerprintExtractor"):
        dataset["u"]["label"]
    with pytest.raises(KeyError, match="other"):
        dataset["u"]["other"]


@pytest.mark.parametrize("change", ["labelled", "listed", "nothing", "no json"])
def test_every_other_dataset_is_left_to_nnunet(no_labels: TinyDataset, change):
    if change == "labelled":
        no_labels.add_labelled("l", 3)
    elif change == "listed":
        no_labels.write_dataset_json(dataset={"l": {"images": ["x"], "label": "y"}})
    elif change == "nothing":
        shutil.rmtree(no_labels.raw / "imagesUnlabeled")
    else:
        (no_labels.raw / "dataset.json").unlink()
    assert unlabelled_only(no_labels.raw) is None
    assert labelled_cases({"l": {}}) == {"l": {}}


def test_an_empty_imagestr_counts_as_none(no_labels: TinyDataset):
    (no_labels.raw / "imagesTr").mkdir()
    (no_labels.raw / "imagesTr" / ".hidden").touch()
    assert isinstance(unlabelled_only(no_labels.raw), UnlabelledOnly)


def run(tiny: TinyDataset, code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_stock_functions_see_it_and_labelled_datasets_are_stocks(no_labels: TinyDataset):
    no_labels.write_plans(make_plans("SemiSupervisedPlans"))
    other = no_labels.raw.parent / "Dataset778_Other"
    shutil.copytree(no_labels.raw, other)
    (other / "imagesTr").mkdir()
    write_image(other / "imagesTr" / "l_0000.nii.gz", scan(1))
    (no_labels.preprocessed.parent / other.name).mkdir()
    code = f"""
from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets as get
from nnunetv2.experiment_planning import plan_and_preprocess_api as api
move_plans_between_datasets(777, 777, "SemiSupervisedPlans", "Moved")
assert api.get_filenames_of_train_images_and_targets is get
labelled, stock = get({str(other)!r}), get.__wrapped__({str(other)!r})
assert labelled == stock and list(labelled) == ["l"] and type(labelled) is dict
assert list(get({str(no_labels.raw)!r}).keys()) == ["u", "v"]
api.verify_dataset_integrity({str(no_labels.raw)!r}, 1)
print("fine")
"""
    done = run(no_labels, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "fine"
    moved = json.loads((no_labels.preprocessed / "Moved.json").read_text())
    assert moved["image_reader_writer"] == "SimpleITKIO"
    assert moved["configurations"]["3d_fullres"]["data_identifier"].startswith("Moved_")


def test_nnunets_own_extractor_says_what_to_use(no_labels: TinyDataset):
    code = """
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
DatasetFingerprintExtractor(777, 1).run()
"""
    done = run(no_labels, code)
    assert done.returncode == 1
    assert "Use -fpe GlobalIntensityFingerprintExtractor" in done.stderr.splitlines()[-1]


def test_the_preprocessor_makes_the_unlabelled_cases(no_labels: TinyDataset, monkeypatch):
    from nnunet_ext.planners import preprocessor as module

    monkeypatch.setattr(module, "get_filenames_of_train_images_and_targets", lambda folder, _: unlabelled_only(folder))
    no_labels.write_plans(make_plans("SemiSupervisedPlans", preprocessor_name="SemiSupervisedPreprocessor"))
    one = SemiSupervisedPreprocessor(verbose=False)
    one.show_progress_bar = False
    one.run(777, "3d_fullres", "SemiSupervisedPlans", 1)
    assert drain() == []
    identifier = make_plans("SemiSupervisedPlans")["configurations"]["3d_fullres"]["data_identifier"]
    assert list((no_labels.preprocessed / identifier).iterdir()) == []
    made = {path.name for path in (no_labels.preprocessed / f"{identifier}_unlabeled").iterdir()}
    assert {"u.b2nd", "v.b2nd"} <= made


def test_verification_lists_bad_cases_and_goes_on(no_labels: TinyDataset, capsys):
    verify_unlabelled_only(no_labels.raw, 1)
    assert "2 unlabelled cases without errors" in capsys.readouterr().out
    bad = scan(3)
    bad[5, 5, 5] = np.inf
    write_image(no_labels.raw / "imagesUnlabeled" / "bad_0000.nii.gz", bad)
    verify_unlabelled_only(no_labels.raw, 1)
    assert "1 of 3 cases failed" in capsys.readouterr().out
    (failure,) = drain()
    assert (failure.case, failure.stage) == ("bad", "verify")
    assert "bad_0000.nii.gz has NaN or infinite values" in failure.reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"numTraining": 3}, r"numTraining 3, but there is no labelled case in imagesTr; set it to 0"),
        ({"numTraining": 0, "labels": {"background": 0, "a": 2}}, r"labels \[0, 2\]; they must be 0, 1, 2"),
    ],
)
def test_verification_checks_dataset_json(no_labels: TinyDataset, changes, message):
    no_labels.write_dataset_json(**changes)
    with pytest.raises(ValueError, match=message):
        verify_unlabelled_only(no_labels.raw, 1)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("file_ending", r"dataset\.json has no 'file_ending'; add it"),
        ("labels", r"dataset\.json has no 'labels'"),
        ("channel_names", r"dataset\.json has no 'channel_names'"),
    ],
)
def test_missing_keys_of_dataset_json_are_named(no_labels: TinyDataset, key, message):
    from nnunet_ext.data.unlabeled import find_unlabeled_cases

    content = json.loads((no_labels.raw / "dataset.json").read_text())
    del content[key]
    with pytest.raises(ValueError, match=message):
        find_unlabeled_cases(no_labels.raw, content)
