"""Narrow 2D networks of the reference module, driven by nnU-Net's commands on plans of another planner."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from reference import tiny

# test_reference_module.py drives both as a pair in the default run
pytestmark = [pytest.mark.integration, pytest.mark.slow]

PLANS = "SixteenPlans"  # the planner's, with a patch of multiples of 16
OWN = tiny.narrow_trainers(
    nnUNetTrainerSlices="nnUNetTrainerTransUNet_1epochs_2iterations",
    nnUNetTrainerSmall="nnUNetTrainerDeepLabV3Plus_1epochs_2iterations",
)
TRAINERS = ("nnUNetTrainerSlices", "nnUNetTrainerSmall")


@dataclass(frozen=True)
class Run:
    """What the commands printed, and where models and predictions lie."""

    refused: list[str]
    exported: dict[str, str]
    models: dict[str, Path]
    predictions: Path


@pytest.fixture(scope="module")
def run(blobs, prepared, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("slices")
    (folder / "slices.py").write_text(OWN)
    content = json.loads((blobs.preprocessed / "SemiSupervisedPlans.json").read_text()) | {"plans_name": PLANS}
    content["configurations"]["2d_tiny"]["patch_size"] = [32, 48]
    (blobs.preprocessed / f"{PLANS}.json").write_text(json.dumps(content))
    workspace = replace(blobs, variables={"nnUNet_results": str(folder / "results")})
    commands: list = [
        workspace.train("3d_tiny", trainer=TRAINERS[0], plans=PLANS),
        workspace.train("2d", trainer=TRAINERS[1], plans=PLANS),
    ]
    models = {name: workspace.model(name, "2d_tiny", PLANS) for name in TRAINERS}
    for name, model in models.items():
        which = ("-d", workspace.number, "-c", "2d_tiny", "-p", PLANS, "-tr", name, "-f", 0, "-npp", 0, "-nps", 0)
        commands += [
            workspace.train("2d_tiny", trainer=name, plans=PLANS),
            workspace.predict(folder / "out" / name, *which),
            ["nnUNetv2_ext", "export", "-m", model, "-o", folder / "exported"],
        ]
    done = workspace.run_in_turn(*commands, nnUNet_extTrainer=str(folder))
    assert [one.status for one in done] == [1, 1, 0, 0, 1, 0, 0, 1], "\n".join(one.output for one in done)
    exported = dict(zip(TRAINERS, (done[4].last_line, done[7].last_line), strict=True))
    return Run([one.last_line for one in done[:2]], exported, models, folder / "out")


def test_what_does_not_fit_is_said_in_a_sentence(run):
    assert "error: TransUNet is a 2D network, but the patches of this configuration are" in run.refused[0]
    assert "error: DeepLabV3Plus takes patches whose sides are multiples of 16, but" in run.refused[1]
    assert "-pl ReferencePlanner" in run.refused[1]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_it_is_validated_and_predicts(run, trainer):
    assert (run.models[trainer] / "fold_0" / "validation" / "summary.json").is_file()
    for number in range(2):
        file = run.predictions / trainer / f"test_{number}.nii.gz"
        found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        assert set(np.unique(found)) <= {0, 1, 2}
        with np.load(file.with_name(f"test_{number}.npz")) as probabilities:
            assert probabilities["probabilities"].shape == (3, *found.shape)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_plans_beside_the_model_name_the_network_and_export_says_what_it_needs(run, trainer):
    network = {"nnUNetTrainerSlices": "transunet.TransUNet", "nnUNetTrainerSmall": "deeplab.DeepLabV3Plus"}[trainer]
    plans = json.loads((run.models[trainer] / "plans.json").read_text())
    architecture = plans["configurations"]["2d_tiny"]["architecture"]
    assert architecture["network_class_name"] == f"nnunet_ext.networks.{network}"
    assert f"{network}, which plain nnU-Net does not have; predict with it where" in run.exported[trainer]
