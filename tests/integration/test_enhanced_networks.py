"""A trainer of a user's own with enhanced skip connections, driven by nnU-Net's commands from start to prediction."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

pytestmark = pytest.mark.integration

PLANS = "SemiSupervisedPlans"
TRAINER = "nnUNetTrainerTexture"
# After two epochs the first training ends as one that is stopped; the second one goes on.
OWN = """
from pathlib import Path

from nnunet_ext.trainers import find_trainer


class nnUNetTrainerTexture(find_trainer("nnUNetTrainerCWCD_IFEEntropy_3epochs_2iterations")):
    ife_stages = (0, 1)
    ife_ratios = (0.5, 0.25)

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
    """What the commands printed, and where the model and the predictions lie."""

    started: str
    continued: str
    predicted: str
    drawn: str
    model: Path
    predictions: Path


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("texture")
    (folder / "texture.py").write_text(OWN)
    workspace = replace(trained.workspace, variables={"nnUNet_results": str(folder / "results")})
    train = workspace.train("3d_tiny", trainer=TRAINER)
    weights = trained.model / "fold_0" / "checkpoint_final.pth"
    which = ("-d", workspace.number, "-c", "3d_tiny", "-p", PLANS, "-tr", TRAINER, "-f", 0)
    model = workspace.model(TRAINER)
    case = workspace.raw / "imagesTs" / "test_0_0000.nii.gz"
    started, continued, predicted, drawn = workspace.run_in_turn(
        [*train, "-pretrained_weights", weights],
        [*train, "--c"],
        workspace.predict(folder / "out", *which, "-npp", 0, "-nps", 0),
        ["nnUNetv2_ext", "ife", "-m", model, "-i", case, "-o", folder / "ife.png"],
        nnUNet_extTrainer=str(folder),
    )
    assert started.status == 1, started.output
    for done in (continued, predicted, drawn):
        assert done.status == 0, done.output
    return Run(started.output, continued.output, predicted.output, drawn.output, model, folder / "out")


def test_weights_of_a_plain_network_begin_it(run):
    assert "IFE at encoder stage 0: 2 of 4 channels by entropy" in run.started
    assert "IFE at encoder stage 1: 2 of 8 channels by entropy" in run.started
    assert re.search(
        r"Pretrained weights of a plain network: added input channels are zero in \['decoder\.", run.started
    )
    assert "KeyboardInterrupt: stopped by the user" in run.started


def test_it_goes_on_where_it_was_stopped(run):
    assert re.findall(r"Epoch (\d+) ?\n", run.started) == ["0", "1"]
    assert re.findall(r"Epoch (\d+) ?\n", run.continued) == ["2"]
    checkpoint = torch.load(run.model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert (checkpoint["trainer_name"], checkpoint["current_epoch"]) == (TRAINER, 3)
    assert (run.model / "fold_0" / "validation" / "summary.json").is_file()


def test_plans_beside_the_model_say_what_was_trained(run):
    plans = json.loads((run.model / "plans.json").read_text())
    architecture = plans["configurations"]["3d_tiny"]["architecture"]
    assert architecture["network_class_name"] == "nnunet_ext.networks.ife_unet.IFEPlainConvUNet"
    assert architecture["arch_kwargs"]["ife_stages"] == [0, 1]
    assert architecture["arch_kwargs"]["ife_ratios"] == [0.5, 0.25]


def test_the_stock_command_predicts(run):
    for number in range(2):
        found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(run.predictions / f"test_{number}.nii.gz")))
        assert set(np.unique(found)) <= {0, 1, 2}
        with np.load(run.predictions / f"test_{number}.npz") as file:
            probabilities = file["probabilities"]
        assert probabilities.shape == (3, *found.shape)
        np.testing.assert_allclose(probabilities.astype(np.float32).sum(0), 1, atol=0.01)


def test_the_picture_of_what_it_selects(run):
    assert "encoder stage 0: channels " in run.drawn
    assert (run.predictions.parent / "ife.png").stat().st_size > 10_000
