"""Spacings, the fast export and the choice of networks on nnU-Net's own predict commands."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from inference.tiny_model import make_model

from nnunet_ext.evaluation.command import find_command

pytestmark = pytest.mark.integration

PLANS = "SemiSupervisedPlans"
TRAINER = "nnUNetTrainerCPS_2epochs_2iterations"
CASES = ("test_0", "test_1")
FAST = ("--disable_progress_bar", "--disable_tta", "-device", "cpu")


def read(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def same_geometry(one: Path, other: Path) -> bool:
    first, second = SimpleITK.ReadImage(str(one)), SimpleITK.ReadImage(str(other))
    return first.GetSize() == second.GetSize() and all(
        getattr(first, f"Get{name}")() == pytest.approx(getattr(second, f"Get{name}")(), abs=1e-5)
        for name in ("Spacing", "Origin", "Direction")
    )


def from_model(trained, output, *more, images=None):
    images = images or trained.workspace.raw / "imagesTs"
    return ("nnUNetv2_predict_from_modelfolder", "-m", trained.model, "-i", images, "-o", output, "-f", 0, *FAST, *more)


def test_commands_in_turn(trained, predicted, tmp_path):
    """One interpreter for several commands, with and without our options in turn."""
    workspace = trained.workspace
    by_name = ("nnUNetv2_predict", "-d", workspace.number, "-c", "3d_tiny", "-p", PLANS, "-tr", TRAINER, "-f", 0)
    by_name += ("-i", workspace.raw / "imagesTs", *FAST)
    sequential = ("-npp", 0, "-nps", 0)
    done = workspace.run_in_turn(
        (*by_name, "-o", tmp_path / "forced", "--forced_spacing", 1, 1, 9, *sequential),
        (*by_name, "-o", tmp_path / "stock", *sequential),
        from_model(trained, tmp_path / "fast", "--fast_export", *sequential),
        from_model(trained, tmp_path / "target", "--target_spacing", -1, -1, 4, "--fast_export", "-npp", 1, "-nps", 1),
        from_model(trained, tmp_path / "parts", "--max_voxels", 4000, *sequential),
        (*by_name, "-o", tmp_path / "parts", "--max_voxels", 4000, "-num_parts", 2, "-part_id", 1, *sequential),
        ("nnUNetv2_predict", "-h"),
        real_spawn=True,  # of the one command with processes
    )
    assert [one.status for one in done] == [0] * 7, "\n".join(one.output for one in done if one.status)
    for case in CASES:
        image = workspace.raw / "imagesTs" / f"{case}_0000.nii.gz"
        expected = read(predicted / f"{case}.nii.gz")
        np.testing.assert_array_equal(read(tmp_path / "stock" / f"{case}.nii.gz"), expected)
        assert (read(tmp_path / "fast" / f"{case}.nii.gz") != expected).mean() <= 1e-4
        for folder in ("forced", "target", "fast", "parts"):
            assert same_geometry(tmp_path / folder / f"{case}.nii.gz", image)
    assert not (tmp_path / "stock" / "spacing_report.json").exists()
    forced = json.loads((tmp_path / "forced" / "spacing_report.json").read_text())["cases"]
    assert sorted(forced) == list(CASES)
    assert forced["test_0"]["true_spacing"] == pytest.approx([0.9, 0.9, 2.5])
    assert forced["test_0"]["declared_spacing"] == pytest.approx([1, 1, 2.5])  # 24 slices: z stays
    target = json.loads((tmp_path / "target" / "spacing_report.json").read_text())["cases"]["test_0"]
    assert target["target_spacing"] == pytest.approx([0.9, 0.9, 4])
    assert target["resampled_shape"] == [18, 23, 12]  # of the box without the black border: 19 * 2.5 / 4 = 11.9
    whole = json.loads((tmp_path / "parts" / "spacing_report.json").read_text())["cases"]["test_0"]
    assert 3000 < whole["voxels"] <= 4000
    part = json.loads((tmp_path / "parts" / "spacing_report_part_1_of_2.json").read_text())["cases"]
    assert sorted(part) == ["test_1"]
    assert "\nnnunet_ext:\n" in done[-1].output
    assert "--forced_spacing" in done[-1].output.partition("\nnnunet_ext:\n")[2]


def test_both_networks_and_their_agreement(trained, tmp_path):
    workspace = trained.workspace
    done = workspace.run_in_turn(
        from_model(trained, tmp_path / "both", "--network", "both", "-npp", 1, "-nps", 1),
        from_model(trained, tmp_path / "agreement", "--network", "both", "--min_agreement", 1, "-npp", 1, "-nps", 1),
        ("nnUNetv2_ext", "export", "-m", trained.model, "-o", tmp_path / "model", "-f", 0, "--network", "both"),
        (
            *("nnUNetv2_predict_from_modelfolder", "-m", tmp_path / "model", "-i", workspace.raw / "imagesTs"),
            *("-o", tmp_path / "stock", "-f", 0, 1, *FAST, "-npp", 1, "-nps", 1),
        ),
        from_model(trained, tmp_path / "one", "--agreement"),
    )
    assert [one.status for one in done] == [0, 0, 0, 0, 1], "\n".join(one.output for one in done if one.status)
    report = json.loads((tmp_path / "agreement" / "spacing_report.json").read_text())["cases"]
    for case in CASES:
        both, compared, folds = (read(tmp_path / f / f"{case}.nii.gz") for f in ("both", "agreement", "stock"))
        np.testing.assert_array_equal(compared, both)
        assert np.mean(folds == both) > 0.95  # exported networks are folds, whose logits nnU-Net averages
        score = report[case]["agreement"]["score"]
        assert f"\n{case}: agreement of 2 networks {score:.3f}, least about " in done[1].output
    assert "Agreement is below 1 in 2 of 2 case(s), the least first:\n  test_" in done[1].output
    assert "error: agreement needs two networks or more, got one (fold 0, network 1); name more" in done[4].output
    assert not (tmp_path / "one").exists()


def test_a_cascade_with_two_folds(trained, tmp_path):
    """The second stage with the first one's predictions, averaged over folds: as stock predicts it."""
    first = make_model(tmp_path / "first")
    first.add("a", 0, direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    first.add("b", 1)
    second = make_model(tmp_path / "second", change={"previous_stage": "3d_lowres"})
    checkpoint = torch.load(second.folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    generator = torch.Generator().manual_seed(1)
    for value in checkpoint["network_weights"].values():
        value += 0.1 * value.std(unbiased=False) * torch.randn(value.shape, generator=generator)
    (second.folder / "fold_1").mkdir()
    torch.save(checkpoint, second.folder / "fold_1" / "checkpoint_final.pth")

    def command(model, output, *more):
        return ("nnUNetv2_predict_from_modelfolder", "-m", model.folder, "-i", first.images, "-o", output, *FAST, *more)

    previous = tmp_path / "previous"
    one_by_one = ("-npp", 1, "-nps", 1)  # this command of nnU-Net does not know 0
    stage = ("-prev_stage_predictions", previous, "-npp", 0, "-nps", 0)
    done = trained.workspace.run_in_turn(
        command(first, previous, "-f", 0, *one_by_one),
        command(second, tmp_path / "stock", "-f", 0, 1, "-prev_stage_predictions", previous, *one_by_one),
        command(second, tmp_path / "fast", "-f", 0, 1, *stage, "--fast_export"),
        command(second, tmp_path / "one", "-f", 0, *stage, "--fast_export"),
        command(second, tmp_path / "coarse", "-f", 0, 1, *stage, "--target_spacing", 2, 2, 3, "--fast_export"),
    )
    assert [one.status for one in done] == [0] * 5, "\n".join(one.output for one in done if one.status)
    for name in ("a.nii.gz", "b.nii.gz"):
        expected = read(tmp_path / "stock" / name)
        assert len(np.unique(expected)) > 2
        assert (read(tmp_path / "fast" / name) != expected).mean() <= 1e-4
        assert (read(tmp_path / "one" / name) != expected).mean() > 1e-3  # one fold alone says something else
        assert same_geometry(tmp_path / "coarse" / name, first.images / name.replace(".nii", "_0000.nii"))


def test_a_broken_scan_costs_itself_and_the_exit_status_says_so(trained, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for file in (trained.workspace.raw / "imagesTs").iterdir():
        (images / file.name).symlink_to(file)
    (images / "test_00_0001.nii.gz").symlink_to(trained.workspace.raw / "imagesTs" / "test_0_0001.nii.gz")
    broken = images / "test_00_0000.nii.gz"
    broken.write_bytes(b"no image")
    command = from_model(trained, tmp_path / "out", "--fast_export", "-npp", 1, "-nps", 1, images=images)
    done = trained.workspace.run(*command, status=1)
    assert "1 of 3 case(s) failed; the others are done and kept." in done.output
    assert f"  test_00: {broken} cannot be read (" in done.output
    assert "Traceback" not in done.output.partition("case(s) failed")[2]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [f"{case}.nii.gz" for case in CASES]


def test_wrong_values_are_one_line(trained, tmp_path):
    workspace = trained.workspace
    done = workspace.run_in_turn(
        from_model(trained, tmp_path / "out", "--forced_spacing", 0, 1, 1),
        from_model(trained, tmp_path / "out", "--target_spacing", 1, 1, 900, "-npp", 0, "-nps", 0),
        from_model(trained, tmp_path / "out", "--max_voxels", 5, "--forced_spacing"),
    )
    assert [one.status for one in done] == [2, 1, 2]
    assert "forced spacing must be 3 positive values in mm, got 0.0 1.0 1.0" in done[0].last_line
    assert "leaves 0 voxel(s) along z (47.5 mm resampled to 900 mm)" in done[1].output
    assert done[2].last_line.endswith("argument --forced_spacing: not allowed with argument --max_voxels")


def test_without_the_plugin_the_options_are_unknown(trained, tmp_path):
    command = from_model(trained, tmp_path / "out", "--fast_export")
    done = trained.workspace.run(*command, status=2, NNUNET_EXT_DISABLE="1")
    assert done.last_line.endswith("error: unrecognized arguments: --fast_export")


def test_a_killed_run_is_continued(trained, tmp_path):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for number in range(8):
        for channel in ("0000", "0001"):
            source = trained.workspace.raw / "imagesTs" / f"{CASES[number % 2]}_{channel}.nii.gz"
            (images / f"case_{number}_{channel}.nii.gz").symlink_to(source)
    command = from_model(trained, output, "--target_spacing", 0.4, 0.4, 0.5, "-npp", 0, "-nps", 0, images=images)
    words = [find_command(str(command[0])), *(str(word) for word in command[1:])]
    process = subprocess.Popen(
        words,
        env=trained.workspace.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    report = output / "spacing_report.json"  # written after the prediction
    while not (report.is_file() and '"case_1"' in report.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}
    assert 2 <= len(finished) < 8
    for name in finished:
        read(output / name)  # whole
    done = trained.workspace.run(*command, "--continue_prediction")
    assert f"That's {8 - len(finished)} cases." in done.output
    for name, when in finished.items():
        assert (output / name).stat().st_mtime_ns == when
    names = sorted(path.name for path in output.glob("*.nii.gz"))
    assert names == [f"case_{number}.nii.gz" for number in range(8)]
    assert not list(output.glob(".partial_*"))
    assert sorted(json.loads(report.read_text())["cases"]) == [f"case_{number}" for number in range(8)]
