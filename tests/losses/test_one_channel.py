"""One output channel is for regions: exclusive classes would give NaN, or nothing to learn from."""

import pytest
import torch

from nnunet_ext.losses import (
    ContourWeightedLoss,
    DistanceWeightedCrossEntropy,
    GeneralisedDiceLoss,
    HybridLoss,
    cross_pseudo_loss,
)

LOSSES = (ContourWeightedLoss, HybridLoss, GeneralisedDiceLoss, DistanceWeightedCrossEntropy)
MESSAGE = r"exclusive classes need 2 output channels or more.*shape \(2, 1, 6, 7\); for one structure.*regions"


@pytest.mark.parametrize("cls", LOSSES)
def test_exclusive_classes_are_refused(cls):
    with pytest.raises(ValueError, match=MESSAGE):
        cls()(torch.zeros(2, 1, 6, 7), torch.zeros(2, 1, 6, 7))


def test_pseudo_labels_are_refused():
    with pytest.raises(ValueError, match=MESSAGE):
        cross_pseudo_loss(torch.zeros(2, 1, 6, 7), torch.zeros(2, 1, 6, 7))


@pytest.mark.parametrize("cls", LOSSES)
def test_one_region_is_finite(cls):
    target = torch.zeros(2, 1, 6, 7)
    target[:, :, 2:4] = 1
    assert torch.isfinite(cls(regions=True)(torch.zeros(2, 1, 6, 7), target))
