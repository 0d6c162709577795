"""The alarm when classes drift, and the curves of pseudo-labels."""

import json

import numpy as np
import pytest
import torch

from nnunet_ext.training.drift import DriftAlarm, kept_share_and_precision, quality_counts


def shares(value):
    """Background, a class that stays, and one that has a share of its own."""
    return [0.9 - value, 0.1, value]


def settled(**arguments):
    """An alarm that has seen some epochs after the ramp, and more before it."""
    alarm = DriftAlarm(decay=0.0, **arguments)
    for _ in range(20):
        assert alarm.observe(shares(0.5), after_ramp=False) == []
    for _ in range(9):
        assert alarm.observe(shares(0.2), after_ramp=True) == []
    return alarm


@pytest.mark.parametrize(
    ("share", "found"), [(0.161, []), (0.159, [2]), (0.249, []), (0.251, [2]), (0.0, [2]), (0.2, [])]
)
def test_a_share_that_leaves_its_median(share, found):
    assert settled().observe(shares(share), after_ramp=True) == found


def test_the_background_is_watched_only_as_a_region():
    low = [0.1, 0.1, 0.2]
    assert settled().observe(low, after_ramp=True) == []
    assert settled(first_class=0).observe(low, after_ramp=True) == [0]


def test_a_class_is_named_once_each_time_it_leaves():
    alarm = settled()
    found = [alarm.observe(shares(share), after_ramp=True) for share in (0.1, 0.1, 0.2, 0.1)]
    assert found == [[2], [], [], [2]]


def test_shares_are_decayed():
    alarm = DriftAlarm(decay=0.9)
    for _ in range(10):
        alarm.observe(shares(0.2), after_ramp=True)
    assert alarm.observe(shares(0.1), after_ramp=True) == []  # 0.19
    assert alarm.observe(shares(0.0), after_ramp=True) == []  # 0.171
    assert alarm.observe(shares(0.0), after_ramp=True) == [2]  # 0.154, below 0.16


def test_few_epochs_make_no_median():
    alarm = DriftAlarm(decay=0.0)
    for share in (0.1, 0.9, 0.1, 0.9, 0.1):
        assert alarm.observe(shares(share), after_ramp=True) == []


def test_an_absent_class_cannot_drift():
    alarm = DriftAlarm(decay=0.0)
    for _ in range(8):
        alarm.observe([1.0, 0.0], after_ramp=True)
    assert alarm.observe([0.9, 0.1], after_ramp=True) == []


def test_warning_names_class_and_epoch():
    alarm = settled()
    found = alarm.observe(shares(0.1), after_ramp=True)
    text = alarm.warning(found, ["background", "liver", "tumour"], 71)
    assert "in epoch 71 the share of tumour (0.50 times) in the pseudo-labels left 0.8 to 1.25 times its median" in text
    assert "unlabeled_weight" in text


def test_a_checkpoint_continues():
    alarm = settled()
    alarm.observe(shares(0.1), after_ramp=True)
    other = DriftAlarm(decay=0.0)
    other.load_state_dict(json.loads(json.dumps(alarm.state_dict())))
    assert other.observe(shares(0.1), after_ramp=True) == []
    assert other.observe(shares(0.2), after_ramp=True) == []
    assert other.observe(shares(0.1), after_ramp=True) == [2]
    assert DriftAlarm().state_dict() == {"share": None, "history": [], "outside": []}


def test_quality_of_classes():
    labels = torch.tensor([0, 0, 1, 1, 2, 2]).reshape(1, 1, 6)
    kept = torch.tensor([1, 1, 1, 0, 0, 1]).reshape(1, 1, 6)
    valid = torch.tensor([1, 1, 1, 1, 1, 0]).reshape(1, 1, 6)
    truth = torch.tensor([0, 1, 1, 1, 2, 2]).reshape(1, 1, 6)
    counts = quality_counts(labels, kept, valid, 3, truth=truth)
    assert counts.tolist() == [[2, 2, 1], [2, 1, 0], [1, 1, 0]]
    assert quality_counts(labels, kept, valid, 3).tolist() == counts[:2].tolist()
    share, precision = kept_share_and_precision(counts.numpy())
    np.testing.assert_array_equal(share, [1, 0.5, 0])
    np.testing.assert_array_equal(precision, [0.5, 1, np.nan])
    assert np.isnan(kept_share_and_precision(counts[:2].numpy())[1]).all()


def test_quality_of_regions():
    labels = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 1]]).reshape(1, 2, 4) > 0
    kept = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).reshape(1, 2, 4)
    truth = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1]]).reshape(1, 2, 4)
    counts = quality_counts(labels, kept, None, 2, regions=True, truth=truth)
    assert counts.tolist() == [[3, 1], [2, 1], [1, 1]]
