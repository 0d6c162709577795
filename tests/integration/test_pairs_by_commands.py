"""Two different networks by nnU-Net's commands: trained, stopped, continued, validated, and predicted with."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

pytestmark = pytest.mark.integration

TRAINER = "nnUNetTrainerPair"
# After one epoch the first training ends as one that is stopped; the second one goes on.
OWN = """
from pathlib import Path

from nnunet_ext.trainers import find_trainer


class nnUNetTrainerPair(find_trainer("nnUNetTrainerCPS_UNet_ANUNet_2epochs_1iterations")):
    anu_aggregation = "sum"

    def on_epoch_end(self):
        self.save_every = 1
        super().on_epoch_end()
        stopped = Path(self.output_folder) / "stopped"
        if not stopped.exists():
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
    folder = tmp_path_factory.mktemp("pair")
    (folder / "pair.py").write_text(OWN)
    workspace = replace(blobs, variables={"nnUNet_results": str(folder / "results")})
    train = workspace.train("2d_tiny", trainer=TRAINER)
    plans = ("-d", workspace.number, "-c", "2d_tiny", "-p", "SemiSupervisedPlans")
    which = (*plans, "-tr", TRAINER, "-f", 0, "-npp", 0, "-nps", 0)
    model = workspace.model(TRAINER, "2d_tiny")
    commands = {
        "started": train,
        "continued": [*train, "--c"],
        "validated": [*train, "--val"],
        "default": workspace.predict(folder / "default", *which),
        **{name: workspace.predict(folder / name, *which, "--network", name) for name in ("1", "2", "both")},
        "fast": workspace.predict(folder / "fast", *which, "--network", "both", "--fast_export", "--agreement"),
        "first": ["nnUNetv2_ext", "export", "-m", model, "-o", folder / "plain", "--network", "1"],
        "second": ["nnUNetv2_ext", "export", "-m", model, "-o", folder / "other", "--network", "2"],
        "none": workspace.predict(folder / "none", "-f", 0, "--network", "2", model=folder / "plain"),
    }
    done = workspace.run_in_turn(*commands.values(), nnUNet_extTrainer=str(folder))
    found = dict(zip(commands, done, strict=True))
    status = {name: one.status for name, one in found.items()}
    return Run({name: one.output for name, one in found.items()}, status, model, folder)


def predictions(folder: Path) -> list[np.ndarray]:
    files = sorted(folder.glob("test_*.nii.gz"))
    assert len(files) == 2
    return [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in files]


def probabilities(folder: Path) -> np.ndarray:
    return np.load(folder / "test_0.npz")["probabilities"]


def test_it_goes_on_where_it_was_stopped_and_validates_both(run):
    statuses = [run.status[name] for name in ("started", "continued", "validated")]
    assert statuses == [1, 0, 0], run.output["continued"]
    assert re.findall(r"Epoch (\d+) ?\n", run.output["continued"]) == ["1"]
    for name in ("continued", "validated"):
        assert re.search(r"Mean validation Dice: network 1 [\d.]+, network 2 [\d.]+, average", run.output[name])
    for name in ("validation", "validation_network_2", "validation_average"):
        assert (run.model / "fold_0" / name / "summary.json").is_file()
    plans = json.loads((run.model / "plans.json").read_text())["configurations"]["2d_tiny"]
    assert plans["architecture"]["network_class_name"].endswith("PlainConvUNet")
    assert plans["architecture_2"]["network_class_name"].endswith("NestedAttentionUNet")
    assert plans["architecture_2"]["arch_kwargs"]["aggregation"] == "sum"


def test_any_of_the_networks_predicts(run):
    for name in ("default", "1", "2", "both", "fast"):
        assert run.status[name] == 0, run.output[name]
    for default, first in zip(*(predictions(run.folder / name) for name in ("default", "1")), strict=True):
        np.testing.assert_array_equal(default, first)
    one, two, both = (probabilities(run.folder / name) for name in ("1", "2", "both"))
    assert np.abs(one - two).max() > 0.05
    assert np.abs(both - (one + two) / 2).max() < 0.02 < np.abs(both - one).max()
    for fast, slow in zip(*(predictions(run.folder / name) for name in ("fast", "both")), strict=True):
        assert np.mean(fast == slow) > 0.999
    report = json.loads((run.folder / "fast" / "spacing_report.json").read_text())
    assert len(report["cases"]["test_0"]["agreement"]["networks"]) == 2


def test_export_says_which_network_needs_the_plugin(run):
    assert (run.status["first"], run.status["second"]) == (0, 1)
    assert "so network 2 needs nnunet_ext (" in run.output["second"]
    assert "Traceback" not in run.output["second"]
    exported = json.loads((run.folder / "plain" / "plans.json").read_text())["configurations"]["2d_tiny"]
    assert "architecture_2" not in exported


def test_a_model_of_one_network_has_no_second_one(run):
    assert run.status["none"] == 1
    assert "(of nnUNetTrainer) has no second network; predict with --network 1" in run.output["none"]
    assert "Traceback" not in run.output["none"]
    assert not (run.folder / "none").exists()
