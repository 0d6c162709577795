"""ANU-Net by nnU-Net's commands: planned, trained, stopped, continued, predicted whole and cut, compared, written."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

pytestmark = pytest.mark.integration

PLANS = "ANUNetPlans"
TRAINER = "nnUNetTrainerNest"
# After two epochs the first training ends as one that is stopped; the second one goes on.
OWN = """
from pathlib import Path

from nnunet_ext.trainers import find_trainer


class nnUNetTrainerNest(find_trainer("nnUNetTrainerANUNet_3epochs_2iterations")):
    anu_aggregation = "sum"

    def on_epoch_end(self):
        self.save_every = 1
        super().on_epoch_end()
        stopped = Path(self.output_folder) / "stopped"
        if self.current_epoch == 2 and not stopped.exists():
            stopped.touch()
            raise KeyboardInterrupt("stopped by the user")
"""


@dataclass(frozen=True)
class Run:
    """What the commands printed, by name, and where things lie."""

    output: dict[str, str]
    status: dict[str, int]
    model: Path
    folder: Path


@pytest.fixture(scope="module")
def run(prepared, blobs, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("nest")
    (folder / "nest.py").write_text(OWN)
    planned = blobs.plan_and_preprocess("ANUNetPlanner")
    blobs.add_small_configurations(PLANS)
    workspace = replace(blobs, variables={"nnUNet_results": str(folder / "results")})
    train = workspace.train("3d_tiny", trainer=TRAINER, plans=PLANS)
    which = ("-d", workspace.number, "-c", "3d_tiny", "-p", PLANS, "-tr", TRAINER, "-f", 0, "-npp", 0, "-nps", 0)
    model = workspace.model(TRAINER, plans=PLANS)
    case = workspace.raw / "imagesTs" / "test_0_0000.nii.gz"
    prune = ["nnUNetv2_ext", "prune", "-d", workspace.number, "-c", "3d_tiny", "-tr", TRAINER, "-device", "cpu"]
    prune += ["-npp", 1, "-nps", 1, "--no_pbar", "--tolerance", 1]
    commands = {
        "started": train,
        "continued": [*train, "--c"],
        "whole": workspace.predict(folder / "whole", *which),
        "cut": workspace.predict(folder / "cut", *which, "--prune_depth", 1),
        "too deep": workspace.predict(folder / "deep", *which, "--prune_depth", 9),
        "zero": workspace.predict(folder / "zero", *which, "--prune_depth", 0),
        "compared": [*prune, "--write", folder / "written"],
        "again": prune,
        "written": workspace.predict(folder / "short", "-f", 0, model=folder / "written"),
        "drawn": ["nnUNetv2_ext", "attention", "-m", model, "-i", case, "-o", folder / "attention.png"],
    }
    done = workspace.run_in_turn(*commands.values(), nnUNet_extTrainer=str(folder))
    found = dict(zip(commands, done, strict=True))
    output = {name: one.output for name, one in found.items()} | {"planned": planned.output}
    return Run(output, {name: one.status for name, one in found.items()}, model, folder)


def predictions(folder: Path) -> list[np.ndarray]:
    files = sorted(folder.glob("test_*.nii.gz"))
    assert len(files) == 2
    return [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in files]


def test_planning_says_what_a_step_takes(run):
    assert "GPU memory that a training step of ANU-Net allocates" in run.output["planned"]
    assert re.search(r"3d_fullres: \d+\.\d GB \(patch ", run.output["planned"])


def test_it_goes_on_where_it_was_stopped(run):
    assert (run.status["started"], run.status["continued"]) == (1, 0), run.output["continued"]
    assert re.findall(r"Epoch (\d+) ?\n", run.output["started"]) == ["0", "1"]
    assert re.findall(r"Epoch (\d+) ?\n", run.output["continued"]) == ["2"]
    checkpoint = torch.load(run.model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert (checkpoint["trainer_name"], checkpoint["current_epoch"]) == (TRAINER, 3)
    kwargs = json.loads((run.model / "plans.json").read_text())["configurations"]["3d_tiny"]["architecture"][
        "arch_kwargs"
    ]
    assert kwargs["aggregation"] == "sum"
    assert kwargs["depth"] == kwargs["n_stages"] - 1


def test_the_stock_command_predicts_whole_and_cut(run):
    assert (run.status["whole"], run.status["cut"]) == (0, 0), run.output["cut"]
    whole, cut = (predictions(run.folder / name) for name in ("whole", "cut"))
    assert any((one != other).any() for one, other in zip(whole, cut, strict=True))
    report = json.loads((run.folder / "cut" / "spacing_report.json").read_text())
    assert report["cases"]["test_0"]["predicted_with"]["prune_depth"] == 1


def test_a_wrong_depth_is_one_line(run):
    assert run.status["too deep"] == 1
    deepest = json.loads((run.model / "plans.json").read_text())["configurations"]["3d_tiny"]["architecture"]
    limit = deepest["arch_kwargs"]["depth"]
    assert f"error: prune depth must lie between 1 and {limit}, the depth of the model " in run.output["too deep"]
    assert "Traceback" not in run.output["too deep"]
    assert run.status["zero"] == 2
    assert "--prune_depth: expected a depth of 1 or more, got '0'" in run.output["zero"]


def test_the_depths_are_compared_on_the_validation_cases(run):
    assert run.status["compared"] == 0, run.output["compared"]
    assert "Recommended: depth 1, the shallowest whose mean Dice is at most 1 below depth" in run.output["compared"]
    found = json.loads((run.model / "fold_0" / "prune" / "prune.json").read_text())
    assert len(found["cases"]) == 1
    validation = json.loads((run.model / "fold_0" / "validation" / "summary.json").read_text())
    deepest = found["depths"][max(found["depths"])]
    for label, name in (("1", "large"), ("2", "small")):
        for measure in ("dice", "iou"):
            expected = validation["mean"][label][{"dice": "Dice", "iou": "IoU"}[measure]]
            assert deepest["classes"][name][measure] == pytest.approx(expected)
    sizes = [one["parameters"] for one in found["depths"].values()]
    assert sizes == sorted(sizes)
    assert all(one["seconds"] > 0 and one["peak_memory_mb"] > 0 for one in found["depths"].values())
    assert (run.model / "fold_0" / "prune" / "prune.png").stat().st_size > 10_000


def test_what_is_done_is_kept(run):
    assert run.status["again"] == 0
    lines = [one.split("\n\nWrote ")[0] for one in (run.output["compared"], run.output["again"])]
    assert lines[0] == lines[1]  # seconds and memory included, which no second measurement would give


def test_the_written_model_needs_no_option(run):
    assert run.status["written"] == 0, run.output["written"]
    cut, short = (predictions(run.folder / name) for name in ("cut", "short"))
    for one, other in zip(cut, short, strict=True):
        assert np.array_equal(one, other)


def test_the_picture_of_the_gates(run):
    assert run.status["drawn"] == 0, run.output["drawn"]
    assert re.search(r"X\(0,0\) into X\(0,1\): mean 0\.\d{3}, 0\.\d{3} to \d\.\d{3}", run.output["drawn"])
    assert (run.folder / "attention.png").stat().st_size > 10_000
