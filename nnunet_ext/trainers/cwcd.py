"""The part ``CWCD``: contour-weighted cross-entropy and separable Dice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.training import contours


class CWCDPart(TrainerMixin):
    """Contour-weighted cross-entropy and Dice instead of nnU-Net's loss; nothing else changes.

    Attributes:
        contour_kernel: Size of the box of one erosion in voxels, one number or one an axis (array order).
        contour_iterations: Number of erosions; with the box of 3 the thickness of the contour in voxels. 0 gives
            nnU-Net's loss plus 1. Axes coarser than three times the finest have none.
        contour_thickness_mm: Thickness of the contour in mm instead of erosions, by the spacing of the plans, with the
            box of 3.
        contour_border: What lies beyond the patch: ``"inside"``, or ``"outside"`` to make contours of what touches the
            patch's border.
        contour_reduction: How the Dice joins classes: ``"per_class"`` or ``"pooled"``.
        contour_ce_weight: Number that is added to the weight of the cross-entropy on contours.
        contour_dice_weight: Weight of the contours' Dice, lambda; the rest's has 1 - lambda.
        contour_of_background: Whether to weigh the background's voxels beside the foreground, too.
        contour_min_interior: Share of each class that must not be contour; thinner bands for it if needed.
        contour_pseudo_labels: With CPS, whether the losses of pseudo-labels are contour-weighted, too.
    """

    has_own_loss = True

    def set_defaults(self) -> None:
        """Set the contours to one voxel."""
        super().set_defaults()
        self.contour_kernel: int | Sequence[int] = 3
        self.contour_iterations = 1
        self.contour_thickness_mm: float | None = None
        self.contour_border = "inside"
        self.contour_reduction = "per_class"
        self.contour_ce_weight = 1.0
        self.contour_dice_weight = 0.5
        self.contour_of_background = False
        self.contour_min_interior = 0.0
        self.contour_pseudo_labels = False

    def refuse_unsupported(self) -> None:
        """Refuse settings that make no sense."""
        super().refuse_unsupported()
        contours.refuse_unsupported(self)

    def _build_loss(self) -> nn.Module:
        return contours.contour_criterion(self)

    def pseudo_criterion(self) -> nn.Module:
        """Return the loss of the pseudo-labels: that of CPS, unless ``contour_pseudo_labels``."""
        return contours.contour_pseudo_criterion(self) if self.contour_pseudo_labels else super().pseudo_criterion()

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of the contours."""
        return super().hyperparameters() | {k: v for k, v in vars(self).items() if k.startswith("contour_")}
