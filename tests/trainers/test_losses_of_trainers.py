"""The parts CWCD, GDL and DWCE inside nnU-Net's trainer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from reference import tiny

from nnunet_ext.losses import ContourWeightedLoss
from nnunet_ext.trainers.comparison_losses import DWCEPart, GDLPart
from nnunet_ext.trainers.cwcd import CWCDPart

PARTS = {"CWCD": CWCDPart, "GDL": GDLPart, "DWCE": DWCEPart}
SHORT = "_1epochs_2iterations"


@pytest.mark.parametrize("part", PARTS)
def test_found_alone_and_in_combination(part):
    for name in (f"nnUNetTrainer{part}", f"nnUNetTrainerCPS_{part}", f"nnUNetTrainerCPS_{part}_20epochs"):
        trainer = recursive_find_trainer_class_by_name(name)
        assert trainer.__name__ == name
        assert issubclass(trainer, nnUNetTrainer)


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [
        ("2d", "labels"),
        ("3d_fullres", "ignore"),
        ("2d", "regions"),
        ("3d_fullres", "regions_ignore"),
    ],
)
@pytest.mark.parametrize(
    "name", ["nnUNetTrainerCWCD", "nnUNetTrainerGDL", "nnUNetTrainerDWCE", "nnUNetTrainerCPS_CWCD"]
)
def test_trains_and_restores(make_trainer, configuration, kind, name):
    trainer = make_trainer(name + SHORT, configuration, kind)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))
    assert np.isfinite(trainer.logger.get_value("val_losses", -1))
    restored = make_trainer(name + SHORT, configuration, kind)
    restored.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for key, value in trainer.network.state_dict().items():
        assert torch.equal(value, restored.network.state_dict()[key])


@pytest.mark.parametrize("name", ["nnUNetTrainerCWCD", "nnUNetTrainerGDL", "nnUNetTrainerDWCE"])
def test_without_deep_supervision(make_trainer, name):
    trainer = make_trainer(name + SHORT)
    trainer.enable_deep_supervision = False
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))


def test_settings_reach_the_losses_of_all_scales(make_trainer):
    plans = tiny.plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [2.0, 1.0, 0.5]
    trainer = make_trainer("nnUNetTrainerCWCD", "3d_fullres", "ignore", plans=plans)
    trainer.contour_thickness_mm = 2.0
    trainer.contour_border = "outside"
    trainer.contour_reduction = "pooled"
    trainer.contour_ce_weight = 3.0
    trainer.contour_dice_weight = 0.25
    trainer.contour_of_background = True
    trainer.contour_min_interior = 0.1
    trainer.initialize()
    losses = trainer.loss.losses
    assert [loss.iterations for loss in losses] == [(1, 2, 4), (1, 1, 2)]
    assert trainer.loss.weights == pytest.approx((1, 0))
    for loss in losses:
        assert isinstance(loss, ContourWeightedLoss)
        assert (loss.kernel, loss.border, loss.pooled, loss.background_contour) == (3, "outside", True, True)
        assert (loss.ce_contour_weight, loss.dice_weights, loss.min_interior) == (3.0, (0.25, 0.75), 0.1)
        assert (loss.ignore_label, loss.regions, loss.batch_dice, loss.gather) == (3, False, False, None)
    assert trainer.hyperparameters()["contour_thickness_mm"] == 2.0


def test_the_plans_choose_the_dice(make_trainer):
    for configuration, batch_dice in (("2d", True), ("3d_fullres", False)):
        trainer = make_trainer("nnUNetTrainerCWCD", configuration)
        trainer.initialize()
        assert {loss.batch_dice for loss in trainer.loss.losses} == {batch_dice}


def test_without_iterations_it_trains_as_nnunet_does(make_trainer):
    trainer, plain = make_trainer("nnUNetTrainerCWCD"), make_trainer(cls=nnUNetTrainer)
    trainer.contour_iterations = 0
    trainer.initialize()
    plain.initialize()
    plain.network.load_state_dict(trainer.network.state_dict())
    loader, _ = trainer.get_dataloaders()
    for _ in range(3):
        batch = next(loader)
        expected = float(plain.train_step({"data": batch["data"], "target": batch["target"]})["loss"]) + 1
        assert float(trainer.train_step(batch)["loss"]) == pytest.approx(expected, rel=1e-5)


def test_pseudo_labels_are_contour_weighted_only_if_asked(make_trainer):
    batch, losses = None, {}
    for asked in (False, True):
        trainer = make_trainer("nnUNetTrainerCPS_CWCD")
        trainer.contour_pseudo_labels = asked
        trainer.initialize()
        batch = batch or next(trainer.get_dataloaders()[0])
        trainer.current_epoch = 500
        losses[asked] = trainer.train_step(batch)
    plain = make_trainer("nnUNetTrainerCPS")
    plain.initialize()
    plain.current_epoch = 500
    expected = plain.train_step(batch)
    assert losses[False]["cps"] == pytest.approx(expected["cps"], rel=1e-6)
    assert losses[False]["loss"] == losses[True]["loss"] != expected["loss"]
    assert losses[True]["cps"] > expected["cps"] + 0.5  # its Dice is 1 - Dice


def test_scales_with_equal_bands_share_a_loss(make_trainer):
    trainer = make_trainer("nnUNetTrainerCWCD")
    trainer.initialize()
    assert len(set(trainer.loss.losses)) == 1
    assert len(trainer.loss.losses) == 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("contour_pseudo_labels", True, "contour_pseudo_labels needs pseudo-labels; use nnUNetTrainerCPS_CWCD"),
        ("contour_dice_weight", 1.5, "contour_dice_weight is a share from 0 to 1, got 1.5"),
        ("contour_border", "zero", "border must be one of"),
    ],
)
def test_settings_without_meaning_are_refused(make_trainer, name, value, message):
    trainer = make_trainer("nnUNetTrainerCWCD")
    setattr(trainer, name, value)
    with pytest.raises(ValueError, match=message):
        trainer.initialize()


@pytest.mark.parametrize("name", ["nnUNetTrainerCWCD", "nnUNetTrainerGDL", "nnUNetTrainerDWCE"])
def test_the_second_stage_of_a_cascade(make_trainer, name):
    trainer = make_trainer(name, "3d_cascade_fullres")
    trainer.initialize()
    scales = trainer._get_deep_supervision_scales()
    patch = trainer.configuration_manager.patch_size
    generator = torch.Generator().manual_seed(0)
    shapes = [[round(p * s) for p, s in zip(patch, scale, strict=True)] for scale in scales]
    target = [torch.randint(0, 3, (2, 1, *shape), generator=generator) for shape in shapes]
    batch = {"data": torch.randn((2, 3, *patch), generator=generator), "target": target}  # image and both labels
    first, second = (float(trainer.train_step(batch)["loss"]) for _ in range(2))
    assert np.isfinite([first, second]).all()
    assert first != second


def test_losses_exclude_each_other():
    with pytest.raises(ValueError, match="CWCD and GDL, of which only one can be chosen"):
        recursive_find_trainer_class_by_name("nnUNetTrainerCWCD_GDL")
