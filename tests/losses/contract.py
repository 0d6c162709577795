"""What every loss of the package keeps to: the table of losses, and cases to compute them on.

A further loss is one more entry in ``LOSSES``; ``test_loss_contract.py`` then tests it as all the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from nnunet_ext.losses import (
    ContourWeightedLoss,
    DistanceWeightedCrossEntropy,
    GeneralisedDiceLoss,
    HybridLoss,
    bcp_loss,
    cross_pseudo_loss,
    cross_pseudo_region_loss,
    unlabelled_loss,
    unlabelled_region_loss,
)

CLASSES = 3
IGNORED = CLASSES


@dataclass(frozen=True)
class Loss:
    """An entry of the table.

    Args:
        make: Makes the loss from ``regions``, ``ignore_label`` and options; it is called with logits and target.
        variants: Further options, each of which has to stay finite.
        differentiable: Options without which there is no gradient through a part of the loss, on purpose.
        target: What its errors call the target.
        least: What the loss of a sure and right prediction is.
    """

    make: Callable
    variants: dict = field(default_factory=lambda: {"default": {}})
    differentiable: dict = field(default_factory=dict)
    target: str = "target"
    least: float = 0.0


def split(target, regions, ignore_label):
    """Labels, and where they count: what a function of hard labels is told apart."""
    if ignore_label is None or not isinstance(target, torch.Tensor):
        return target, None
    if regions:
        return target[:, :-1], target[:, -1:] <= 0
    mask = target != ignore_label
    return torch.where(mask, target, 0), mask


def cross_pseudo(regions=False, ignore_label=None, **options):
    """Cross pseudo supervision in the form of the other losses: what is to be ignored is in the target."""

    def loss(logits, target):
        labels, mask = split(target, regions, ignore_label)
        return (cross_pseudo_region_loss if regions else cross_pseudo_loss)(logits, labels, mask, **options)

    return loss


def kept_labels(target, regions, ignore_label):
    """Labels, which of them are kept (all that are valid), and the mask of the valid voxels."""
    labels, mask = split(target, regions, ignore_label)
    return labels, torch.ones(labels.shape, dtype=torch.bool), mask


def unlabelled(regions=False, ignore_label=None, **options):
    """The loss of unlabelled patches, all valid labels kept."""

    def loss(logits, target):
        function = unlabelled_region_loss if regions else unlabelled_loss
        return function(logits, *kept_labels(target, regions, ignore_label), **options)

    return loss


def bidirectional(regions=False, ignore_label=None, **options):
    """The loss of mixed patches, labelled in the first half of the first axis."""

    def loss(logits, target):
        labels, kept, mask = kept_labels(target, regions, ignore_label)
        labelled = torch.zeros((len(labels), 1, *labels.shape[2:]), dtype=torch.bool)
        labelled[:, :, : labelled.shape[2] // 2] = True
        return bcp_loss(logits, labels, kept, labelled, mask, regions=regions, **options)

    return loss


LOSSES = {
    "contour-weighted": Loss(
        ContourWeightedLoss,
        {
            "default": {},
            "not smoothed": {"smooth": 0.0},
            "bands": {"iterations": 3, "min_interior": 0.2},
            "pooled": {"reduction": "pooled"},
        },
    ),
    "hybrid": Loss(HybridLoss, differentiable={"gamma": 0.0}),
    "generalised Dice": Loss(GeneralisedDiceLoss),
    "distance-weighted": Loss(DistanceWeightedCrossEntropy),
    "cross pseudo": Loss(cross_pseudo, target="labels", least=-1.0),
    "unlabelled": Loss(
        unlabelled, {"default": {}, "a Dice a sample": {"batch_dice": False}}, target="labels", least=-1.0
    ),
    "bidirectional": Loss(bidirectional, target="labels", least=-1.0),
}

MODULES = [name for name, loss in LOSSES.items() if isinstance(loss.make, type)]

EACH = pytest.mark.parametrize("name", LOSSES)
EACH_KIND = pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])
EACH_SHAPE = pytest.mark.parametrize("shape", [(2, CLASSES, 9, 8), (2, CLASSES, 4, 6, 5)], ids=["2d", "3d"])
EACH_VARIANT = pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name, loss in LOSSES.items() for variant in loss.variants]
)


def make(name, regions=False, ignored=False, **options):
    return LOSSES[name].make(regions=regions, ignore_label=IGNORED if ignored else None, **options)


def as_target(labels, regions, ignored=False):
    """Labels as they are, or overlapping regions {1, 2}, {2} and {1}, and the channel of what is to be ignored."""
    if not regions:
        return labels
    channels = [(labels > 0) & (labels < IGNORED), labels == 2, labels == 1]
    return torch.cat([*channels, labels == IGNORED] if ignored else channels, 1)


def case(shape=(2, CLASSES, 9, 8), regions=False, ignored=False, seed=0, dtype=torch.float32):
    """Random logits, and a target of random labels around a box of label 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=dtype)
    labels = torch.randint(0, CLASSES + ignored, (shape[0], 1, *shape[2:]), generator=generator)
    labels[:, :, :4, :3] = 1
    return logits, as_target(labels, regions, ignored)


def hidden(target, regions):
    """The voxels to be ignored, ``(B, 1, *S)``."""
    return target[:, -1:] > 0 if regions else target == IGNORED
