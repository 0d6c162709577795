"""Which slices are sampled, and which of them become references."""

import re

import numpy as np
import pytest

from nnunet_ext.propagation import choose, largest_slices, sampled_slices


def with_areas(*areas):
    """Slices of 3 x 4; ``areas[c][i]`` voxels of class c + 1 in slice i."""
    labels = np.zeros((len(areas[0]), 12), np.int16)
    for label, of_class in enumerate(areas, 1):
        for one, area in zip(labels, of_class, strict=True):
            one[np.flatnonzero(one == 0)[:area]] = label
    return labels.reshape(-1, 3, 4)


def test_sampled_by_hand():
    hundred = [0, 5, 10, 15, 20, 26, 31, 36, 41, 46, 52, 57, 62, 67, 72, 78, 83, 88, 93, 99]
    assert sampled_slices(100) == hundred
    many = sampled_slices(400)
    assert len(many) == 64
    assert many[:8] == [0, 5, 10, 15, 25, 30, 35, 40]
    assert many[-1] == 399
    assert sampled_slices(10) == [0, 9]


@pytest.mark.parametrize("slices", range(1, 10))
def test_of_few_slices_all_are_sampled(slices):
    """The paper's rule would sample none of fewer than five, and of fewer than ten the first one alone."""
    assert sampled_slices(slices) == list(range(slices))


def test_of_few_slices_some_are_spread_evenly():
    assert sampled_slices(9, most=3) == [0, 4, 8]


@pytest.mark.parametrize("slices", [1, 5, 9, 10, 33, 319, 320, 324, 325, 1000, 5000])
def test_sampled_slices_are_there_and_not_too_many(slices):
    sampled = sampled_slices(slices)
    assert sampled
    assert sampled == sorted(set(sampled))
    assert 0 <= sampled[0] <= sampled[-1] < slices
    assert len(sampled) <= 64
    assert len(sampled_slices(slices, most=3)) <= 3


def test_none_can_be_sampled_of_no_slices():
    with pytest.raises(ValueError, match="slices and most must be at least 1, got 0 and 64"):
        sampled_slices(0)


def test_largest_by_hand():
    labels = with_areas([0, 3, 5, 5, 1], [4, 0, 0, 0, 2])
    assert largest_slices(labels, range(5)) == [0, 2]
    assert largest_slices(labels, [3, 8, 13, 18, 23]) == [3, 13]
    assert largest_slices(labels, range(5), classes=[1, 7]) == [2]
    assert largest_slices(labels * 0, range(5)) == []


def test_one_slice_may_be_the_largest_of_several_classes():
    assert largest_slices(with_areas([1, 3, 0], [0, 2, 1], [0, 0, 5]), range(3)) == [1, 2]


def test_ignored_voxels_are_no_class():
    labels = with_areas([0, 3, 0])
    labels[0] = -1
    assert largest_slices(labels, range(3)) == choose(labels, range(3), "uniform") == [1]


def test_choices():
    labels, indices = with_areas([0, 3, 5, 5, 1, 2, 0], [4, 0, 0, 0, 2, 0, 0]), [0, 5, 10, 15, 20, 26, 31]
    assert choose(labels, indices) == choose(labels, indices, "largest") == [0, 10]
    assert choose(labels, indices, "uniform") == [0, 5, 10, 15, 20, 26]
    assert choose(labels, indices, 1) == [15]
    assert choose(labels, indices, 2) == [5, 20]
    assert choose(labels, indices, 3) == [5, 15, 26]
    assert choose(labels, indices, 6) == choose(labels, indices, 99) == [0, 5, 10, 15, 20, 26]
    assert choose(labels * 0, indices, "uniform") == choose(labels * 0, indices, 3) == choose(labels * 0, indices) == []


@pytest.mark.parametrize("how", ["all", 0, -1, True, 1.5, None])
def test_other_choices_are_refused(how):
    message = f"references must be chosen by largest, uniform or a number above 0, got {how!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        choose(np.ones((1, 2, 2), int), [0], how)


def test_each_slice_needs_an_index():
    with pytest.raises(ValueError, match=re.escape("got (2, 3, 4) and 3 indices")):
        largest_slices(np.zeros((2, 3, 4), int), [0, 1, 2])
    with pytest.raises(ValueError, match=re.escape("labels must have shape (n, H, W)")):
        choose(np.zeros((3, 4), int), [0, 1, 2])
