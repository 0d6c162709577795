"""The demo's driver: folders, stages, commands; the trainings themselves run in tests/integration."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext import files
from nnunet_ext.demo import run
from nnunet_ext.demo.dataset import DATASET_NAME
from nnunet_ext.demo.folder import DemoError, DemoSettings, claim_folder
from nnunet_ext.demo.process import Usage
from nnunet_ext.demo.run import run_demo, run_stages, with_demo_configuration

SETTINGS = DemoSettings(epochs=2, iterations=3, labeled=3, unlabeled=1, test=2)


class StockCommands:
    """Stands in for nnU-Net: keeps what it is called with and leaves the files that the demo looks for."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.calls: list[list[str]] = []
        self.environment: Mapping[str, str] = {}
        self.fail_at = ""

    def __call__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        usage: Usage,
        on_line: Callable[[str], None],
        on_tick: Callable[[], None],
    ) -> None:
        self.calls.append(list(arguments))
        self.environment = environment
        usage.seconds += 10
        usage.peak_memory_mb = 500
        on_tick()
        if arguments[0] == "nnUNetv2_train":
            folder = self.output / "results" / DATASET_NAME / f"{arguments[7]}__{run.PLANS}__3d_demo" / "fold_0"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "checkpoint_latest.pth").touch()
        if self.fail_at and self.fail_at in " ".join(arguments):
            raise DemoError(f"{arguments[0]} failed")
        if arguments[0] == "nnUNetv2_plan_and_preprocess":
            plans = {"configurations": {"3d_fullres": _configuration([32, 64, 128, 256, 320])}}
            folder = self.output / "preprocessed" / DATASET_NAME
            folder.mkdir(parents=True)
            (folder / f"{run.PLANS}.json").write_text(json.dumps(plans), encoding="utf-8")

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


def _configuration(widths: list[int]) -> dict[str, object]:
    return {
        "data_identifier": "X_3d_fullres",
        "batch_size": 7,
        "patch_size": [32, 48, 56],
        "architecture": {
            "network_class_name": "a.b.Net",
            "arch_kwargs": {
                "features_per_stage": widths,
                "n_stages": 5,
                "n_conv_per_stage": [2] * 5,
                "n_conv_per_stage_decoder": [2] * 4,
            },
        },
    }


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "demo"


@pytest.fixture
def commands(output: Path, monkeypatch: pytest.MonkeyPatch) -> StockCommands:
    stand_in = StockCommands(output)
    monkeypatch.setattr(run, "run_command", stand_in)
    monkeypatch.setattr(run, "write_report", lambda *arguments: None)
    monkeypatch.setattr(run, "write_dataset", lambda *arguments: None)
    return stand_in


def test_the_demo_drives_the_stock_commands_in_order(output: Path, commands: StockCommands) -> None:
    run_stages(output, SETTINGS)
    one_method = ["nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_evaluate_folder"]
    assert commands.names() == ["nnUNetv2_plan_and_preprocess", *one_method, *one_method]
    supervised, semi_supervised = (call for call in commands.calls if call[0] == "nnUNetv2_train")
    assert supervised[1:] == [
        *("901", "3d_demo", "0", "-p", "SemiSupervisedPlans"),
        *("-tr", "nnUNetTrainer_2epochs_3iterations", "-device", "cpu"),
    ]
    assert semi_supervised[7] == "nnUNetTrainerSemi_2epochs_3iterations"
    assert {commands.environment[name] for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")} == {
        str(output / name) for name in ("raw", "preprocessed", "results")
    }


def test_one_case_is_kept_for_validation(output: Path, commands: StockCommands) -> None:
    run_stages(output, SETTINGS)
    splits = json.loads((output / "preprocessed" / DATASET_NAME / "splits_final.json").read_text(encoding="utf-8"))
    assert splits == [{"train": ["labeled_000", "labeled_001"], "val": ["labeled_002"]}]


def test_a_finished_demo_only_reports(output: Path, commands: StockCommands) -> None:
    run_stages(output, SETTINGS)
    commands.calls.clear()
    run_stages(output, SETTINGS)
    assert not commands.calls


def test_a_failed_stage_is_done_again_and_a_training_goes_on(output: Path, commands: StockCommands) -> None:
    commands.fail_at = "Semi_2epochs"
    with pytest.raises(DemoError, match="nnUNetv2_train failed"):
        run_stages(output, SETTINGS)
    commands.calls.clear()
    commands.fail_at = ""
    run_stages(output, SETTINGS)
    assert commands.names() == ["nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_evaluate_folder"]
    assert commands.calls[0][-1] == "--c"
    record = json.loads((output / "stages" / "train_semi.json").read_text(encoding="utf-8"))
    assert record == {"seconds": 20, "peak_memory_mb": 500, "finished": True}  # both parts of the training count


def test_other_settings_are_refused_and_the_folder_kept(output: Path) -> None:
    claim_folder(output, SETTINGS, overwrite=False)
    (output / "raw").mkdir()
    with pytest.raises(DemoError, match=r"other settings: epochs 2 \(now 5\); pass --overwrite .* another folder"):
        claim_folder(output, replace(SETTINGS, epochs=5), overwrite=False)
    assert (output / "raw").is_dir()
    claim_folder(output, SETTINGS, overwrite=False)


def test_overwrite_removes_the_demo_and_nothing_else(output: Path) -> None:
    claim_folder(output, SETTINGS, overwrite=False)
    for name in ("raw", "stages"):
        (output / name).mkdir()
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    claim_folder(output, replace(SETTINGS, seed=1), overwrite=True)
    assert sorted(path.name for path in output.iterdir()) == ["demo.json", "notes.txt"]
    assert json.loads((output / "demo.json").read_text(encoding="utf-8"))["seed"] == 1


def test_folders_of_somebody_else_are_never_removed(output: Path) -> None:
    (output / "raw").mkdir(parents=True)
    for overwrite in (False, True):
        with pytest.raises(DemoError, match="holds raw, and not from a demo; name another folder"):
            claim_folder(output, SETTINGS, overwrite)
    assert (output / "raw").is_dir()


def test_a_folder_with_other_files_needs_overwrite(output: Path) -> None:
    output.mkdir()
    (output / "notes.txt").touch()
    with pytest.raises(DemoError, match="is not empty and holds no demo; pass --overwrite to use it"):
        claim_folder(output, SETTINGS, overwrite=False)
    claim_folder(output, SETTINGS, overwrite=True)
    assert (output / "notes.txt").is_file()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DemoError, match="is a file; name a folder"):
        claim_folder(tmp_path / "file", SETTINGS, overwrite=True)


def test_run_demo_prints_one_error_and_gives_its_status(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim_folder(output, SETTINGS, overwrite=False)
    assert run_demo(output, epochs=7, device="cpu") == 1
    assert capsys.readouterr().err.startswith(f"error: {output} holds a demo with other settings")
    assert run_demo(output, epochs=0, device="cpu") == 1
    assert "epochs must be at least 1, got 0" in capsys.readouterr().err


def test_an_interrupted_demo_says_how_to_go_on(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_dataset", interrupt)
    assert run_demo(output, device="cpu") == 130
    assert "without --overwrite, continues" in capsys.readouterr().err


def test_small_configuration_inherits_all_but_batch_widths_and_convolutions() -> None:
    plans = {"plans_name": "P", "configurations": {"3d_fullres": _configuration([32, 64, 128, 256, 320])}}
    before = json.dumps(plans)
    made = with_demo_configuration(plans)
    assert json.dumps(plans) == before
    assert made["configurations"]["3d_fullres"] == plans["configurations"]["3d_fullres"]
    assert made["configurations"]["3d_demo"] == {
        "inherits_from": "3d_fullres",
        "batch_size": 2,
        "architecture": {
            "network_class_name": "a.b.Net",
            "arch_kwargs": {
                "features_per_stage": [16, 32, 64, 64, 64],
                "n_stages": 5,
                "n_conv_per_stage": [1, 1, 2, 2, 2],
                "n_conv_per_stage_decoder": [1] * 4,
            },
        },
    }


def test_planning_without_plans_is_an_error(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_command", lambda *arguments: None)
    monkeypatch.setattr(run, "write_dataset", lambda *arguments: None)
    with pytest.raises(
        DemoError, match=r"planning ended without .*SemiSupervisedPlans\.json; what it printed is in .*plan\.log"
    ):
        run_stages(output, SETTINGS)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_damaged_record_of_the_settings_is_named(output: Path, content: str) -> None:
    output.mkdir()
    (output / "demo.json").write_text(content, encoding="utf-8")
    with pytest.raises(DemoError, match=r"demo\.json .*; pass --overwrite to begin anew, or name another folder"):
        claim_folder(output, SETTINGS, overwrite=False)
    claim_folder(output, SETTINGS, overwrite=True)
    claim_folder(output, SETTINGS, overwrite=False)


def test_a_damaged_record_of_a_stage_is_named(output: Path, commands: StockCommands) -> None:
    run_stages(output, SETTINGS)
    (output / "stages" / "train_semi.json").write_text("{", encoding="utf-8")
    with pytest.raises(DemoError, match=r"train_semi\.json is no JSON .*; remove it: the stage is then done again"):
        run_stages(output, SETTINGS)


def test_what_a_killed_claim_left_is_no_foreign_file(output: Path) -> None:
    output.mkdir()
    (output / files._partial_name("demo.json").replace(f"_{os.getpid()}_", "_4194000_")).write_text("{")
    claim_folder(output, SETTINGS, overwrite=False)
    assert [path.name for path in output.iterdir()] == ["demo.json"]


@pytest.mark.parametrize("folder", ["stages", f"preprocessed/{DATASET_NAME}"])
def test_what_a_killed_demo_left_half_written_is_swept(output: Path, folder: str) -> None:
    claim_folder(output, SETTINGS, overwrite=False)
    left = output / folder / f"{files.PREFIX}{files._machine()}_999999999_0_train_semi.json"
    left.parent.mkdir(parents=True)
    left.touch()
    claim_folder(output, SETTINGS, overwrite=False)
    assert not left.exists()


def test_a_full_disk_is_one_error(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise files.DiskFullError("X cannot be written: no room on its disk")

    monkeypatch.setattr(run, "write_dataset", full)
    assert run_demo(output, device="cpu") == 1
    assert "error: X cannot be written: no room on its disk" in capsys.readouterr().err


def test_packages_without_metadata_have_no_version(
    output: Path, commands: StockCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(package: str) -> str:
        raise PackageNotFoundError(package)

    reports: list[tuple[Any, ...]] = []
    monkeypatch.setattr(run, "version", none)
    monkeypatch.setattr(run, "write_report", lambda *arguments: reports.append(arguments))
    run_stages(output, SETTINGS)
    assert (reports[0][-1]["nnunetv2"], reports[0][-1]["torch"]) == ("unknown", "unknown")
