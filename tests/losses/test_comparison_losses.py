"""Generalised Dice and distance-weighted cross-entropy."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch.nn import functional

from nnunet_ext.losses import DistanceWeightedCrossEntropy, GeneralisedDiceLoss, contour_map
from nnunet_ext.losses.distance_weighted import boundary_closeness


def case(shape=(2, 3, 9, 8), seed=0, dtype=torch.float32, ignored=False):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=dtype)
    labels = torch.randint(0, shape[1] + ignored, (shape[0], 1, *shape[2:]), generator=generator)
    labels[:, :, :4, :3] = 1
    return logits, labels


def as_regions(labels, ignored=False):
    parts = [labels > 0, labels == 2, labels == 1]
    return torch.cat([*parts, labels == 3] if ignored else parts, 1)


def naive_generalised_dice(logits, labels, batch_dice, smooth=1e-12):
    """Sudre et al., Eq. for GDL, with loops over classes; every class is present."""
    probs = torch.softmax(logits.double(), 1)
    groups = [(probs, labels)] if batch_dice else zip(probs.split(1), labels.split(1), strict=True)
    values = []
    for p, label in groups:
        above = below = 0.0
        for c in range(logits.shape[1]):
            truth = (label[:, 0] == c).double()
            weight = 1 / truth.sum() ** 2
            above += weight * (p[:, c] * truth).sum()
            below += weight * (p[:, c].sum() + truth.sum())
        values.append(1 - (2 * above + smooth) / (below + smooth))
    return sum(values) / len(values)


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (2, 3, 4, 6, 5)])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_generalised_dice_equals_naive_version(shape, batch_dice):
    logits, labels = case(shape)
    expected = naive_generalised_dice(logits, labels, batch_dice)
    assert GeneralisedDiceLoss(batch_dice=batch_dice)(logits, labels).item() == pytest.approx(expected.item(), rel=1e-4)


def test_generalised_dice_by_hand():
    # Four voxels, one of class 1; probability 3/4 for class 1 everywhere. Weights 1/9 and 1.
    labels = torch.tensor([0, 0, 0, 1]).reshape(1, 1, 1, 4)
    logits = torch.tensor([0.0, math.log(3)]).reshape(1, 2, 1, 1).expand(1, 2, 1, 4)
    above = 3 * 0.25 / 9 + 0.75
    below = (4 * 0.25 + 3) / 9 + (4 * 0.75 + 1)
    expected = 1 - 2 * above / below
    assert GeneralisedDiceLoss()(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_generalised_dice_of_large_patches_is_not_smoothed_away():
    labels = torch.zeros(1, 1, 100, 100, 100, dtype=torch.uint8)
    labels[..., :50, :, :] = 1
    wrong = torch.stack([labels[0], 1 - labels[0]], 1).float() * 20
    assert GeneralisedDiceLoss()(wrong, labels).item() == pytest.approx(1, abs=1e-3)
    assert GeneralisedDiceLoss()(-wrong, labels).item() == pytest.approx(0, abs=1e-3)


def test_closeness_by_hand():
    # a row 0 0 0 0 1 1 1: the boundary is at the fourth and fifth voxel, the first voxel is 3 away from it
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1]).reshape(1, 1, 1, 7)
    expected = [0, 1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3]
    assert boundary_closeness(labels).flatten().tolist() == pytest.approx(expected, abs=1e-6)
    logits = torch.zeros(1, 2, 1, 7)
    weight = 1 + sum(expected) / 7
    assert DistanceWeightedCrossEntropy()(logits, labels).item() == pytest.approx(weight * math.log(2), rel=1e-6)


@pytest.mark.parametrize("spacing", [None, (3.0, 1.0), (3.0, 1.0, 0.5)])
def test_closeness_equals_scipy(spacing):
    _, labels = case((2, 3, 9, 8) if spacing is None or len(spacing) == 2 else (2, 3, 4, 6, 5))
    labels[1] = 0
    labels[1, 0, 2:4, 2:4] = 1
    for sample, found in zip(labels, boundary_closeness(labels, spacing), strict=True):
        distance = distance_transform_edt(~contour_map(sample[None])[0, 0].numpy(), spacing)
        np.testing.assert_allclose(found[0], 1 - distance / max(distance.max(), 1e-8), atol=1e-6)


def test_the_edge_of_an_ignored_area_is_no_boundary():
    labels = torch.zeros(1, 1, 9, 9, dtype=torch.int64)
    labels[..., 5:] = 1
    expected = boundary_closeness(labels)
    ignored = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    ignored[:, :, :3] = True
    assert torch.equal(boundary_closeness(labels, ignored=ignored)[~ignored], expected[~ignored])
    ignored[..., 4:6] = True
    assert boundary_closeness(labels, ignored=ignored).max() == 0
    two = torch.cat([labels > 0, labels == 0], 1)
    assert boundary_closeness(two, ignored=ignored).max() == 0


def test_distance_weighted_regions_have_their_own_boundaries():
    logits, labels = case()
    target = as_regions(labels)
    weights = 1 + torch.cat([boundary_closeness(target[:, n : n + 1]) for n in range(3)], 1)
    bce = functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    found = DistanceWeightedCrossEntropy(regions=True)(logits, target)
    torch.testing.assert_close(found, (weights * bce).mean())


@pytest.mark.parametrize("spacing", [(1.0, 0.0), (1.0, -2.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_a_spacing_that_is_no_length(spacing):
    with pytest.raises(ValueError, match=r"spacing must be positive numbers, one for each axis of a voxel, got \("):
        DistanceWeightedCrossEntropy(spacing)


def test_a_spacing_of_other_axes():
    loss = DistanceWeightedCrossEntropy((3.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"one number for each of the 2 axes of the labels, got \(3.0, 1.0, 1.0\)"):
        loss(*case())
