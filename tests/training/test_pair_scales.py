"""Which labels two networks with outputs of other sizes learn."""

import pytest
import torch

from nnunet_ext.training.pair_scales import TargetChoice, labels_for, target_choice, union_of_scales

WHOLE, HALF, QUARTER = [1.0, 1.0], [0.5, 0.5], [0.25, 0.5]


@pytest.mark.parametrize(
    ("first", "second", "union", "choices"),
    [
        (None, None, None, (None, None)),
        ([WHOLE, HALF], [WHOLE, HALF], [WHOLE, HALF], ((0, 1), (0, 1))),
        ([WHOLE, HALF, QUARTER], [WHOLE, HALF], [WHOLE, HALF, QUARTER], ((0, 1, 2), (0, 1))),
        ([WHOLE, HALF], [WHOLE, HALF, QUARTER], [WHOLE, HALF, QUARTER], ((0, 1), (0, 1, 2))),
        ([WHOLE, WHOLE], [WHOLE, HALF], [WHOLE, WHOLE, HALF], ((0, 1), (0, 2))),
        ([WHOLE, HALF], [WHOLE, WHOLE, WHOLE], [WHOLE, HALF], ((0, 1), (0, 0, 0))),
        (None, [WHOLE, HALF], [WHOLE, HALF], (None, (0, 1))),
        ([WHOLE, HALF], None, [WHOLE, HALF], ((0, 1), None)),
        (None, [WHOLE, WHOLE], [WHOLE], (None, (0, 0))),
    ],
)
def test_labels_are_made_at_the_scales_of_both_and_each_network_takes_its_own(first, second, union, choices):
    assert union_of_scales(first, second) == union
    assert tuple(target_choice(scales, union).indices for scales in (first, second)) == choices


def test_choices_by_hand():
    full, half = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 2, 2)
    assert TargetChoice().of([full, half])[1] is half
    assert TargetChoice().of(full) is full
    assert TargetChoice(None).of([full, half]) is full
    assert TargetChoice(None).of(full) is full
    assert TargetChoice((1, 0)).of([full, half])[0] is half
    # the loader hands labels of one scale alone as a tensor
    assert TargetChoice((0,)).of(full) is full
    assert [one is full for one in TargetChoice((0, 0)).of(full)] == [True, True]


def test_labels_of_the_peer_at_own_scales():
    logits = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 1, 1)]
    labels = [torch.arange(16).reshape(1, 1, 4, 4), torch.full((1, 1, 2, 2), 7)]
    found = labels_for(logits, labels)
    assert found[0] is labels[0]
    assert found[1] is labels[1]  # what the peer says at that scale itself
    # nearest-exact: the voxel at the middle, (2, 2)
    assert found[2].tolist() == [[[[10]]]]
    assert found[2].dtype == labels[0].dtype


def test_outputs_of_one_size_learn_the_labels_of_the_same_number():
    logits = [torch.zeros(1, 3, 4, 4)] * 3
    labels = [torch.full((1, 1, 4, 4), number) for number in range(2)]
    assert [int(label[0, 0, 0, 0]) for label in labels_for(logits, labels)] == [0, 1, 0]


def test_regions_stay_bool():
    (found,) = labels_for([torch.zeros(1, 2, 1, 1)], [torch.ones(1, 2, 4, 4, dtype=torch.bool)])
    assert found.dtype == torch.bool
    assert found.shape == (1, 2, 1, 1)
