"""What the part ``CWCD`` is made of: band thickness from plans, and the losses over all scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn

from nnunet_ext.losses import ContourWeightedLoss
from nnunet_ext.training.criteria import (
    CrossPseudoCriterion,
    DeepSupervision,
    scale_weights,
    strides_of_scales,
    supervised_criterion,
)

ANISOTROPY = 3.0  # nnU-Net's own threshold for treating an axis apart


def band_iterations(
    spacing_mm: Sequence[float], iterations: int = 1, thickness_mm: float | None = None
) -> tuple[int, ...]:
    """Return the erosions along each axis.

    Args:
        spacing_mm: Of the images, array order.
        iterations: Thickness in voxels (with a kernel of 3). An axis coarser than three times the finest gets 0: a
            slice away is no neighbour there.
        thickness_mm: Thickness in mm instead, rounded to voxels along each axis, at least 1 along the finest.

    Raises:
        ValueError: If the thickness is not positive.
    """
    finest = min(spacing_mm)
    if thickness_mm is None:
        return tuple(iterations if spacing <= ANISOTROPY * finest else 0 for spacing in spacing_mm)
    if not thickness_mm > 0:
        raise ValueError(f"the thickness of the contour must be positive, got {thickness_mm} mm; pass e.g. 2.0")
    return tuple(max(int(thickness_mm / s + 0.5), int(s == finest)) for s in spacing_mm)


def scaled(iterations: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Return the erosions at a scale of deep supervision: as thick as at full resolution, at least one voxel."""
    return tuple(max(1, round(n / stride)) if n else 0 for n, stride in zip(iterations, strides, strict=True))


def contour_loss(trainer: Any, strides: Sequence[int], ignore_label: int | None) -> nn.Module:
    """Make the loss of one scale from the settings of a trainer with the part CWCD."""
    iterations = band_iterations(
        trainer.configuration_manager.spacing, trainer.contour_iterations, trainer.contour_thickness_mm
    )
    loss = ContourWeightedLoss(
        trainer.contour_kernel,
        scaled(iterations, strides),
        trainer.contour_border,
        regions=trainer.label_manager.has_regions,
        ignore_label=ignore_label,
        batch_dice=trainer.configuration_manager.batch_dice,
        reduction=trainer.contour_reduction,
        ce_contour_weight=trainer.contour_ce_weight,
        dice_contour_weight=trainer.contour_dice_weight,
        dice_complement_weight=1 - trainer.contour_dice_weight,
        background_contour=trainer.contour_of_background,
        min_interior=trainer.contour_min_interior,
        gather=AllGatherGrad.apply if trainer.is_ddp else None,
    )
    if trainer._do_i_compile() and not trainer.is_ddp:
        loss.compile()
    return loss


def contour_criterion(trainer: Any) -> DeepSupervision:
    """Return the loss of the labelled patches."""
    return supervised_criterion(trainer, lambda s: contour_loss(trainer, s, trainer.label_manager.ignore_label))


class ContourPseudoCriterion(CrossPseudoCriterion):
    """The contour-weighted loss of one network against the labels of its peer, over all scales.

    Args:
        weights: One weight an output; outputs of weight 0 are skipped.
        losses: One an output, with ``ignore_label`` (for regions any, for labels K, the number of classes).
        regions: Overlapping regions instead of exclusive classes.
    """

    def __init__(self, weights: Sequence[float], losses: Sequence[nn.Module], regions: bool) -> None:
        super().__init__(weights, regions, batch_dice=False, ddp=False)
        self.losses, self.regions = nn.ModuleList(losses), regions

    def loss_of_scale(self, scale: int, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of one output; what lies outside of the mask is ignored."""
        if mask is None:
            mask = torch.ones_like(logits[:, :1])
        hidden = mask <= 0
        target = torch.cat([target, hidden], 1) if self.regions else target.masked_fill(hidden, logits.shape[1])
        return self.losses[scale](logits, target)


def contour_pseudo_criterion(trainer: Any) -> ContourPseudoCriterion:
    """Return the contour-weighted loss of the pseudo-labels."""
    ignore = trainer.label_manager.num_segmentation_heads
    losses = [contour_loss(trainer, strides, ignore) for strides in strides_of_scales(trainer)]
    return ContourPseudoCriterion(scale_weights(trainer), losses, trainer.label_manager.has_regions)
