"""Counts of labels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_ext.training.counting import class_counts, counts_of


def test_indices_outside_are_left_out():
    index = torch.tensor([-1, 0, 0, 2, 3, 99, 1])
    there = torch.tensor([True] * 6 + [False])
    assert counts_of(index, there, 3).tolist() == [2, 0, 1]


@pytest.mark.parametrize("number", [1, 3, 1400, 11800])
def test_every_index_has_a_bin_of_its_own(number):
    index = torch.arange(number)
    assert torch.equal(
        counts_of(index.repeat(2), torch.ones(2 * number, dtype=torch.bool), number), torch.full((number,), 2.0)
    )


def test_large_counts():
    """float32 cannot count beyond 2^24 by ones."""
    index = torch.zeros(2**24 + 2**20, dtype=torch.uint8)
    assert counts_of(index, torch.ones_like(index, dtype=torch.bool), 2).tolist() == [2**24 + 2**20, 0]


def test_classes():
    labels = torch.tensor([0, 2, 2, 1]).reshape(1, 1, 2, 2)
    assert class_counts(labels, None, 3).tolist() == [1, 1, 2]
    assert class_counts(labels, torch.tensor([1, 1, 0, 1]).reshape(1, 1, 2, 2), 3).tolist() == [1, 1, 1]


def test_regions():
    labels = torch.tensor([[[[1, 1]], [[0, 1]]]])
    assert class_counts(labels, None, 2, regions=True).tolist() == [[0, 1], [2, 1]]
    there = torch.tensor([[[[1, 0]]]])
    assert class_counts(labels > 0, there, 2, regions=True).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("regions", [False, True])
def test_no_call_waits_for_the_device(regions):
    with FakeTensorMode():
        labels = torch.empty((2, 3 if regions else 1, 4, 4), dtype=torch.int64)
        assert class_counts(labels, torch.empty(2, 1, 4, 4), 3, regions).shape == ((2, 3) if regions else (3,))
