"""Planning, preprocessing, training, continuing and predicting by nnU-Net's own commands."""

import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

pytestmark = pytest.mark.integration

PLANS = "SemiSupervisedPlans"
TRAINER = "nnUNetTrainerCPS_2epochs_2iterations"
PRIVATE = "archive_of_Jane_Doe"
VALIDATIONS = ("validation", "validation_network_2", "validation_average")
CURVES = ("cps_lambda", "cps_loss", "supervised_loss_1", "supervised_loss_2", "cps_agreement", "pseudo_label_share")


def load_checkpoint(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=False)


def cases(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".json") for path in folder.glob("*.json"))


def check_training(fold: Path, output: str, classes: int = 2) -> None:
    """Check what every finished CPS training leaves behind."""
    for name in VALIDATIONS:
        summary = json.loads((fold / name / "summary.json").read_text())
        assert len(summary["mean"]) == classes
        assert 0 <= summary["foreground_mean"]["Dice"] <= 1
        assert len(list((fold / name).glob("case_*.nii.gz"))) == 1
    assert {path.name for path in fold.glob("*.pth")} == {"checkpoint_best.pth", "checkpoint_final.pth"}
    with Image.open(fold / "progress.png") as picture:
        assert picture.width / picture.height > 0.7  # nnU-Net's own is 30 x 54, ours is put beside it
    assert not list(fold.rglob("*.tmp")) + list(fold.rglob(".*"))
    (log,) = fold.glob("training_log_*.txt")
    for text in (output, log.read_text()):
        for epoch in range(2):
            assert f"Epoch {epoch}" in text
        assert len(re.findall(r"CPS lambda \d\.\d{4}, loss -?\d+\.\d{4}, supervised ", text)) == 2
        assert len(re.findall(r"CPS agreement \(Dice\) \w+ (\d\.\d{3}|nan), ", text)) == 2
        assert len(re.findall(r"CPS share in pseudo-labels \w+ \d\.\d\de[+-]\d\d, ", text)) == 2
        assert re.search(r"Mean validation Dice: network 1 \d\.\d{4}, network 2 \d\.\d{4}, average \d\.\d{4}", text)


class TestPreparing:
    def test_broken_unlabelled_scans_are_named_and_cost_only_themselves(self, blobs, prepared):
        output = prepared.broken.output
        assert "2 case(s) failed; everything else is done and kept." in output
        assert "Unlabelled cases that failed:" in output
        assert "LABELLED cases that failed" not in output
        unreadable, hole = (str(blobs.raw / "imagesUnlabeled" / f"extra_{n}_0000.nii.gz") for n in (1, 2))
        assert re.search(rf"extra_1 \[3d_fullres, 2d\]: {re.escape(unreadable)} cannot be read \(.+\); replace or", output)
        assert f"extra_2 [3d_fullres, 2d]: {hole} has NaN or infinite values" in output
        assert sorted(prepared.finished) == ["extra_0.b2nd", "extra_9.b2nd"]

    def test_after_mending_the_finished_cases_are_kept(self, blobs, prepared):
        for configuration in ("3d_fullres", "2d"):
            assert f"{configuration}: 2 preprocessed, 2 up to date, 0 removed, 0 failed" in prepared.mended.output
        folder = blobs.preprocessed / f"{PLANS}_3d_fullres_unlabeled"
        for name, time in prepared.finished.items():
            assert (folder / name).stat().st_mtime_ns == time

    def test_labelled_and_unlabelled_cases_lie_apart(self, blobs, prepared):
        plans = json.loads((blobs.preprocessed / f"{PLANS}.json").read_text())
        assert plans["plans_name"] == PLANS
        for configuration in ("3d_fullres", "2d"):
            identifier = f"{PLANS}_{configuration}"
            assert plans["configurations"][configuration]["data_identifier"] == identifier
            assert plans["configurations"][configuration]["preprocessor_name"] == "SemiSupervisedPreprocessor"
            labelled = blobs.preprocessed / identifier
            assert sorted(path.stem for path in labelled.glob("*.pkl")) == [f"case_{n}" for n in range(5)]
            unlabelled = blobs.preprocessed / f"{identifier}_unlabeled"
            assert cases(unlabelled) == ["extra_0", "extra_1", "extra_2", "extra_9"]
            assert not list(unlabelled.rglob("*.pkl")) + list(unlabelled.rglob("*_seg*")) + list(unlabelled.rglob(".*"))
        ground_truth = sorted(path.name for path in (blobs.preprocessed / "gt_segmentations").iterdir())
        assert ground_truth == [f"case_{n}.nii.gz" for n in range(5)]

    def test_without_any_unlabelled_case_it_says_where_it_looked(self, blobs, prepared, tmp_path):
        raw = tmp_path / blobs.dataset
        raw.mkdir()
        content = json.loads((blobs.raw / "dataset.json").read_text())
        del content["unlabeled"]
        (raw / "dataset.json").write_text(json.dumps(content))
        (raw / "imagesTr").symlink_to(blobs.raw / "imagesTr")
        other = replace(blobs, variables={"nnUNet_raw": str(tmp_path)})
        command = ("nnUNetv2_ext", "preprocess_unlabeled", "-d", blobs.number, "-p", PLANS, "-c", "3d_fullres")
        done = other.run(*command, status=1)
        assert done.output.strip() == (
            f"nnUNetv2_ext preprocess_unlabeled: error: {blobs.dataset} has no unlabelled case. Looked in "
            f"{raw / 'imagesUnlabeled'} and for the key 'unlabeled' in {raw / 'dataset.json'}. Provide unlabelled "
            "scans as imagesUnlabeled/CASE_0000.nii.gz (one file a channel, the dataset's file ending), or as "
            '"unlabeled": {"CASE": {"images": ["path_0000.nii.gz"]}} in dataset.json.'
        )


class TestTraining:
    def test_3d(self, trained):
        check_training(trained.model / "fold_0", trained.done.output)

    def test_2d_with_loader_processes(self, blobs, prepared):
        done = blobs.run(*blobs.train("2d_tiny"), nnUNet_n_proc_DA="2")
        check_training(blobs.model(configuration="2d_tiny") / "fold_0", done.output)

    def test_model_folder_needs_no_plugin_and_names_no_patient(self, trained):
        plans = json.loads((trained.model / "plans.json").read_text())
        names = {configuration.get("preprocessor_name") for configuration in plans["configurations"].values()}
        assert names == {"DefaultPreprocessor", None}  # None where a configuration inherits it
        dataset = json.loads((trained.model / "dataset.json").read_text())
        assert set(dataset) == {"channel_names", "labels", "numTraining", "file_ending"}
        for path in trained.model.rglob("*"):
            if path.is_file():
                assert PRIVATE.encode() not in path.read_bytes(), path
                assert b"ARCHIVE" not in path.read_bytes(), path
        assert PRIVATE not in trained.done.output

    def test_checkpoint_is_nnunets_with_one_key_more(self, trained):
        checkpoint = load_checkpoint(trained.model / "fold_0" / "checkpoint_final.pth")
        assert checkpoint["trainer_name"] == TRAINER
        assert checkpoint["current_epoch"] == 2
        assert set(checkpoint) - {"nnunet_ext_cps"} == {
            *("network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema", "current_epoch"),
            *("init_args", "trainer_name", "inference_allowed_mirroring_axes"),
        }
        second = checkpoint["nnunet_ext_cps"]["network_weights"]
        assert second.keys() == checkpoint["network_weights"].keys()
        assert any(not torch.equal(value, second[key]) for key, value in checkpoint["network_weights"].items())

    def test_val_again_repeats_all_three_validations_and_trains_nothing(self, trained, tmp_path):
        fold = trained.model / "fold_0"
        before = {name: json.loads((fold / name / "summary.json").read_text()) for name in VALIDATIONS}
        written = (fold / "checkpoint_final.pth").stat().st_mtime_ns
        copied = replace(trained.workspace, variables={"nnUNet_results": str(tmp_path)})
        target = copied.model() / "fold_0"
        target.mkdir(parents=True)
        (target / "checkpoint_final.pth").symlink_to(fold / "checkpoint_final.pth")
        done = copied.run(*copied.train("3d_tiny", "--val"))
        assert "Epoch 0" not in done.output
        for name in VALIDATIONS:
            after = json.loads((target / name / "summary.json").read_text())
            assert after["foreground_mean"] == pytest.approx(before[name]["foreground_mean"], nan_ok=True)
        assert (fold / "checkpoint_final.pth").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("dataset", "labels", "change", "classes"),
    [
        pytest.param(
            "Dataset906_Regions",
            {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
            "scribbles",
            2,
            id="regions-and-ignore-label-two-mr-channels",
        ),
        pytest.param(
            "Dataset907_Ignore",
            {"background": 0, "large": 1, "small": 2, "ignore": 3},
            "scribbles",
            2,
            id="ignore-label",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "Dataset908_Overlap",
            {"background": 0, "whole": [1, 2], "core": 2},
            "all",
            2,
            id="regions",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_kinds_of_labels(new_workspace, dataset, labels, change, classes):
    def scribbles(array: np.ndarray) -> np.ndarray:
        unseen = np.arange(len(array)) % 4 != 0
        return np.where(unseen[:, None, None], 3, array).astype(np.uint8)

    workspace = new_workspace(dataset)
    regions = {"regions_class_order": [1, 2]} if "whole" in labels else {}
    changes = {"change_labels": scribbles} if change == "scribbles" else {}
    workspace.write_dataset(labels, modalities=("T1", "T2"), extra=2, **changes, **regions)
    prepared = workspace.plan_and_preprocess("SemiSupervisedPlanner")
    assert "failed; everything else" not in prepared.output
    workspace.add_small_configurations()
    done = workspace.run(*workspace.train("3d_tiny"))
    check_training(workspace.model() / "fold_0", done.output, classes)
    assert "nan" not in "".join(re.findall(r"CPS lambda.*", done.output))
