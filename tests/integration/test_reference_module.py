"""The data of the reference module by nnU-Net's own commands: planned, preprocessed, trained, predicted."""

import json

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from reference import tiny

pytestmark = pytest.mark.integration

GLOBAL = ("-fpe", "GlobalIntensityFingerprintExtractor")
PLANS = "ReferencePlans"
TRAINER = "nnUNetTrainerNarrow"
OWN = tiny.narrow_trainers(nnUNetTrainerNarrow="nnUNetTrainerCPS_TransUNet_DeepLabV3Plus_1epochs_2iterations")


@pytest.fixture(scope="module")
def ct(new_workspace):
    """Five labelled and two unlabelled scans of CT, planned and preprocessed."""
    workspace = new_workspace("Dataset908_CT")
    workspace.write_dataset({"background": 0, "large": 1, "small": 2}, modalities=("CT",), extra=2)
    workspace.plan_and_preprocess("ReferencePlanner", ("2d",), more=GLOBAL)
    workspace.add_small_configurations(PLANS)
    return workspace


def test_plans_data_training_and_prediction(ct, tmp_path):
    (tmp_path / "narrow.py").write_text(OWN)
    plans = json.loads((ct.preprocessed / f"{PLANS}.json").read_text())
    assert set(plans["configurations"]) == {"2d", "2d_tiny"}
    data, *_ = nnUNetDatasetBlosc2(str(ct.preprocessed / f"{PLANS}_2d")).load_case("case_0")
    image, position = data[:]
    assert image.mean() == pytest.approx(0.05, abs=0.02)  # Hounsfield units / 1000
    first = position[:, 0, 0]
    np.testing.assert_array_equal(position, np.broadcast_to(first[:, None, None], position.shape))
    np.testing.assert_allclose(np.diff(first), 1 / (len(first) - 1), atol=1e-6)  # nothing was cropped, feet first
    refused = ("2d_tiny", "3d_fullres")
    output, which = ct.root / "predicted", ("-d", ct.number, "-c", "2d_tiny", "-f", 0, "-tr", TRAINER, "-p", PLANS)
    stock, in_3d, preprocessed, trained, predicted = ct.run_in_turn(
        ct.train(refused[0], trainer="nnUNetTrainer", plans=PLANS),
        ct.train(refused[1], trainer=TRAINER, plans=PLANS),
        ["nnUNetv2_preprocess", "-d", ct.number, "-plans_name", PLANS, "-c", "3d_fullres", "-np", 1],
        ct.train("2d_tiny", trainer=TRAINER, plans=PLANS),
        ct.predict(output, *which, "--fast_export", "--network", "both"),
        nnUNet_extTrainer=str(tmp_path),
    )
    assert (stock.status, in_3d.status, preprocessed.status) == (1, 1, 1)
    assert "error: data of the plans ReferencePlans hold the position of slices and CT" in stock.last_line
    for done in (in_3d, preprocessed):
        assert "have no configuration 3d_fullres: networks of the reference module are 2D" in done.output
    assert not ct.model("nnUNetTrainer", "2d_tiny", PLANS).exists()
    assert trained.status == 0, trained.output
    left_out = "CT in Hounsfield units (channel 0): multiplicative brightness, contrast, gamma and inverted gamma"
    assert trained.output.count(left_out) == 1
    assert predicted.status == 0, predicted.output
    folder = ct.model(TRAINER, "2d_tiny", PLANS) / "fold_0"
    assert json.loads((folder / "validation" / "summary.json").read_text())["foreground_mean"]
    assert len(list(output.glob("test_*.nii.gz"))) == 2
    configurations = json.loads((folder.parent / "plans.json").read_text())["configurations"]
    assert configurations["2d"]["preprocessor_name"] == "ReferencePreprocessor"
    written = configurations["2d_tiny"]
    for key, network in (("architecture", "transunet.TransUNet"), ("architecture_2", "deeplab.DeepLabV3Plus")):
        assert written[key]["network_class_name"] == f"nnunet_ext.networks.{network}"
        assert len(written[key]["arch_kwargs"]["windows"]) == 3
        assert written[key]["arch_kwargs"]["position"]
