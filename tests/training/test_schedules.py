"""The ramp of lambda and the plateau schedule."""

import math

import pytest
import torch

from nnunet_ext.training.schedules import (
    SCHEDULE_OF_3D_CPS,
    PlateauScheduler,
    check_schedule,
    linear_ramp,
    ramped_weight,
)


@pytest.mark.parametrize(
    ("epoch", "value"),
    [(0, 0.001), (1, 0.002), (99, 0.1), (249, 0.25), (498, 0.499), (499, 0.5), (500, 0.5), (999, 0.5)],
)
def test_golden_ramp_of_the_released_code(epoch, value):
    assert linear_ramp(epoch, 1000) == pytest.approx(value, abs=1e-12)


def test_ramp_follows_length_fraction_and_final_value():
    assert linear_ramp(0, 20) == pytest.approx(0.05)  # R = round(0.5 * 20) = 10
    assert linear_ramp(3, 10, final=0.1, fraction=1.0) == pytest.approx(0.04)
    assert linear_ramp(0, 10, fraction=0.0) == 0.5
    assert linear_ramp(0, 1, fraction=0.5) == 0.5  # R = round(0.5) = 0


def test_ramp_refuses_a_fraction_outside_0_to_1():
    with pytest.raises(ValueError, match="ramp_fraction must lie between 0 and 1, got 1.5"):
        linear_ramp(0, 10, fraction=1.5)


GOLDEN = {0: 0, 9: 0, 10: 0.016667, 24: 0.25, 39: 0.5, 84: 0.5, 85: 0.47, 92: 0.26, 99: 0.05}


@pytest.mark.parametrize(("epoch", "value"), GOLDEN.items())
def test_golden_weight_of_100_epochs(epoch, value):
    assert ramped_weight(epoch, 100) == pytest.approx(value, abs=1e-6)


def test_golden_weight_of_20_epochs():
    expected = [0, 0, *(0.5 * n / 6 for n in range(1, 7)), *[0.5] * 9, 0.35, 0.2, 0.05]
    assert [ramped_weight(epoch, 20) for epoch in range(20)] == pytest.approx(expected)


@pytest.mark.parametrize("length", [1, 2, 7, 20, 1000])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_without_warm_up_and_way_down_it_is_the_linear_ramp(length, fraction):
    for epoch in range(length):
        expected = linear_ramp(epoch, length, 0.7, fraction)
        assert ramped_weight(epoch, length, 0.7, 0.0, fraction, 0.0) == expected


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 10, 50, 1000])
def test_defaults_fit_every_length(length):
    check_schedule(length)
    weights = [ramped_weight(epoch, length) for epoch in range(length)]
    assert 0 <= min(weights) <= max(weights) == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unlabeled_weight": -1}, "unlabeled_weight must be 0 or more, got -1"),
        ({"unlabeled_weight": float("nan")}, "unlabeled_weight must be 0 or more, got nan"),
        ({"warmup_fraction": 1.5}, "warmup_fraction must lie between 0 and 1, got 1.5"),
        ({"ramp_fraction": -0.5}, "ramp_fraction must lie between 0 and 1, got -0.5"),
        ({"ramp_down_fraction": 2}, "ramp_down_fraction must lie between 0 and 1, got 2"),
        ({"ramp_down_end": 1.1}, "ramp_down_end must lie between 0 and 1, got 1.1"),
        ({"warmup_fraction": 0.4}, "warmup_fraction 0.4 and ramp_fraction 0.4 overlap: of 100 epochs .* first 40 and"),
        ({"warmup_fraction": 0.6}, "warmup_fraction 0.6 and ramp_fraction 0.4 overlap"),
        ({"ramp_fraction": 0.9}, "ramp_fraction 0.9 and ramp_down_fraction 0.15 overlap: .* after 90 and fall from 85"),
    ],
)
def test_settings_that_overlap_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        check_schedule(100, **settings)


@pytest.mark.parametrize("settings", [{}, {"warmup": 0, "ramp": 0.5, "down": 0}])
@pytest.mark.parametrize("length", [1, 2, 20])
def test_after_the_end_the_weight_stays(length, settings):
    """A finished training that is validated asks for it."""
    assert ramped_weight(length, length, **settings) == ramped_weight(length - 1, length, **settings)


def test_touching_settings_fit():
    check_schedule(100, ramp_fraction=0.85)
    check_schedule(100, warmup_fraction=0.0, ramp_fraction=0.0, ramp_down_fraction=1.0)


def test_plateau_reduces_after_patience_and_survives_a_checkpoint():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = PlateauScheduler(optimizer, patience=2, factor=0.2)
    for _ in range(3):
        scheduler.observe(1.0)
        scheduler.step(0)
    assert optimizer.param_groups[0]["lr"] == 1.0
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    restored = PlateauScheduler(other, patience=2, factor=0.2)
    restored.load_state_dict(scheduler.state_dict())
    restored.observe(1.0)
    assert other.param_groups[0]["lr"] == pytest.approx(0.2)


def released_ramp(passes: float, final: float = 0.1, length: int = 200) -> float:
    """The weight of the reference module's released code, whose epochs are passes over the labelled slices."""
    return final * math.exp(-5 * (1 - min(passes, length) / length) ** 2)


def test_golden_ramp_of_the_reference_module_and_what_is_done_instead():
    """Its 50,000 steps of 2 of about 4500 slices are 22 passes, at which the weight is a fiftieth of what it should be.

    Here an epoch is a number of steps, whatever the number of labelled slices, and the weight is reached in half of it.
    """
    golden = {0: 0.000674, 10: 0.001097, 22: 0.001905, 50: 0.006005, 100: 0.028650, 150: 0.073162, 200: 0.1, 300: 0.1}
    for passes, weight in golden.items():
        assert released_ramp(passes) == pytest.approx(weight, abs=5e-7)
    steps, steps_an_epoch, slices = 50_000, 250, 4500
    passes = 2 * steps / slices
    assert released_ramp(passes) < 0.02 * 0.1
    epochs = steps // steps_an_epoch
    assert ramped_weight(epochs // 2 - 1, epochs, 0.1, *SCHEDULE_OF_3D_CPS[:3]) == pytest.approx(0.1)
    assert ramped_weight(epochs // 4 - 1, epochs, 0.1, *SCHEDULE_OF_3D_CPS[:3]) == pytest.approx(0.05)
