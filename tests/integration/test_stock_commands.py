"""Planning, preprocessing, training, continuing and predicting by nnU-Net's own commands."""

import json
import re
import shutil
import signal
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
        assert re.search(
            rf"extra_1 \[fingerprint, 3d_fullres, 2d\]: {re.escape(unreadable)} cannot be read \(.+\); copy it again",
            output,
        )
        assert f"extra_2 [fingerprint, 3d_fullres, 2d]: {hole} has NaN or infinite values" in output
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

    def test_find_best_configuration_takes_it_like_any_other(self, trained, tmp_path):
        shutil.copytree(trained.workspace.root / "results", tmp_path / "results")
        other = replace(trained.workspace, variables={"nnUNet_results": str(tmp_path / "results")})
        names = ("-p", PLANS, "-c", "3d_tiny", "-tr", TRAINER, "-f", 0, "-np", 1)
        other.run("nnUNetv2_find_best_configuration", other.number, *names)
        found = json.loads((tmp_path / "results" / other.dataset / "inference_information.json").read_text())
        (chosen,) = found["best_model_or_ensemble"]["selected_model_or_models"]
        assert (chosen["trainer"], chosen["configuration"], chosen["plans_identifier"]) == (TRAINER, "3d_tiny", PLANS)
        validation = json.loads((trained.model / "fold_0" / "validation" / "summary.json").read_text())
        dice = found["best_model_or_ensemble"]["result_on_crossval_pre_pp"]
        assert dice == pytest.approx(validation["foreground_mean"]["Dice"])

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
        ("dataset", "labels", "scribbles"),
        [
            ("Dataset906_Both", {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, True),
            pytest.param(
                *("Dataset907_Ignore", {"background": 0, "large": 1, "small": 2, "ignore": 3}, True),
                marks=pytest.mark.slow,
            ),
            pytest.param(
                *("Dataset908_Regions", {"background": 0, "whole": [1, 2], "core": 2}, False), marks=pytest.mark.slow
            ),
        ],
    )
    def test_regions_and_ignore_label_on_cropped_two_channel_images(self, new_workspace, dataset, labels, scribbles):
        def annotate_every_fourth_slice(array: np.ndarray) -> np.ndarray:
            annotated = np.arange(len(array)) % 4 == 0
            return np.where(annotated[:, None, None], array, 3).astype(np.uint8)

        workspace = new_workspace(dataset)
        order = {"regions_class_order": [1, 2]} if "whole" in labels else {}
        change = {"change_labels": annotate_every_fourth_slice} if scribbles else {}
        workspace.write_dataset(labels, modalities=("T1", "T2"), extra=2, **change, **order)
        assert "failed" not in workspace.plan_and_preprocess("SemiSupervisedPlanner").output.replace("0 failed", "")
        workspace.add_small_configurations()
        done = workspace.run(*workspace.train("3d_tiny"))
        check_training(workspace.model() / "fold_0", done.output)
        assert "nan" not in "".join(re.findall("CPS lambda.*", done.output))

    @pytest.mark.slow
    def test_low_resolution_leaves_network_1s_prediction_to_the_cascade(self, blobs, prepared):
        file = blobs.preprocessed / f"{PLANS}.json"
        plans = json.loads(file.read_text())
        plans["plans_name"] = "LowPlans"
        low = {"inherits_from": "3d_tiny", "data_identifier": "LowPlans_3d_lowres", "spacing": [3.0, 1.4, 1.4]}
        plans["configurations"]["3d_lowres"] = low | {"next_stage": "3d_cascade_fullres"}
        plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_tiny", "previous_stage": "3d_lowres"}
        (blobs.preprocessed / "LowPlans.json").write_text(json.dumps(plans))
        blobs.run("nnUNetv2_preprocess", "-d", blobs.number, "-plans_name", "LowPlans", "-c", "3d_lowres", "-np", 1)
        assert cases(blobs.preprocessed / "LowPlans_3d_lowres_unlabeled") == [
            "extra_0",
            "extra_1",
            "extra_2",
            "extra_9",
        ]
        done = blobs.run(*blobs.train("3d_lowres", plans="LowPlans"))
        model = blobs.model(configuration="3d_lowres", plans="LowPlans")
        check_training(model / "fold_0", done.output)
        assert len(list((model / "predicted_next_stage" / "3d_cascade_fullres").iterdir())) == 1
        assert not list((model / "fold_0").rglob("predicted_next_stage"))


class TestContinuing:
    TRAINER = "nnUNetTrainerCPS_4epochs_2iterations"
    # The worst moment: the checkpoint of the third epoch is written, but not yet under its name.
    DIE_WHILE_SAVING = """
import os, signal
from nnunet_ext.trainers import nnUNetTrainerCPS_4epochs_2iterations as Original


class nnUNetTrainerCPS_4epochs_2iterations(Original):
    def save_checkpoint(self, filename):
        if self.current_epoch == 2:
            os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
        super().save_checkpoint(filename)
"""

    def test_after_a_kill_while_saving(self, blobs, prepared, tmp_path):
        (tmp_path / "killed.py").write_text(self.DIE_WHILE_SAVING)
        command = blobs.train("3d_tiny", trainer=self.TRAINER)
        fold = blobs.model(self.TRAINER) / "fold_0"
        blobs.run(*command, status=-signal.SIGKILL, nnUNet_extTrainer=str(tmp_path))
        killed = load_checkpoint(fold / "checkpoint_latest.pth")
        assert killed["current_epoch"] == 2
        assert not (fold / "checkpoint_final.pth").exists()

        done = blobs.run(*command, "--c")
        assert re.findall(r"Epoch (\d+) ?\n", done.output) == [str(epoch) for epoch in range(2, 4)]
        assert {path.name for path in fold.glob("*.pth")} == {"checkpoint_best.pth", "checkpoint_final.pth"}
        kept = re.compile(r"checkpoint_(best|final)\.pth|progress\.png|debug\.json|training_log_.*\.txt|validation.*")
        assert [path.name for path in fold.iterdir() if not kept.fullmatch(path.name)] == []

        curves = load_checkpoint(fold / "checkpoint_final.pth")["logging"]
        assert {key: len(values) for key, values in curves.items()} == dict.fromkeys(curves, 4)
        assert set(CURVES) < set(curves)
        assert curves["cps_lambda"] == pytest.approx([0.25, 0.5, 0.5, 0.5])
        for key in CURVES:
            assert curves[key][:2] == killed["logging"][key]
        assert np.isfinite(curves["cps_loss"]).all()


@dataclass(frozen=True)
class Refused:
    """What became of commands that cannot work, by a name for each."""

    commands: dict[str, Any]
    folder: Path  # of the preprocessed dataset


@pytest.fixture(scope="module")
def refused(trained, tmp_path_factory) -> Refused:
    """Trainings that must not start, one after another in one interpreter."""
    workspace = replace(trained.workspace, variables={"nnUNet_results": str(tmp_path_factory.mktemp("results"))})
    folder = workspace.preprocessed
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    plans["plans_name"] = "OddPlans"
    plans["configurations"] |= {
        "3d_lowres": {"inherits_from": "3d_tiny"},
        "3d_cascade_fullres": {"inherits_from": "3d_tiny", "previous_stage": "3d_lowres"},
        "3d_unprepared": {"inherits_from": "3d_tiny", "data_identifier": "OddPlans_3d_unprepared"},
        "3d_changed": {"inherits_from": "3d_tiny", "spacing": [2.5, 0.9, 1.0]},
    }
    (folder / "OddPlans.json").write_text(json.dumps(plans))
    (folder / "OddPlans_3d_unprepared").symlink_to(folder / f"{PLANS}_3d_fullres")

    plain = load_checkpoint(trained.model / "fold_0" / "checkpoint_final.pth")
    del plain["nnunet_ext_cps"]
    stripped = "nnUNetTrainerCPS_3epochs_2iterations"
    for trainer, written_by in ((TRAINER, "nnUNetTrainer"), (stripped, stripped)):
        (workspace.model(trainer) / "fold_0").mkdir(parents=True)
        file = workspace.model(trainer) / "fold_0" / "checkpoint_latest.pth"
        torch.save(plain | {"trainer_name": written_by}, file)

    names = ["nnUNetTrainerCPS_foo", "nnUNetTrainerCPS_2iterations_2epochs", "nnUNetTrainer_50iterations_20epochs"]
    names += ["nnUNetTrainerNobodyWrote"]
    commands = {name: workspace.train("3d_tiny", trainer=name) for name in names}
    odd = ("3d_cascade_fullres", "3d_unprepared", "3d_changed")
    commands |= {name: workspace.train(name, plans="OddPlans") for name in odd}
    commands["plain"] = workspace.train("3d_tiny", "--c")
    commands["stripped"] = workspace.train("3d_tiny", "--c", trainer=stripped)
    done = workspace.run_in_turn(*commands.values())
    return Refused(dict(zip(commands, done, strict=True)), folder)


class TestRefusals:
    @pytest.mark.parametrize(
        ("key", "expected"),
        [
            ("nnUNetTrainerCPS_foo", "error: the trainer name 'nnUNetTrainerCPS_foo' has an unknown part 'foo'."),
            ("nnUNetTrainerCPS_2iterations_2epochs", "use -tr nnUNetTrainerCPS_2epochs_2iterations\n"),
            ("nnUNetTrainer_50iterations_20epochs", "use -tr nnUNetTrainer_20epochs_50iterations\n"),
            (
                "3d_cascade_fullres",
                f"error: {TRAINER} cannot train 3d_cascade_fullres: unlabelled cases have no prediction "
                "of the cascade's previous stage. Train 3d_fullres instead.\n",
            ),
            (
                "3d_unprepared",
                "error: no preprocessed unlabelled case in {folder}/OddPlans_3d_unprepared_unlabeled. Run: "
                "nnUNetv2_ext preprocess_unlabeled -d Dataset905_Blobs -p OddPlans -c 3d_unprepared\nLooked in ",
            ),
            (
                "3d_changed",
                f"error: 4 of 4 unlabelled cases in {{folder}}/{PLANS}_3d_fullres_unlabeled (e.g. extra_0) were "
                "preprocessed with other plans than OddPlans, configuration 3d_changed, are now (spacing changed). "
                "Run: nnUNetv2_ext preprocess_unlabeled -d Dataset905_Blobs -p OddPlans -c 3d_changed\n",
            ),
            (
                "plain",
                f"was written by nnUNetTrainer, but {TRAINER} was asked to load it; use -tr nnUNetTrainer, or start "
                f"{TRAINER} afresh (with -pretrained_weights to begin from those weights)\n",
            ),
            (
                "stripped",
                "error: the checkpoint has no second network (key 'nnunet_ext_cps'), which "
                "nnUNetTrainerCPS_3epochs_2iterations needs to go on; it may be an exported model. Use it with "
                "-pretrained_weights instead of --c\n",
            ),
        ],
    )
    def test_what_cannot_work_is_one_clear_error(self, refused, key, expected):
        output = refused.commands[key].output
        assert refused.commands[key].status == 1
        assert expected.replace("{folder}", str(refused.folder)) in output
        assert "Traceback" not in output
        assert "Epoch 0" not in output

    def test_name_that_is_nobodys_has_stocks_own_error(self, refused):
        folder = Path(find_spec("nnunetv2").origin).parent / "training" / "nnUNetTrainer"
        assert refused.commands["nnUNetTrainerNobodyWrote"].last_line == (
            "RuntimeError: Could not find requested nnunet trainer nnUNetTrainerNobodyWrote in "
            f"nnunetv2.training.nnUNetTrainer ({folder}). If the trainer is located elsewhere, please move it there or "
            "specify the external path via the `nnUNet_extTrainer` environment variable. nnUNet_extTrainer="
        )


OWN_TRAINERS = """
import torch
from nnunet_ext.trainers import nnUNetTrainerCPS as Original


class nnUNetTrainerCPS(Original):
    def run_training(self):
        self.print_to_log_file("the user's own nnUNetTrainerCPS")

    def perform_actual_validation(self, save_probabilities=False):
        pass


class nnUNetTrainerMine(Original):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 1
        self.num_iterations_per_epoch = 2
        self.num_val_iterations_per_epoch = 1
        self.validate_second_network = False

    def on_train_start(self):
        super().on_train_start()
        torch.save([self.network.state_dict(), self.network_2.state_dict()], self.output_folder + "/start.pth")
"""


@pytest.fixture(scope="module")
def own(trained, tmp_path_factory):
    """Both trainers of a user's folder run, the second with weights of a model that has no second network."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_trainers.py").write_text(OWN_TRAINERS)
    checkpoint = load_checkpoint(trained.model / "fold_0" / "checkpoint_final.pth")
    weights = {key: value + 1 for key, value in checkpoint["network_weights"].items()}
    torch.save({"network_weights": weights}, folder / "plain.pth")
    workspace = replace(trained.workspace, variables={"nnUNet_results": str(folder / "results")})
    first, second = workspace.run_in_turn(
        workspace.train("3d_tiny", trainer="nnUNetTrainerCPS"),
        workspace.train("3d_tiny", "-pretrained_weights", folder / "plain.pth", trainer="nnUNetTrainerMine"),
        nnUNet_extTrainer=str(folder),
    )
    assert first.status == second.status == 0, first.output + second.output
    return first, second, workspace.model("nnUNetTrainerMine") / "fold_0", weights


class TestOwnTrainers:
    def test_users_folder_wins_over_our_names(self, own):
        assert "the user's own nnUNetTrainerCPS" in own[0].output

    def test_subclass_trains(self, own):
        _, done, fold, _ = own
        assert "CPS lambda 0.5000" in done.output
        assert load_checkpoint(fold / "checkpoint_final.pth")["trainer_name"] == "nnUNetTrainerMine"
        assert (fold / "validation" / "summary.json").is_file()
        assert not (fold / "validation_network_2").exists()

    def test_pretrained_weights_of_a_plain_checkpoint_start_both_networks(self, own):
        *_, fold, weights = own
        first, second = load_checkpoint(fold / "start.pth")
        heads = [key for key in weights if ".seg_layers." in key and key.endswith("weight")]
        for key, value in weights.items():
            if ".seg_layers." not in key:
                assert torch.equal(first[key], value)
                assert torch.equal(second[key], value)
        assert heads
        assert not any(torch.equal(first[key], second[key]) for key in heads)


def test_prediction_with_the_cps_model(blobs, predicted):
    for number in range(2):
        segmentation = SimpleITK.ReadImage(str(predicted / f"test_{number}.nii.gz"))
        image = SimpleITK.ReadImage(str(blobs.raw / "imagesTs" / f"test_{number}_0000.nii.gz"))
        assert segmentation.GetSize() == image.GetSize()
        assert segmentation.GetSpacing() == pytest.approx(image.GetSpacing())
        array = SimpleITK.GetArrayFromImage(segmentation)
        probabilities = np.load(predicted / f"test_{number}.npz")["probabilities"]
        assert probabilities.shape == (3, *array.shape)
        assert np.array_equal(probabilities.argmax(0), array)
        assert probabilities.std() > 0.01
