"""Class shares and agreement of the two networks."""

import numpy as np
import pytest
import torch

from nnunet_ext.training.agreement import label_counts, region_counts, shares_and_agreement


def test_counts_by_hand():
    first = torch.tensor([0, 1, 1, 2]).reshape(1, 1, 2, 2)
    second = torch.tensor([0, 1, 2, 2]).reshape(1, 1, 2, 2)
    counts = label_counts(first, second, None, 3)
    assert counts.tolist() == [[1, 2, 1], [1, 1, 2], [1, 1, 1]]
    share, dice = shares_and_agreement(counts.numpy())
    assert share.tolist() == [2 / 8, 3 / 8, 3 / 8]
    assert dice.tolist() == pytest.approx([1.0, 2 / 3, 2 / 3])


def test_masked_voxels_are_not_counted():
    first = torch.tensor([0, 1, 1, 2]).reshape(1, 1, 2, 2)
    mask = torch.tensor([1, 1, 0, 0], dtype=torch.uint8).reshape(1, 1, 2, 2)
    assert label_counts(first, first, mask, 3)[0].tolist() == [1, 1, 0]


def test_equals_counting_class_by_class():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 5, (2, 1, 6, 7, 3), generator=generator) for _ in range(2))
    counts = label_counts(first, second, None, 5)
    for c in range(5):
        expected = [(first == c).sum(), (second == c).sum(), ((first == c) & (second == c)).sum()]
        assert counts[:, c].tolist() == expected


def test_regions():
    first = torch.tensor([[1, 1], [0, 1]]).bool().reshape(1, 2, 2)
    second = torch.tensor([[1, 0], [0, 1]]).bool().reshape(1, 2, 2)
    assert region_counts(first, second, None).tolist() == [[2, 1], [1, 1], [1, 1]]
    assert region_counts(first, second, torch.tensor([[[0, 1]]])).tolist() == [[1, 1], [0, 1], [0, 1]]


def test_absent_class_has_no_agreement():
    share, dice = shares_and_agreement(np.array([[4.0, 0], [4, 0], [4, 0]]))
    assert share[1] == 0
    assert np.isnan(dice[1])
