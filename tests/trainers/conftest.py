"""Trainers on a tiny preprocessed dataset, without loader processes."""

import warnings

import pytest
import torch
from nnunetv2.training.logging.nnunet_logger import MetaLogger
from reference import tiny

from nnunet_ext.trainers import propagation, reference_2d
from nnunet_ext.trainers.names import find_trainer


@pytest.fixture
def narrow_networks(monkeypatch):
    """Let the 2D networks be small enough for unit tests."""
    for part, settings in tiny.NARROW.items():
        for name, value in settings.items():
            module = propagation if hasattr(propagation, part) else reference_2d
            monkeypatch.setattr(getattr(module, part), name, value)


@pytest.fixture
def environment(tmp_path, monkeypatch, narrow_networks):
    """Set nnU-Net's folders to temporary ones and loading to this process."""
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    for name in ("nnUNet_ext_seed", "nnUNet_ext_cpu_bf16", "nnUNet_extTrainer"):
        monkeypatch.delenv(name, raising=False)
    # nnU-Net's picture of 30 x 54 inches takes seconds; the test that looks at it puts it back.
    monkeypatch.setattr(MetaLogger, "plot_progress_png", lambda self, folder: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # nnU-Net and its dependencies warn of their own deprecations while they train.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture
def make_trainer(environment):
    """Make a trainer by name; the first call also writes the dataset."""

    def make(name="nnUNetTrainerCPS", configuration="3d_fullres", kind="labels", fold=0, cls=None, plans=None):
        if not (environment / "preprocessed").exists():
            tiny.make(environment, kind)
        cls, plans = cls or find_trainer(name), (plans or tiny.plans()) | {"continue_training": False}
        if issubclass(cls, reference_2d.Reference2DPart) and configuration == "3d_fullres":
            configuration = "2d"
            plans["configurations"]["2d"]["patch_size"] = [32, 32]
        second = getattr(cls, "companion_bases", None) or ()
        if configuration == "2d" and any(issubclass(base, reference_2d.Reference2DPart) for base in second):
            plans["configurations"]["2d"]["patch_size"] = [32, 32]
        return cls(plans, configuration, fold, tiny.dataset_json(kind), torch.device("cpu"))

    return make
