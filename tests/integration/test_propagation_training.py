"""A narrow propagation network by nnU-Net's commands: trained, stopped, continued, validated."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from reference import tiny

pytestmark = pytest.mark.integration

TRAINER = "nnUNetTrainerCarry"
# After one epoch the first training ends as one that is stopped; the second one goes on.
OWN = (
    tiny.narrow_trainers(nnUNetTrainerNarrow="nnUNetTrainerPropagation_2epochs_2iterations")
    + """

class nnUNetTrainerCarry(nnUNetTrainerNarrow):
    def on_epoch_end(self):
        from pathlib import Path

        self.save_every = 1
        super().on_epoch_end()
        stopped = Path(self.output_folder) / "stopped"
        if not stopped.exists():
            stopped.touch()
            raise KeyboardInterrupt("stopped by the user")
"""
)


@dataclass(frozen=True)
class Run:
    """What the commands printed, by name, and where things lie."""

    output: dict[str, str]
    status: dict[str, int]
    last_lines: dict[str, str]
    model: Path


@pytest.fixture(scope="module")
def run(prepared, blobs, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("carry")
    (folder / "carry.py").write_text(OWN)
    workspace = replace(blobs, variables={"nnUNet_results": str(folder / "results")})
    train = workspace.train("2d_tiny", trainer=TRAINER)
    which = ("-d", workspace.number, "-c", "2d_tiny", "-p", "SemiSupervisedPlans", "-tr", TRAINER, "-f", 0)
    commands = {
        "volumes": workspace.train("3d_tiny", trainer=TRAINER),
        "started": train,
        "continued": [*train, "--c"],
        "validated": [*train, "--val", "--npz"],
        "alone": workspace.predict(folder / "alone", *which, "-npp", 0, "-nps", 0),
    }
    done = workspace.run_in_turn(*commands.values(), nnUNet_extTrainer=str(folder))
    found = dict(zip(commands, done, strict=True))
    return Run(
        {name: one.output for name, one in found.items()},
        {name: one.status for name, one in found.items()},
        {name: one.last_line for name, one in found.items()},
        workspace.model(TRAINER, "2d_tiny"),
    )


def test_a_stopped_training_goes_on_and_is_validated(run):
    assert run.status["continued"] == 0, run.output["continued"]
    assert run.status["validated"] == 0, run.output["validated"]
    assert "stopped by the user" in run.output["started"]
    fold = run.model / "fold_0"
    assert (fold / "progress.png").is_file()
    (case,) = (file.name.removesuffix(".nii.gz") for file in (fold / "validation").glob("*.nii.gz"))
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert np.isfinite(summary["foreground_mean"]["Dice"])
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(fold / "validation" / f"{case}.nii.gz")))
    with np.load(fold / "validation" / f"{case}.npz") as content:
        assert content["probabilities"].shape == (3, *found.shape)
    said = re.search(
        r"This validation measured propagation alone: (\d) of (\d+) slices .*largest", run.output["validated"]
    )
    assert 1 <= int(said[1]) <= 2 < int(said[2])


def test_the_slices_that_were_given_are_as_they_were(run, blobs):
    """In each class's largest slice there is the truth; slices are those of the 2d configuration."""
    (file,) = (run.model / "fold_0" / "validation").glob("*.nii.gz")
    truth = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(blobs.raw / "labelsTr" / file.name)))
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
    plans = json.loads((run.model / "plans.json").read_text())
    truth, found = (array.transpose(plans["transpose_forward"]) for array in (truth, found))
    for label in (1, 2):
        largest = (truth == label).sum((1, 2)).argmax()
        assert (found[largest] == truth[largest]).all()


def test_what_does_not_fit_is_said_in_a_sentence(run):
    assert run.status["volumes"] == 1
    assert "error: Propagation carries masks from slice to slice, but the patches of" in run.last_lines["volumes"]
    assert run.status["alone"] == 1
    assert "a propagation model segments nothing alone" in run.output["alone"]
    plans = json.loads((run.model / "plans.json").read_text())
    architecture = plans["configurations"]["2d_tiny"]["architecture"]
    assert architecture["network_class_name"] == "nnunet_ext.networks.space_time.SpaceTimeNetwork"
