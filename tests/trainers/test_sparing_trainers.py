"""Trainers that have unlabelled patches in some steps only, or fewer of them."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from reference.taught import ready, same, weights

TEACHER = "nnUNetTrainerMeanTeacher_CutMix_Confidence_ClassBalance_4epochs_4iterations"
PAIR = "nnUNetTrainerCPS_CutMix_Confidence_ClassBalance_4epochs_4iterations"
LENGTH = "_4epochs_4iterations"


@pytest.mark.parametrize("name", [TEACHER, PAIR])
def test_steps_are_counted_from_the_start_of_the_training(make_trainer, name):
    for epoch in (0, 1, 2):
        _, loader = ready(make_trainer(name), epoch, unlabeled_every=3)
        assert ["unlabeled" in next(loader) for _ in range(8)] == [(4 * epoch + i) % 3 == 0 for i in range(8)]


def test_between_the_student_learns_as_nnunets_network(make_trainer):
    trainer, loader = ready(make_trainer(TEACHER), unlabeled_every=2)
    plain = make_trainer(cls=nnUNetTrainer)
    plain.initialize()
    plain.set_deep_supervision_enabled(True)
    trainer.train_step(next(loader))
    plain.network.load_state_dict(trainer.network.state_dict())
    plain.optimizer.load_state_dict(deepcopy(trainer.optimizer.state_dict()))
    teacher, histogram = weights(trainer.teacher.network), trainer.gate.state_dict()["histogram"]
    batch = next(loader)
    expected = plain.train_step({"data": batch["data"], "target": deepcopy(batch["target"])})
    report = trainer.train_step(batch)
    assert report["loss"] == pytest.approx(float(expected["loss"]), rel=1e-6)
    assert report["unlabeled_loss"] is None
    assert report["counts"].sum() == report["kept_counts"].sum() == 0
    assert same(weights(trainer.network), weights(plain.network))
    assert torch.equal(trainer.gate.state_dict()["histogram"], histogram)
    assert not same(weights(trainer.teacher.network), teacher)  # it moves in every step
    assert trainer.train_step(next(loader))["unlabeled_loss"] > 0


def test_between_both_networks_learn_as_nnunets_network(make_trainer):
    trainer, loader = ready(make_trainer(PAIR), unlabeled_every=2)
    trainer.train_step(next(loader))
    batch = next(loader)
    expected = []
    for network, optimizer in ((trainer.network, trainer.optimizer), (trainer.network_2, trainer.optimizer_2)):
        plain = make_trainer(cls=nnUNetTrainer)
        plain.initialize()
        plain.set_deep_supervision_enabled(True)
        plain.network.load_state_dict(network.state_dict())
        plain.optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
        loss = plain.train_step({"data": batch["data"], "target": deepcopy(batch["target"])})["loss"]
        expected.append((float(loss), weights(plain.network)))
    report = trainer.train_step(batch)
    assert [report["loss"], report["loss_2"]] == pytest.approx([loss for loss, _ in expected], rel=1e-6)
    assert report["cps"] is None
    assert report["counts"].sum() == 0
    assert report["labelled_counts"].sum() == batch["target"][0].numel()
    for network, (_, learnt) in zip((trainer.network, trainer.network_2), expected, strict=True):
        assert same(weights(network), learnt)
    assert trainer.train_step(next(loader))["cps"] != 0


@pytest.mark.parametrize("kind", ["labels", "regions", "ignore"])
@pytest.mark.parametrize(("name", "key"), [(TEACHER, "unlabeled_loss"), (PAIR, "cps_loss")])
def test_curves_are_means_over_the_steps_that_have_pseudo_labels(make_trainer, name, key, kind):
    trainer, loader = ready(make_trainer(name, kind=kind), unlabeled_every=2)
    reports = [trainer.train_step(next(loader)) for _ in range(4)]
    own = "cps" if name == PAIR else "unlabeled_loss"
    assert [report[own] is None for report in reports] == [False, True, False, True]
    values = trainer.monitor.epoch(reports, 0.5, False)
    assert values[key] == pytest.approx((reports[0][own] + reports[2][own]) / 2)
    loss = values["supervised_loss_1" if name == PAIR else "supervised_loss"]
    assert loss == pytest.approx(np.mean([report["loss"] for report in reports]))
    counts = reports[0]["counts"][0] + reports[2]["counts"][0]
    if name == TEACHER:
        assert values["pseudo_label_share"] == pytest.approx(list(counts / counts.sum()))


@pytest.mark.parametrize("name", [TEACHER, PAIR])
def test_whole_training_with_fewer_steps_and_patches(make_trainer, name):
    trainer = make_trainer(name)
    trainer.unlabeled_every, trainer.unlabeled_batch_size = 3, 3
    trainer.validate_student = trainer.validate_second_network = False
    trainer.run_training()
    curves = trainer.logger.get_checkpoint()
    assert np.isfinite(curves["unlabeled_loss" if name == TEACHER else "cps_loss"]).all()
    assert {len(values) for values in curves.values()} == {4}


@pytest.mark.parametrize("name", [TEACHER, PAIR, "nnUNetTrainerCPS" + LENGTH, "nnUNetTrainerMeanTeacher_BCP" + LENGTH])
@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_unlabelled_patches(make_trainer, name, size):
    trainer, loader = ready(make_trainer(name), unlabeled_batch_size=size)
    batch = next(loader)
    assert (len(batch["data"]), len(batch["unlabeled"])) == (2, size)
    report = trainer.train_step(batch)
    patch = int(np.prod(trainer.configuration_manager.patch_size))
    assert 0 < report["counts"][0].sum() <= size * patch
    assert np.isfinite(report["loss"])


@pytest.mark.parametrize("name", [TEACHER, PAIR])
def test_one_unlabelled_patch_has_no_other_to_get_a_box_of(make_trainer, name):
    trainer, _ = ready(make_trainer(name), unlabeled_batch_size=1)
    step = trainer.cps_step if name == PAIR else trainer.teaching_step
    assert step.mixer is None
    log = Path(trainer.log_file).read_text()
    assert log.count("WARNING: CutMix exchanges boxes") == 1
    assert "unlabeled_batch_size gives one of 1 (a process): nothing is mixed. Set unlabeled_batch_size to 2" in log
    trainer, _ = ready(make_trainer(name), unlabeled_batch_size=2)
    assert (trainer.cps_step if name == PAIR else trainer.teaching_step).mixer is not None


@pytest.mark.parametrize("name", [TEACHER, PAIR, "nnUNetTrainerCPS" + LENGTH])
def test_off_values_are_the_trainer_without(make_trainer, name):
    """In every step, as many as labelled ones: the same batches, bit for bit, given as a number or as None."""
    one, loader = ready(make_trainer(name))
    batches = [next(loader) for _ in range(2)]
    two, loader = ready(make_trainer(name), unlabeled_batch_size=2)
    for batch in batches:
        expected = next(loader)
        assert batch.keys() == expected.keys()
        assert torch.equal(batch["unlabeled"], expected["unlabeled"])
        one.train_step(batch), two.train_step(expected)
    assert same(weights(one.network), weights(two.network))


@pytest.mark.parametrize("name", [TEACHER, PAIR])
def test_a_training_that_goes_on_takes_the_same_next_step(make_trainer, tmp_path, name):
    """After an epoch of four steps the next one, the fifth, has no unlabelled patches where every third has."""
    trainer, loader = ready(make_trainer(name), 0, unlabeled_every=3)
    for _ in range(4):
        trainer.train_step(next(loader))
    trainer.current_epoch = 1
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    restored = make_trainer(name)
    restored.unlabeled_every = 3
    restored.initialize()
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    restored.current_epoch = 1
    restored.network.train()
    later, _ = restored.get_dataloaders()
    batches = [next(loader) for _ in range(4)]
    assert [b.keys() for b in batches] == [next(later).keys() for _ in range(4)]
    assert ["unlabeled" in batch for batch in batches] == [False, False, True, False]
    if name == PAIR:
        restored.network_2.train()
    for batch in batches:
        first, second = (one.train_step(deepcopy(batch)) for one in (trainer, restored))
        assert first["loss"] == second["loss"]
    assert same(weights(trainer.network), weights(restored.network))


@pytest.mark.parametrize("name", [TEACHER, PAIR])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unlabeled_every": 0}, r"unlabeled_every must be a whole number from 1 .*, got 0; 1 has them in every step"),
        ({"unlabeled_every": 1.5}, "unlabeled_every must be a whole number from 1 .*, got 1.5"),
        ({"unlabeled_every": True}, "unlabeled_every must be a whole number from 1 .*, got True"),
        ({"unlabeled_every": 5}, "unlabeled_every must be at most the 4 steps of an epoch.*, got 5"),
        ({"unlabeled_batch_size": 0}, r"unlabeled_batch_size must be None \(as many.* or a whole number from 1, got 0"),
        ({"unlabeled_batch_size": "half"}, "unlabeled_batch_size must be None .* got 'half'"),
    ],
)
def test_settings_that_make_no_sense(make_trainer, name, settings, message):
    trainer = make_trainer(name)
    for setting, value in settings.items():
        setattr(trainer, setting, value)
    with pytest.raises(ValueError, match=message):
        trainer.initialize()


@pytest.mark.parametrize("name", ["nnUNetTrainerCPS", "nnUNetTrainerCPS_Confidence"])
def test_where_labelled_patches_are_pseudo_labelled_too_there_is_no_step_without(make_trainer, name):
    trainer = make_trainer(name + LENGTH)
    trainer.views, trainer.unlabeled_every = "same", 2
    with pytest.raises(ValueError, match="unlabeled_every 2 needs pseudo_on 'unlabelled', as pseudo_on 'both' learns"):
        trainer.initialize()
