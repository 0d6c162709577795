"""Models that version 0.1.0 trained: they predict what they predicted then, and their trainings go on.

Each folder of ``reference/models_of_0_1_0`` is a model folder of a training of one epoch on the dataset of
``reference/tiny.py``, with the logits that 0.1.0 predicted for two slices of an image of noise.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from reference import tiny

from nnunet_ext.data.plans import load_configuration
from nnunet_ext.inference import Predictor
from nnunet_ext.trainers.names import find_trainer

MODELS = sorted((Path(__file__).parents[1] / "reference" / "models_of_0_1_0").iterdir())
SLICES = slice(8, 10)


@pytest.fixture(params=MODELS, ids=lambda folder: "__".join(folder.name.split("__")[::2]))
def model(request) -> Path:
    return request.param


def test_they_predict_as_then(model):
    predictor = Predictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), ("all",), "checkpoint_final.pth")
    image = np.random.default_rng(5).normal(0, 1, (1, 18, 16, 18)).astype(np.float32)
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(image)).float().numpy()[:, SLICES]
    # fp16 is what nnU-Net sums up windows in; other processors round otherwise.
    np.testing.assert_allclose(logits, np.load(model / "logits.npz")["logits"], rtol=0, atol=2e-2)


def test_their_training_goes_on(model, tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "0")
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, folder: None)
    tiny.make(tmp_path)
    name, _, configuration = model.name.split("__")
    plans = json.loads((model / "plans.json").read_text()) | {"continue_training": True}
    dataset_json = json.loads((model / "dataset.json").read_text())
    trainer = find_trainer(name)(plans, configuration, "all", dataset_json, torch.device("cpu"))
    trainer.initialize()
    trainer.load_checkpoint(str(model / "fold_all" / "checkpoint_final.pth"))
    saved = torch.load(model / "fold_all" / "checkpoint_final.pth", weights_only=False)
    assert trainer.current_epoch == saved["current_epoch"] == 1
    weights = trainer.network.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in saved["network_weights"].items())
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    trainer.network.train()
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres", "3d_cascade_fullres"])
def test_their_plans_pass_the_checks(tmp_path, configuration):
    (tmp_path / "TinyPlans.json").write_text((MODELS[0] / "plans.json").read_text())
    _, loaded = load_configuration(tmp_path, "TinyPlans", configuration)
    assert loaded.spacing == [1.0] * (2 if configuration == "2d" else 3)
