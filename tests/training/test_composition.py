"""Trainer names."""

import pickle

import pytest

import nnunet_ext.trainers as trainers
from nnunet_ext.training.composition import COMMON, find_trainer


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainerCPS",
        "nnUNetTrainerCPS_100epochs",
        "nnUNetTrainerCPS_20epochs_50iterations",
        "nnUNetTrainerCPS_7iterations",
        "nnUNetTrainer_20epochs_50iterations",
        "nnUNetTrainer_3iterations",
    ],
)
def test_names_give_classes_of_that_name(name):
    trainer = find_trainer(name)
    assert trainer.__name__ == name
    assert find_trainer(name) is trainer
    assert pickle.loads(pickle.dumps(trainer)) is trainer
    assert getattr(trainers, name) is trainer
    assert trainer.__doc__


@pytest.mark.parametrize("name", ["nnUNetTrainer", "nnUNetTrainerNoMirroring", "nnUNetTrainer_probabilistic", "Foo"])
def test_other_names_are_not_ours(name):
    assert find_trainer(name) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nnUNetTrainerCPS_foo",
            "unknown part 'foo'.*Known parts, in their order: CPS, CWCD, GDL, DWCE, ANUNet, IFECurvature, IFEEntropy",
        ),
        ("nnUNetTrainerCPSX", "unknown part 'CPSX'"),
        ("nnUNetTrainercps", "unknown part 'cps'"),
        ("nnUNetTrainerCPS_0epochs", "unknown part '0epochs'"),
        ("nnUNetTrainer_50iterations_20epochs", "use -tr nnUNetTrainer_20epochs_50iterations$"),
        ("nnUNetTrainer_20epochs_CPS", "use -tr nnUNetTrainerCPS_20epochs$"),
        ("nnUNetTrainer_CPS", "use -tr nnUNetTrainerCPS$"),
        ("nnUNetTrainer20epochs", "use -tr nnUNetTrainer_20epochs$"),
        ("nnUNetTrainerCPS_020epochs", "unknown part '020epochs'"),
        ("nnUNetTrainerCPS_CPS", "CPS and CPS, of which only one can be chosen"),
        ("nnUNetTrainerCPS_5epochs_6epochs", "of which only one can be chosen"),
        ("nnUNetTrainerCPS__5epochs", "unknown part ''"),
    ],
)
def test_malformed_names_are_explained(name, message):
    with pytest.raises(ValueError, match=message):
        find_trainer(name)


def test_common_trainers_are_written_out():
    import nnunet_ext.trainers.common as common

    assert set(COMMON) == {n for n in vars(common) if n.startswith("nnUNetTrainer") and n != "nnUNetTrainer"}
    for name in COMMON:
        assert find_trainer(name) is getattr(common, name)


def test_unknown_attribute_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'nnUNetTrainerNope'"):
        _ = trainers.nnUNetTrainerNope
