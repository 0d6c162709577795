"""Cross pseudo supervision at one scale."""

import math

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from reference import naive_cps

from nnunet_ext.losses import cross_pseudo_loss, cross_pseudo_region_loss, pseudo_labels

SHAPES = [(2, 3, 4, 5), (2, 3, 2, 4, 3)]  # 2D, and 3D with unequal sides


def case(shape, seed=0, dtype=torch.float32, masked=True):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=dtype)
    labels = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    mask = (torch.rand((shape[0], 1, *shape[2:]), generator=generator) > 0.3).to(torch.uint8) if masked else None
    return logits, labels, mask


def test_hand_computed_value():
    # Two voxels, two classes, logits (0, log 3): class 1 has probability 3/4 in both voxels; labels 1 and 0.
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), math.log(3)]]])[..., None]
    labels = torch.tensor([[[1, 0]]])[..., None]
    ce = -(math.log(0.75) + math.log(0.25)) / 2
    dice = (2 * 0.75 + 1e-5) / (1.5 + 1 + 1e-5)
    assert cross_pseudo_loss(logits, labels).item() == pytest.approx(ce - dice, rel=1e-6)


def test_hand_computed_region_value():
    # One voxel, two regions with logits log 3 (p = 3/4, label 1) and 0 (p = 1/2, label 0).
    logits = torch.tensor([math.log(3), 0.0]).reshape(1, 2, 1, 1)
    labels = torch.tensor([True, False]).reshape(1, 2, 1, 1)
    ce = -(math.log(0.75) + math.log(0.5)) / 2
    dice = ((1.5 + 1e-5) / (1.75 + 1e-5) + 1e-5 / (0.5 + 1e-5)) / 2
    assert cross_pseudo_region_loss(logits, labels).item() == pytest.approx(ce - dice, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_naive_version(shape, batch_dice, masked):
    logits, labels, mask = case(shape, masked=masked)
    expected = naive_cps.cross_pseudo_loss(logits, labels, mask, batch_dice)
    assert cross_pseudo_loss(logits, labels, mask, batch_dice).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_regions_equal_naive_version(shape, batch_dice, masked):
    logits, _, mask = case(shape, masked=masked)
    labels = pseudo_labels(case(shape, seed=1)[0], regions=True)
    expected = naive_cps.region_loss(logits, labels, mask, batch_dice)
    assert cross_pseudo_region_loss(logits, labels, mask, batch_dice).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_equals_nnunet_loss(shape, batch_dice):
    logits, labels, mask = case(shape)
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "ddp": False}
    stock = DC_and_CE_loss(
        options | {"do_bg": False}, {}, ignore_label=shape[1], dice_class=MemoryEfficientSoftDiceLoss
    )
    expected = stock(logits, torch.where(mask > 0, labels, shape[1]))
    torch.testing.assert_close(cross_pseudo_loss(logits, labels, mask, batch_dice), expected)

    regions = pseudo_labels(case(shape, seed=1)[0], regions=True)
    stock = DC_and_BCE_loss(
        {}, options | {"do_bg": True}, use_ignore_label=False, dice_class=MemoryEfficientSoftDiceLoss
    )
    torch.testing.assert_close(
        cross_pseudo_region_loss(logits, regions, None, batch_dice), stock(logits, regions.float())
    )


@pytest.mark.parametrize("function", [cross_pseudo_loss, cross_pseudo_region_loss])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_under_the_mask_counts(function, shape):
    logits, labels, mask = case(shape)
    if function is cross_pseudo_region_loss:
        labels = pseudo_labels(case(shape, seed=1)[0], regions=True)
    other_logits, other_labels = logits.clone(), labels.clone()
    hidden = (mask == 0).expand_as(logits)
    other_logits[hidden] += 7.0
    hidden = (mask == 0).expand_as(labels)
    other_labels[hidden] = 1 - other_labels[hidden].long().clamp(0, 1) > 0 if labels.dtype == torch.bool else 2
    assert function(other_logits, other_labels, mask).item() == function(logits, labels, mask).item()


def test_pseudo_labels_carry_no_gradient():
    first = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    second = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert not pseudo_labels(second).requires_grad
    cross_pseudo_loss(first, pseudo_labels(second)).backward()
    assert first.grad.abs().sum() > 0
    assert second.grad is None


def test_pseudo_labels_are_argmax_or_thresholds():
    logits = torch.tensor([[0.2, 0.2, -1.0], [-0.1, 0.0, 0.1]]).reshape(2, 3, 1, 1)
    assert pseudo_labels(logits).flatten().tolist() == [0, 2]
    assert pseudo_labels(logits, regions=True).reshape(2, 3).tolist() == [[True, True, False], [False, False, True]]


def test_a_small_network_fits_one_patch():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 3, 1))
    image = torch.rand(1, 1, 8, 8)
    labels = (image * 3).long().clamp(0, 2)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss = cross_pseudo_loss(network(image), labels)
        loss.backward()
        optimizer.step()
    assert (network(image).argmax(1, keepdim=True) == labels).float().mean() > 0.95


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_without_graph_breaks(masked):
    logits, labels, mask = case((2, 3, 4, 4), masked=masked)
    compiled = torch.compile(cross_pseudo_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, labels, mask), cross_pseudo_loss(logits, labels, mask))


def test_wrong_shapes():
    logits, labels, mask = case((2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 1, 4, 4\), got \(2, 1, 2, 4\)"):
        cross_pseudo_loss(logits, labels[:, :, :2], mask)
    with pytest.raises(ValueError, match=r"valid_mask must have shape \(2, 1, 4, 4\)"):
        cross_pseudo_loss(logits, labels, mask[:, 0])
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 3, 4, 4\)"):
        cross_pseudo_region_loss(logits, labels, mask)


def test_pseudo_labels_of_one_channel():
    """The highest of one channel is always that channel."""
    with pytest.raises(ValueError, match=r"exclusive classes need 2 output channels or more.*shape \(2, 1, 4, 4\)"):
        pseudo_labels(torch.zeros(2, 1, 4, 4))
    assert pseudo_labels(torch.ones(2, 1, 4, 4), regions=True).all()
