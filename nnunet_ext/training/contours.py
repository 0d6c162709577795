"""What the part ``CWCD`` is made of: band thickness from plans, and the losses over all scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from torch import Tensor, nn

from nnunet_ext.losses import ContourWeightedLoss
from nnunet_ext.training.criteria import (
    DeepSupervision,
    PseudoCriterion,
    compiled,
    strides_of_scales,
    sum_over_processes,
)
from nnunet_ext.training.host import ExtTrainer


def band_iterations(
    spacing_mm: Sequence[float], iterations: int = 1, thickness_mm: float | None = None, kernel: int | Sequence[int] = 3
) -> tuple[int, ...]:
    """Return the erosions along each axis.

    Args:
        spacing_mm: Spacing of the images, array order.
        iterations: Number of erosions. An axis coarser than three times the finest gets 0: a slice away is no neighbour
            there.
        thickness_mm: Thickness of the band in mm instead of erosions, rounded to voxels along each axis, at least 1
            along the finest.
        kernel: Size of the box of one erosion, one number or one an axis; a thickness in mm counts in boxes of 3
            voxels, one voxel an erosion.

    Raises:
        ValueError: If the thickness is not positive, or given with another box.
    """
    finest = min(spacing_mm)
    if thickness_mm is None:
        return tuple(iterations if spacing <= ANISO_THRESHOLD * finest else 0 for spacing in spacing_mm)
    if not 0 < thickness_mm < math.inf:
        raise ValueError(f"the thickness of the contour must be positive, got {thickness_mm} mm; pass e.g. 2.0")
    sizes = {kernel} if isinstance(kernel, int) else set(kernel)
    if sizes != {3}:
        raise ValueError(
            f"a thickness in mm counts in boxes of 3 voxels, got a kernel of {kernel}; give only one of them"
        )
    return tuple(max(int(thickness_mm / s + 0.5), int(s == finest)) for s in spacing_mm)


def iterations_at_scale(iterations: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Return the erosions at a scale of deep supervision: as thick as at full resolution, at least one voxel."""
    return tuple(max(1, round(n / stride)) if n else 0 for n, stride in zip(iterations, strides, strict=True))


class ContourTrainer(ExtTrainer, Protocol):
    """A trainer with the part ``CWCD``; the part says what each setting does."""

    contour_kernel: int | Sequence[int]
    contour_iterations: int
    contour_thickness_mm: float | None
    contour_border: str
    contour_reduction: str
    contour_ce_weight: float
    contour_dice_weight: float
    contour_of_background: bool
    contour_min_interior: float
    contour_pseudo_labels: bool


def refuse_unsupported(trainer: ContourTrainer) -> None:
    """Raise where the settings of a trainer make no sense.

    Raises:
        ValueError: If they do not.
    """
    if trainer.contour_pseudo_labels and not hasattr(trainer, "cps_weight"):
        raise ValueError("contour_pseudo_labels needs pseudo-labels; use nnUNetTrainerCPS_CWCD, or leave it False")
    if not 0 <= trainer.contour_dice_weight <= 1:
        raise ValueError(f"contour_dice_weight is a share from 0 to 1, got {trainer.contour_dice_weight}")


def contour_losses(trainer: ContourTrainer, ignore_label: int | None) -> list[nn.Module]:
    """Make the losses of all scales from the settings of a trainer with the part CWCD.

    Scales with bands of equal numbers of voxels share one loss, so that it is compiled once.
    """
    iterations = band_iterations(
        trainer.configuration_manager.spacing,
        trainer.contour_iterations,
        trainer.contour_thickness_mm,
        trainer.contour_kernel,
    )
    steps = [iterations_at_scale(iterations, strides) for strides in strides_of_scales(trainer)]
    made = {step: _contour_loss(trainer, step, ignore_label) for step in dict.fromkeys(steps)}
    return [made[step] for step in steps]


def _contour_loss(trainer: ContourTrainer, iterations: tuple[int, ...], ignore_label: int | None) -> nn.Module:
    loss = ContourWeightedLoss(
        trainer.contour_kernel,
        iterations,
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
        gather=sum_over_processes(trainer.is_ddp),
    )
    return compiled(trainer, loss)


def contour_criterion(trainer: ContourTrainer) -> DeepSupervision:
    """Return the loss of the labelled patches."""
    return DeepSupervision(contour_losses(trainer, trainer.label_manager.ignore_label), trainer.output_weights())


class ContourPseudoCriterion(PseudoCriterion):
    """The contour-weighted loss of one network against the labels of its peer, over all scales.

    Args:
        weights: One weight an output; outputs of weight 0 are skipped.
        losses: One loss an output, with an ``ignore_label`` (for regions any, for labels K, the number of classes).
        regions: Whether there are overlapping regions instead of exclusive classes.
    """

    def __init__(self, weights: Sequence[float], losses: Sequence[nn.Module], regions: bool) -> None:
        super().__init__(weights)
        self.losses, self.regions = nn.ModuleList(losses), regions

    def loss_of_scale(self, scale: int, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of one output, on the voxels where the mask is not 0."""
        hidden = torch.zeros_like(logits[:, :1], dtype=torch.bool) if mask is None else mask <= 0
        target = torch.cat([target, hidden], 1) if self.regions else target.masked_fill(hidden, logits.shape[1])
        return self.losses[scale](logits, target)


def contour_pseudo_criterion(trainer: ContourTrainer) -> ContourPseudoCriterion:
    """Return the contour-weighted loss of the pseudo-labels."""
    losses = contour_losses(trainer, trainer.label_manager.num_segmentation_heads)
    return ContourPseudoCriterion(trainer.output_weights(), losses, trainer.label_manager.has_regions)
