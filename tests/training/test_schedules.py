"""The ramp of lambda and the plateau schedule."""

import pytest
import torch

from nnunet_ext.training.schedules import PlateauScheduler, linear_ramp


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
