"""Agreement and suggestions, by hand."""

import pytest
import torch

from nnunet_ext.propagation import suggest
from nnunet_ext.propagation.results import BACKWARD, FORWARD, Propagated, Results


def collected(slices=5, classes=(1, 4), weighting="mean"):
    references = {0: torch.tensor([[1, 4, 0, 0]]), slices - 1: torch.tensor([[0, 0, 0, 0]])}
    return Results((slices, 1, 4), references, classes, weighting, 5)


def likely(*labels, sure=0.9, classes=(1, 4)):
    """Probabilities of a slice of one row, ``sure`` at its labels."""
    channels = torch.tensor([(0, *classes).index(label) for label in labels])
    rest = (1 - sure) / len(classes)
    return torch.full((len(classes) + 1, 1, len(labels)), rest).scatter_(0, channels[None, None], sure)


def test_agreement_of_two_passes_is_mean_dice_over_classes_in_either():
    results = collected()
    results.add(1, FORWARD, likely(1, 1, 0, 0), 0, 4)
    results.add(1, BACKWARD, likely(1, 0, 0, 4), 0, 4)
    assert results.result.agreement[1] == pytest.approx((2 / 3 + 0) / 2)
    results.add(2, FORWARD, likely(0, 0, 0, 0), 0, 4)
    results.add(2, BACKWARD, likely(0, 0, 0, 0), 0, 4)
    assert results.result.agreement[2] == 1
    results.add(3, FORWARD, likely(1, 1, 4, 0), 0, 4)
    results.add(3, BACKWARD, likely(1, 1, 4, 0), 0, 4)
    assert results.result.agreement[3] == 1
    assert torch.isnan(results.result.agreement[[0, 4]]).all()
    assert results.result.forward[1].tolist() == [[1, 1, 0, 0]]
    assert results.result.backward[1].tolist() == [[1, 0, 0, 4]]


def test_agreement_of_one_pass_is_soft_dice_of_its_own():
    results = collected()
    results.add(1, FORWARD, likely(1, 1, 0, 0, sure=0.8), 0, None)
    # class 1: 1.6 of its probabilities lie in its two voxels, and 0.2 in the others
    assert results.result.agreement[1] == pytest.approx(2 * 1.6 / (1.8 + 2))
    results.add(2, FORWARD, likely(0, 0, 0, 0, sure=0.6), 0, None)
    assert results.result.agreement[2] == 1
    assert results.result.directions[:3].tolist() == [[False, False], [True, False], [True, False]]


def test_labels_are_those_of_the_mean():
    results = collected()
    results.add(1, FORWARD, likely(1, 0, 0, 0, sure=0.9), 0, 4)
    results.add(1, BACKWARD, likely(4, 4, 0, 0, sure=0.8), 0, 4)
    assert results.result.labels[1].tolist() == [[1, 0, 0, 0]]
    expected = (likely(1, 0, 0, 0, sure=0.9) + likely(4, 4, 0, 0, sure=0.8)) / 2
    torch.testing.assert_close(results.result.probabilities[:, 1].float(), expected, atol=1e-3, rtol=0)


def with_agreement(*values, every=5):
    agreement = torch.tensor(values)
    empty = torch.zeros(len(values), 1, 1)
    directions = ~torch.isnan(agreement)[:, None].expand(-1, 2)
    return Propagated((1,), empty[None], empty, empty, empty, directions, agreement, every)


def test_suggestions_keep_their_distance_where_possible():
    nan = float("nan")
    propagated = with_agreement(nan, 0.5, 0.1, 0.2, 0.3, 0.9, 0.8, 0.4, nan)
    assert suggest(propagated, 1) == [2]
    assert suggest(propagated, 2) == [2, 7]
    assert suggest(propagated, 3) == [2, 4, 7]  # 5 slices of distance leave two of them, and so do 4 and 3
    assert sorted(suggest(propagated, 99)) == [1, 2, 3, 4, 5, 6, 7]
    assert suggest(with_agreement(nan, nan), 3) == []
    assert suggest(with_agreement(0.5, 0.5, nan, every=1), 1) == [0]


def test_some_must_be_asked_for():
    with pytest.raises(ValueError, match="at least 1 slice must be asked for, got 0"):
        suggest(with_agreement(0.5), 0)
