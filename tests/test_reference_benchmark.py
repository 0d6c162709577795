"""The list of benchmarks/reference_2d.py: its trainers, and the settings that make their networks narrow."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: nothing there shadows anything

import reference_2d

from nnunet_ext.trainers.names import find_trainer


def test_one_name_one_run():
    assert len({run.name for run in reference_2d.RUNS}) == len(reference_2d.RUNS)


def test_trainers_are_there():
    for name in {run.trainer for run in reference_2d.RUNS}:
        assert find_trainer(name).__name__ == name
    assert sum(not run.position for run in reference_2d.RUNS) == 2


def test_settings_are_those_of_the_parts():
    for prefix, part in (("transunet_", "TransUNet"), ("deeplab_", "DeepLabV3Plus")):
        trainer = find_trainer(f"nnUNetTrainer{part}")
        settings = [name for name in reference_2d.SETTINGS if name.startswith(prefix)]
        assert settings
        assert all(hasattr(trainer, name) for name in settings)
