"""Thickness of contours from plans, and the contour-weighted losses over scales."""

import pytest
import torch

from nnunet_ext.losses import ContourWeightedLoss
from nnunet_ext.training.contours import ContourPseudoCriterion, band_iterations, iterations_at_scale
from nnunet_ext.training.criteria import DeepSupervision


@pytest.mark.parametrize(
    ("spacing", "options", "expected"),
    [
        ((1.0, 1.0, 1.0), {}, (1, 1, 1)),
        ((3.0, 1.0, 1.0), {"iterations": 6}, (6, 6, 6)),
        ((3.1, 1.0, 1.0), {"iterations": 6}, (0, 6, 6)),  # more than three times the finest
        ((0.7, 0.7), {"iterations": 2}, (2, 2)),
        ((1.0, 1.0, 1.0), {"iterations": 0}, (0, 0, 0)),
        ((5.0, 0.8, 0.8), {"thickness_mm": 2.0}, (0, 3, 3)),  # 0.4 and 2.5 voxels
        ((5.0, 0.8, 0.8), {"thickness_mm": 2.5}, (1, 3, 3)),
        ((5.0, 0.8, 1.2), {"thickness_mm": 0.1}, (0, 1, 0)),
    ],
)
def test_erosions_of_each_axis(spacing, options, expected):
    assert band_iterations(spacing, **options) == expected


@pytest.mark.parametrize("thickness", [0.0, -1.0, float("nan")])
def test_impossible_thickness(thickness):
    with pytest.raises(ValueError, match=f"must be positive, got {thickness} mm; pass e.g. 2.0"):
        band_iterations((1.0, 1.0), thickness_mm=thickness)


def test_thickness_in_mm_needs_the_box_of_three():
    with pytest.raises(ValueError, match="counts in boxes of 3 voxels, got a kernel of 5; give only one of them"):
        band_iterations((1.0, 1.0), thickness_mm=2.0, kernel=5)


def test_thickness_at_lower_scales():
    assert iterations_at_scale((6, 6, 0), (1, 1, 1)) == (6, 6, 0)
    assert iterations_at_scale((6, 6, 0), (1, 2, 2)) == (6, 3, 0)
    assert iterations_at_scale((6, 1, 2), (16, 4, 4)) == (1, 1, 1)  # never thinner than a voxel


def test_each_scale_has_a_loss_of_its_own():
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(1, 3, s, s, generator=generator) for s in (8, 4, 2)]
    targets = [torch.randint(0, 3, (1, 1, s, s), generator=generator) for s in (8, 4, 2)]
    losses = [ContourWeightedLoss(iterations=n) for n in (2, 1, 1)]
    found = DeepSupervision(losses, (2 / 3, 1 / 3, 0.0))(outputs, targets)
    expected = 2 / 3 * losses[0](outputs[0], targets[0]) + 1 / 3 * losses[1](outputs[1], targets[1])
    torch.testing.assert_close(found, expected)
    single = DeepSupervision(losses[:1], (1.0,))
    assert torch.equal(single(outputs[0], targets[0]), losses[0](outputs[0], targets[0]))


@pytest.mark.parametrize("regions", [False, True])
def test_pseudo_labels_outside_of_the_mask_do_not_count(regions):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 8, 8, generator=generator)
    labels = torch.randint(0, 3, (1, 1, 8, 8), generator=generator)
    if regions:
        labels = torch.randn(1, 3, 8, 8, generator=generator) > 0
    mask = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    loss = ContourWeightedLoss(regions=regions, ignore_label=3)
    criterion = ContourPseudoCriterion((1.0,), [loss], regions)
    plain = ContourWeightedLoss(regions=regions)(logits, labels)
    torch.testing.assert_close(criterion([logits], [labels], None), plain)
    torch.testing.assert_close(criterion([logits], [labels], mask), plain)
    mask[..., :3] = 0
    other = labels.clone()
    other[..., :3] = ~other[..., :3] if regions else 1
    assert torch.equal(criterion([logits], [labels], mask), criterion([logits], [other], mask))
    assert not torch.equal(criterion([logits], [labels], mask), plain)


@pytest.mark.parametrize("kernel", [(3, 3, 3), [3, 3, 3], 3])
def test_thickness_in_mm_takes_the_box_of_three_however_it_is_written(kernel):
    assert band_iterations((5.0, 0.8, 0.8), thickness_mm=2.0, kernel=kernel) == (0, 3, 3)


def test_thickness_in_mm_refuses_a_box_of_which_one_side_is_another():
    with pytest.raises(ValueError, match=r"got a kernel of \(1, 3, 3\); give only one of them"):
        band_iterations((5.0, 0.8, 0.8), thickness_mm=2.0, kernel=(1, 3, 3))
