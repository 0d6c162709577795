"""Labelled cases and splits that no training can use are refused by every trainer, before anything is written."""

import json

import pytest
from reference import tiny

NAMES = (
    "nnUNetTrainerCPS",
    "nnUNetTrainerCWCD",
    "nnUNetTrainerGDL",
    "nnUNetTrainerIFECurvature",
    "nnUNetTrainerANUNet",
    "nnUNetTrainer_2epochs",
)


@pytest.fixture
def preprocessed(make_trainer, environment):
    make_trainer()
    return environment / "preprocessed" / tiny.NAME


def keep(preprocessed, number):
    """Remove the labelled cases but the first ones."""
    for file in (preprocessed / f"{tiny.PLANS}_3d_fullres").glob("case_*"):
        if int(file.name[5]) >= number:
            file.unlink()


def write_splits(preprocessed, **lists):
    (preprocessed / "splits_final.json").write_text(json.dumps([lists]))


@pytest.mark.parametrize("name", NAMES)
def test_too_few_labelled_cases_for_five_folds(make_trainer, preprocessed, name):
    keep(preprocessed, 3)
    with pytest.raises(ValueError, match=r"has 3 labelled case\(s\), but nnU-Net's five-fold.*train with fold all"):
        make_trainer(name).initialize()
    assert not (preprocessed / "splits_final.json").exists()
    make_trainer(name, fold="all").initialize()
    write_splits(preprocessed, train=["case_0", "case_1"], val=["case_2"])
    make_trainer(name).initialize()


@pytest.mark.parametrize("name", NAMES)
def test_no_labelled_case(make_trainer, preprocessed, name):
    keep(preprocessed, 0)
    with pytest.raises(FileNotFoundError, match="TinyPlans_3d_fullres has no preprocessed labelled case"):
        make_trainer(name, fold="all").initialize()


@pytest.mark.parametrize("name", NAMES)
def test_splits_that_name_unknown_cases(make_trainer, preprocessed, name):
    write_splits(preprocessed, train=["case_0", "case_9"], val=["case_2"])
    with pytest.raises(ValueError, match=r"splits_final\.json, fold 0: 'train' names case_9, not among the 5"):
        make_trainer(name).initialize()


@pytest.mark.parametrize("name", NAMES)
def test_splits_without_a_training_case(make_trainer, preprocessed, name):
    write_splits(preprocessed, train=[], val=["case_2"])
    with pytest.raises(ValueError, match=r"splits_final\.json, fold 0: the list 'train' is empty"):
        make_trainer(name).initialize()


def test_a_fold_that_nnunet_draws_needs_two_cases(make_trainer, preprocessed):
    keep(preprocessed, 1)
    write_splits(preprocessed, train=["case_0"], val=["case_0"])
    with pytest.raises(ValueError, match="has no fold 3, for which nnU-Net would draw.*at least 2.*got 1"):
        make_trainer("nnUNetTrainerCWCD", fold=3).initialize()


def test_a_finished_training_is_validated_though_its_cases_are_gone(make_trainer, preprocessed, monkeypatch):
    from nnunetv2.run import run_training

    write_splits(preprocessed, train=["case_0", "case_1"], val=["case_2"])
    trainer = make_trainer("nnUNetTrainerCWCD")
    trainer.initialize()
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    write_splits(preprocessed, train=["case_0", "gone"], val=["case_2"])
    with pytest.raises(ValueError, match="'train' names gone"):
        make_trainer("nnUNetTrainerCWCD").initialize()
    run_training.maybe_load_checkpoint(make_trainer("nnUNetTrainerCWCD"), False, True)


def test_trainers_that_split_for_themselves_do_so(make_trainer, preprocessed):
    keep(preprocessed, 3)
    trainer = make_trainer("nnUNetTrainerCWCD")
    type(trainer).do_split = lambda self: (["case_0", "case_1"], ["case_2"])
    try:
        trainer.initialize()
    finally:
        del type(trainer).do_split
