"""Mask propagation by nnU-Net's own commands and ours: trained, behind a prediction, and from annotated slices."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
from inference.tiny_model import make_model
from inference.tiny_propagation import make_propagation_model
from reference import tiny

from nnunet_ext.evaluation.command import find_command

pytestmark = pytest.mark.integration

PLANS = "PropagationTestPlans"  # the planner's, with a patch of multiples of 16
SEGMENTS, CARRIES = "nnUNetTrainerCPS_1epochs_2iterations", "nnUNetTrainerCarries"
OWN = tiny.narrow_trainers(nnUNetTrainerCarries="nnUNetTrainerPropagation_1epochs_2iterations")
SLICES = (8, 12, 16)  # numbers of the annotated ones


def read(path):
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def test_trained_behind_a_prediction_and_from_annotated_slices(blobs, prepared, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    content = json.loads((blobs.preprocessed / "SemiSupervisedPlans.json").read_text()) | {"plans_name": PLANS}
    content["configurations"]["2d_tiny"]["patch_size"] = [32, 32]
    (blobs.preprocessed / f"{PLANS}.json").write_text(json.dumps(content))
    workspace = replace(blobs, variables={"nnUNet_results": str(tmp_path / "results")})
    carrier = workspace.model(CARRIES, "2d_tiny", PLANS)
    labels = workspace.write_test_labels(tmp_path / "labels")
    which = ("-d", workspace.number, "-c", "2d_tiny", "-p", PLANS, "-tr", SEGMENTS, "-f", 0, "-npp", 0, "-nps", 0)
    alone = ("-d", workspace.number, "-c", "2d_tiny", "-p", PLANS, "-tr", CARRIES, "-f", 0, "-npp", 0, "-nps", 0)
    annotate = ["nnUNetv2_ext", "propagate", "-m", carrier, "-i", workspace.raw / "imagesTs", "-l", labels]
    annotate += ["-device", "cpu", "-npp", 0, "-nps", 0, "-o", tmp_path / "annotated", "--slices", *SLICES]
    done = workspace.run_in_turn(
        workspace.train("2d_tiny", trainer=SEGMENTS, plans=PLANS),
        workspace.train("2d_tiny", trainer=CARRIES, plans=PLANS),
        workspace.predict(tmp_path / "stock", *which),
        workspace.predict(
            tmp_path / "both", *which[:-4], "-npp", 1, "-nps", 1, "--propagate", carrier, "--network", "both"
        ),
        workspace.predict(tmp_path / "alone", *alone),
        workspace.predict(tmp_path / "none", *which, "--propagate", workspace.model(SEGMENTS, "2d_tiny", PLANS)),
        [*annotate, "--suggest", 2, "--figure"],
        nnUNet_extTrainer=str(tmp_path),
    )
    assert [one.status for one in done] == [0, 0, 0, 0, 1, 1, 0], "\n".join(one.output for one in done)
    assert "a propagation model segments nothing alone" in done[4].output
    assert (
        "is no propagation model: nnUNetTrainerCPS_1epochs_2iterations has trained a PlainConvUNet" in done[5].last_line
    )
    assert not (tmp_path / "none").exists()
    records = json.loads((tmp_path / "both" / "spacing_report.json").read_text())["cases"]
    assert sorted(records) == ["test_0", "test_1"]
    for case, record in records.items():
        found = read(tmp_path / "both" / f"{case}.nii.gz")
        assert record["propagation"]["slices"] == 3  # a fifth of the 19 slices that are not black
        for number in record["propagation"]["references"]:
            assert found[number - 1].any()
        with np.load(tmp_path / "both" / f"{case}.npz") as probabilities:
            assert probabilities["probabilities"].shape == (3, *found.shape)
        given, annotated = read(labels / f"{case}.nii.gz"), read(tmp_path / "annotated" / f"{case}.nii.gz")
        for number in SLICES:
            np.testing.assert_array_equal(annotated[number - 1], given[number - 1])
        assert (tmp_path / "annotated" / f"{case}.png").is_file()
    assert any(record["propagation"]["references"] for record in records.values())
    suggested = json.loads((tmp_path / "annotated" / "suggestions.json").read_text())
    assert all(len(slices) == 2 for slices in suggested.values())
    assert not {one["slice"] for slices in suggested.values() for one in slices} & set(SLICES)


def test_a_killed_run_is_continued(blobs, prepared, tmp_path):
    model = make_model(tmp_path / "segments", "2d")
    carrier = make_propagation_model(tmp_path / "carries")
    for number in range(6):
        model.add(f"case_{number}", number, shape=(60, 64, 64))
    output = tmp_path / "out"
    command = ["nnUNetv2_predict_from_modelfolder", "-m", model.folder, "-f", 0, "-i", model.images, "-o", output]
    command += ["--disable_tta", "-device", "cpu", "-npp", 0, "-nps", 0, "--propagate", carrier]
    words = [find_command(str(command[0])), *(str(word) for word in command[1:])]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(words, env=blobs.environment(), **quiet)
    deadline, report = time.monotonic() + 120, output / "spacing_report.json"
    while not (report.is_file() and '"case_1"' in report.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in output.glob("*.nii.gz")}
    assert 2 <= len(finished) < 6
    done = blobs.run(*command, "--continue_prediction")
    assert f"That's {6 - len(finished)} cases." in done.output
    for name, when in finished.items():
        assert (output / name).stat().st_mtime_ns == when
    assert len(list(output.glob("*.nii.gz"))) == 6
    records = json.loads(report.read_text())["cases"]
    assert sorted(records) == [f"case_{number}" for number in range(6)]
    assert all(record["propagation"]["slices"] == 12 for record in records.values())
    assert not list(output.glob(".partial_*"))
