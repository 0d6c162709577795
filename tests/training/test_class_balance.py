"""Weights of classes."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_ext.training.class_balance import (
    ClassBalance,
    DhcDifficulty,
    class_weights,
    classes_without_labels,
    decayed,
    dhc_share_weights,
    labelled_counts,
)


def exact(*values):
    return torch.tensor(values, dtype=torch.float64)


K1 = {
    (900, 90, 10): (0.781572, 2.471546, 4),
    (900, 100, 0): (0.833333, 2.5, 4),
    (337, 125, 50): (0.761847, 1.250914, 1.977869),
    (5, 5, 5): (1, 1, 1),
}


@pytest.mark.parametrize(("counts", "weights"), K1.items())
def test_golden_weights(counts, weights):
    assert class_weights(exact(*counts)).tolist() == pytest.approx(weights, abs=1e-6)


def test_golden_weights_without_bounds():
    weights = class_weights(exact(900, 90, 10), bounds=(0, 100))
    assert weights.tolist() == pytest.approx((0.781572, 2.471546, 7.414639), abs=1e-6)
    assert (weights * exact(0.9, 0.09, 0.01)).sum().item() == pytest.approx(1)


def test_off_is_1_everywhere():
    assert class_weights(exact(900, 100, 0), gamma=0).tolist() == [1, 1, 1]
    balance = ClassBalance(exact(900, 100, 0), gamma=0)
    balance.observe(torch.tensor([5.0, 0, 0]))
    assert balance.weights().tolist() == [1, 1, 1]


def test_regions_balance_their_inside_with_their_outside():
    weights = class_weights(exact((900, 10), (100, 0)))
    for region, counts in enumerate(((900, 100), (10, 0))):
        assert weights[:, region].tolist() == pytest.approx(class_weights(exact(*counts)).tolist())


def test_nothing_counted_stays_finite():
    assert torch.isfinite(class_weights(torch.zeros(3))).all()


def test_pseudo_labels_are_mixed_in_half_and_half():
    balance = ClassBalance(exact(900, 90, 10), decay=0.5)
    assert balance.weights().dtype == torch.float32
    assert balance.weights().tolist() == pytest.approx(K1[900, 90, 10], abs=1e-5)
    balance.observe(torch.tensor([0.0, 100, 0]))
    balance.observe(torch.tensor([50.0, 0, 0]))  # now 50, 50, 0
    expected = class_weights(exact(0.7, 0.295, 0.005))
    assert balance.weights().tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_checkpoint_continues():
    balance, other = ClassBalance(exact(900, 90, 10)), ClassBalance(exact(900, 90, 10))
    balance.observe(torch.tensor([1.0, 2, 3]))
    state = balance.state_dict()
    other.load_state_dict(state)
    for each in (balance, other):
        each.observe(torch.tensor([3.0, 1, 1]))
    assert torch.equal(balance.weights(), other.weights())
    assert state["pseudo"].tolist() == [1, 2, 3]


def test_processes_are_summed():
    one, two = ClassBalance(exact(9, 1)), ClassBalance(exact(9, 1), sum_over_processes=lambda counts: counts + 4)
    one.observe(torch.tensor([5.0, 6]))
    two.observe(torch.tensor([1.0, 2]))
    assert torch.equal(one.weights(), two.weights())


def test_no_call_waits_for_the_device():
    with FakeTensorMode():
        balance = ClassBalance(torch.empty(3))
        balance.observe(torch.empty(3))
        assert balance.weights().shape == (3,)
        assert DhcDifficulty(3).observe(torch.empty(3)).shape == (3,)


def test_negative_exponent():
    with pytest.raises(ValueError, match="exponent of class weights must be 0 or more, got -1; 0 switches"):
        ClassBalance(exact(1, 1), gamma=-1)


def test_labelled_counts():
    cases = [{-1: 5, 0: 10, 2: 3}, {0: 1, 1: 4, 3: 100}]
    assert labelled_counts(cases, [0, 1, 2], ignore_label=3).tolist() == [16, 4, 3]
    assert labelled_counts(cases, [0, 1, 2, 3, 4]).tolist() == [16, 4, 3, 100, 0]
    assert labelled_counts(cases, [(1, 2), 2], ignore_label=3).tolist() == [[16, 20], [7, 3]]
    assert classes_without_labels(labelled_counts(cases, [0, 1, 2, 3, 4])) == [4]
    assert classes_without_labels(labelled_counts(cases, [(1, 2), (5,)], 3)) == [1]


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ((900, 90, 10), (0, 1.535122, 3)),
        ((900, 100, 0), (0, 0.261335, 3)),
        ((337, 125, 50), (0, 1.559337, 3)),
        ((7, 7, 7), (1, 1, 1)),
    ],
)
def test_golden_share_weights_of_dhc(counts, weights):
    assert dhc_share_weights(exact(*counts)).tolist() == pytest.approx(weights, abs=1e-6)


def test_golden_decay_of_dhc():
    weights = exact(1, 1, 1)
    for _ in range(2):
        weights = decayed(weights, exact(0.5, 1.5, 3))
    assert weights.tolist() == pytest.approx([0.99005, 1.00995, 1.0398])


def test_golden_difficulty_of_dhc():
    difficulty = DhcDifficulty(2)
    assert difficulty.observe(exact(0.2, 0.2)).tolist() == pytest.approx([2, 2], abs=1e-6)
    state = difficulty.state_dict()
    assert state["learn"].tolist() == pytest.approx([0.067245] * 2, abs=1e-6)
    assert state["unlearn"].tolist() == [0, 0]
    restored = DhcDifficulty(2)
    restored.load_state_dict(state)
    for each in (difficulty, restored):
        assert each.observe(exact(0.5, 0.1)).tolist() == pytest.approx([0.182890, 2], abs=1e-6)
        assert each.state_dict()["learn"].tolist() == pytest.approx([0.071398, 0.065900], abs=1e-6)
        assert each.state_dict()["unlearn"].tolist() == pytest.approx([0, 0.00138629], abs=1e-8)
