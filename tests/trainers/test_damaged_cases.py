"""A preprocessed case that is damaged after the training has begun: named by every trainer, with what mends it."""

import sys

import pytest
from reference import tiny

NAMES = ("nnUNetTrainerCPS", "nnUNetTrainerCWCD", "nnUNetTrainerANUNet", "nnUNetTrainer_2epochs")
COMMAND = "run: nnUNetv2_preprocess -d 997 -plans_name TinyPlans -c 3d_fullres"


@pytest.fixture
def folder(make_trainer, environment):
    make_trainer()
    return environment / "preprocessed" / tiny.NAME / f"{tiny.PLANS}_3d_fullres"


def harm(file):
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize("name", NAMES)
def test_while_training(make_trainer, folder, name):
    trainer = make_trainer(name, fold="all")
    trainer.initialize()
    for number in range(5):
        harm(folder / f"case_{number}.b2nd")
    with pytest.raises(
        RuntimeError, match=rf"the preprocessed case case_\d in {folder} cannot be read \(.*\); {COMMAND}"
    ):
        trainer.get_dataloaders()


@pytest.mark.parametrize("name", NAMES)
def test_while_validating(make_trainer, folder, name):
    trainer = make_trainer(name)
    trainer.initialize()
    _, validation = trainer.get_tr_and_val_datasets()
    case = validation.identifiers[0]
    harm(folder / f"{case}.b2nd")
    with pytest.raises(
        RuntimeError, match=rf"the preprocessed case {case} in {folder} cannot be read \(.*\); {COMMAND}"
    ):
        trainer.perform_actual_validation()


def test_another_error_of_the_validation_stays_what_it_is(make_trainer, folder, monkeypatch):
    trainer = make_trainer("nnUNetTrainerCWCD")
    trainer.initialize()
    monkeypatch.setattr(trainer, "set_deep_supervision_enabled", lambda _: {}["of nnU-Net"])
    with pytest.raises(KeyError, match="of nnU-Net"):
        trainer.perform_actual_validation()


def test_loaders_of_nnunets_own_trainer_stay_its_own(make_trainer, folder):
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

    module = sys.modules["nnunetv2.training.nnUNetTrainer.nnUNetTrainer"]

    trainer = make_trainer("nnUNetTrainerCWCD")
    trainer.initialize()
    trainer.get_dataloaders()
    assert vars(module)["nnUNetDataLoader"] is nnUNetDataLoader
