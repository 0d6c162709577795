"""Scores of agreement: golden numbers, a naive version, and classes that are not there."""

import math

import numpy as np
import pytest

from nnunet_ext.inference.agreement_scores import Agreement, mean_score

# rows [x][y][t] -> slices along t first
A = np.array([[[1, 1, 0], [1, 0, 0]], [[2, 2, 0], [0, 0, 0]]]).transpose(2, 0, 1)
B = np.array([[[1, 1, 0], [1, 1, 0]], [[2, 0, 0], [0, 0, 0]]]).transpose(2, 0, 1)
C = np.array([[[1, 0, 0], [0, 0, 0]], [[2, 2, 2], [0, 0, 0]]]).transpose(2, 0, 1)
TWO = {"first": 1, "second": 2}


def agreement(consensus, labels, regions=TWO):
    result = Agreement(regions, len(labels), len(consensus))
    result.add(consensus, labels)
    return result


def test_golden_volume():
    scores = agreement(A, [A, B, C]).class_scores()
    assert scores["first"] == pytest.approx((1 + 6 / 7 + 0.5) / 3)
    assert scores["second"] == pytest.approx((1 + 2 / 3 + 0.8) / 3)
    assert mean_score(scores) == pytest.approx(0.803968, abs=1e-6)


def test_golden_slices():
    assert mean_score(agreement(A, [A, B, C]).class_scores("slice")) == pytest.approx(0.796296, abs=1e-6)


def test_networks_that_disagree_about_everything_have_no_score_to_hide_behind():
    """One organ in three places, twelve that nobody has: those do not count."""
    labels = [np.zeros((2, 3, 3), int) for _ in range(3)]
    for number, one in enumerate(labels):
        one[:, number, :] = 1
    thirteen = {str(label): label for label in range(1, 14)}
    scores = agreement(np.zeros((2, 3, 3), int), labels, thirteen).class_scores()
    assert scores.pop("1") == 0
    assert all(math.isnan(score) for score in scores.values())
    assert mean_score(scores | {"1": 0.0}) == 0


def test_a_scan_without_any_class_has_no_score():
    empty = np.zeros((2, 3, 3), int)
    assert math.isnan(mean_score(agreement(empty, [empty, empty]).class_scores()))


@pytest.mark.parametrize("kind", ["volume", "slice"])
@pytest.mark.parametrize("regions", [TWO, {"whole": (1, 2), "core": (2,)}])
def test_slab_by_slab_is_the_same_as_at_once_and_as_naive(kind, regions):
    rng = np.random.default_rng(3)
    consensus, *labels = rng.integers(0, 3, (4, 7, 5, 4))
    whole = agreement(consensus, labels, regions).class_scores(kind)
    slabs = Agreement(regions, 3, 7)
    for first, end in ((0, 3), (3, 4), (4, 7)):
        slabs.add(consensus[first:end], [one[first:end] for one in labels], first)
    assert slabs.class_scores(kind) == whole

    def dice(one, two):
        return 1.0 if not one.any() and not two.any() else 2 * (one & two).sum() / (one.sum() + two.sum())

    for name, region in regions.items():
        masks = [np.isin(one, region) for one in (consensus, *labels)]
        pieces = [[mask] for mask in masks] if kind == "volume" else masks
        naive = np.mean([dice(a, b) for own in pieces[1:] for a, b in zip(own, pieces[0], strict=True)])
        assert whole[name] == pytest.approx(naive)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Agreement(TWO, 1, 3), "two networks or more, got 1"),
        (lambda: agreement(A, [A, B[:2]]), "needs 2 label maps of shape"),
        (lambda: agreement(A, [A, B]).class_scores("voxel"), "one of volume, slice, got 'voxel'"),
    ],
)
def test_calls_that_make_no_sense(call, message):
    with pytest.raises(ValueError, match=message):
        call()
