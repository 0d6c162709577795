"""Continuing a training with other settings of its length and its learning rate."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_ext.trainers.names import find_trainer
from nnunet_ext.training import second_network
from nnunet_ext.training.checkpoints import SECOND_NETWORK
from nnunet_ext.training.schedules import PlateauScheduler

NAME = "nnUNetTrainerCPS_2epochs_1iterations"


def changed(name=NAME, **settings):
    """A subclass with other settings, under the same name, as a user who edits the own trainer has it."""
    base = find_trainer(name)

    def initialise(self, plans, configuration, fold, dataset_json, device=None):
        base.__init__(self, plans, configuration, fold, dataset_json, device)
        for key, value in settings.items():
            setattr(self, key, value)

    return type(name, (base,), {"__init__": initialise})


def train(trainer):
    trainer.run_training()
    return trainer


def rates(trainer):
    return [float(rate) for rate in trainer.logger.get_checkpoint()["lrs"]]


def checkpoint(trainer):
    return str(Path(trainer.output_folder) / "checkpoint_final.pth")


@pytest.mark.parametrize("schedule", ["poly", "plateau"])
@pytest.mark.parametrize(("before", "after"), [(2, 5), (2, 3), (4, 2)])
def test_a_training_goes_on_with_another_number_of_epochs(make_trainer, schedule, before, after):
    first = train(make_trainer(cls=changed(num_epochs=before, lr_schedule=schedule)))
    second = make_trainer(cls=changed(num_epochs=after, lr_schedule=schedule))
    second.load_checkpoint(checkpoint(first))
    train(second)
    end = max(before, after)
    assert {len(values) for values in second.logger.get_checkpoint().values()} == {end}
    if schedule == "poly":
        wanted = [0.01 * (1 - e / before) ** 0.9 for e in range(before)]
        wanted += [0.01 * (1 - e / after) ** 0.9 for e in range(before, after)]
        assert rates(second) == pytest.approx(wanted)
        last = [optimizer.param_groups[0]["lr"] for optimizer in (second.optimizer, second.optimizer_2)]
        assert last == pytest.approx([wanted[-1]] * 2)


def test_half_done_trainings_get_longer_too(make_trainer):
    first = make_trainer(cls=changed(num_epochs=4))
    first.initialize()
    first.current_epoch = 1  # as if two of four epochs were done
    for key, values in first.logger.local_logger.my_fantastic_logging.items():
        values.extend([[0.5, 0.5]] * 2 if "dice_per" in key or "agreement" in key else [0.5] * 2)
    path = str(Path(first.output_folder) / "checkpoint_latest.pth")
    first.save_checkpoint(path)
    second = make_trainer(cls=changed(num_epochs=8))
    second.load_checkpoint(path)
    for epoch in range(2, 8):
        for scheduler in (second.lr_scheduler, second.lr_scheduler_2):
            scheduler.step(epoch)
        for optimizer in (second.optimizer, second.optimizer_2):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (1 - epoch / 8) ** 0.9)


@pytest.mark.parametrize("schedule", ["poly", "plateau"])
def test_another_initial_rate_counts_for_both_networks(make_trainer, schedule):
    first = train(make_trainer(cls=changed(lr_schedule=schedule)))
    second = make_trainer(cls=changed(lr_schedule=schedule, num_epochs=4, initial_lr=0.04))
    second.load_checkpoint(checkpoint(first))
    train(second)
    wanted = [0.04 * (1 - e / 4) ** 0.9 for e in (2, 3)] if schedule == "poly" else [0.04] * 2
    assert rates(second)[2:] == pytest.approx(wanted)
    assert second.optimizer_2.param_groups[0]["lr"] == pytest.approx(wanted[-1])


def test_checkpoints_hold_no_settings_of_the_schedule(make_trainer):
    trainer = make_trainer(NAME)
    trainer.initialize()
    assert second_network.state(trainer)["lr_schedulers"] == [{}, {}]


def test_checkpoints_that_hold_all_numbers_of_a_schedule_still_load(make_trainer):
    """As they were written once: every number of nnU-Net's scheduler, its length among them."""
    first = train(make_trainer(NAME))
    path = checkpoint(first)
    content = torch.load(path, weights_only=False)
    numbers = {"initial_lr": 0.01, "max_steps": 2, "exponent": 0.9, "ctr": 0, "last_epoch": 0, "_step_count": 1}
    content[SECOND_NETWORK]["lr_schedulers"] = [numbers, numbers]
    torch.save(content, path)
    second = make_trainer(cls=changed(num_epochs=5))
    second.load_checkpoint(path)
    assert np.isrealobj(rates(train(second)))
    assert isinstance(second.lr_scheduler, PolyLRScheduler)
    assert second.lr_scheduler.max_steps == second.lr_scheduler_2.max_steps == 5


def test_old_plateau_checkpoints_keep_counters_and_rate(make_trainer):
    first = train(make_trainer(cls=changed(lr_schedule="plateau")))
    path = checkpoint(first)
    content = torch.load(path, weights_only=False)
    own = content[SECOND_NETWORK]
    old = {"factor": 0.2, "patience": 30, "best": 0.25, "num_bad_epochs": 7, "cooldown_counter": 0, "last_epoch": 9}
    own["lr_schedulers"] = [old, old | {"num_bad_epochs": 8}]
    own["optimizer_state"]["param_groups"][0]["lr"] = 0.002
    torch.save(content, path)
    second = make_trainer(cls=changed(lr_schedule="plateau"))
    second.load_checkpoint(path)
    assert [s.state_dict()["num_bad_epochs"] for s in (second.lr_scheduler, second.lr_scheduler_2)] == [7, 8]
    assert second.lr_scheduler_2.state_dict()["best"] == 0.25
    assert second.optimizer_2.param_groups[0]["lr"] == 0.002


def test_a_reduced_rate_stays_reduced_by_as_much():
    def make(rate, patience=0):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], rate)
        return optimizer, PlateauScheduler(optimizer, patience=patience)

    first, schedule = make(0.01)
    for _ in range(3):
        schedule.observe(1.0)
    assert first.param_groups[0]["lr"] == pytest.approx(0.01 * 0.2**2)
    second, other = make(0.05, patience=9)
    second.load_state_dict(first.state_dict())  # as a checkpoint does first
    other.load_state_dict(schedule.state_dict())
    assert second.param_groups[0]["lr"] == pytest.approx(0.05 * 0.2**2)
    other.observe(1.0)
    assert second.param_groups[0]["lr"] == pytest.approx(0.05 * 0.2**2)  # the new patience counts, too
