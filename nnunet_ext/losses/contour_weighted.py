"""Contour-weighted cross-entropy and separable Dice (CWCD) at one scale.

Huang and Sui, "Contour-weighted loss for class-imbalanced image segmentation", ICIP 2024 (arXiv:2407.06176). Nothing
here needs nnU-Net.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.losses._common import Gather, at_least_float32, count_terms, split_target
from nnunet_ext.losses.contour import Reach, check_border, label_contours, per_axis, reach_of, region_contours

REDUCTIONS = ("per_class", "pooled")


class ContourWeightedLoss(nn.Module):
    """Cross-entropy that counts contours more, plus the Dice of contours and of all the rest, each for itself.

    ``weight_ce * mean((1 + ce_contour_weight * M) * CE) + dice_contour_weight * L_c + dice_complement_weight * L_n``,
    where M is 1 on the contours of the foreground. L_c is 1 - Dice on the voxels that are contour of a class, L_n on
    all others, inside and outside of it. With the defaults this is the paper's loss at lambda = 1/2, on the scale of
    nnU-Net's Dice + cross-entropy: without any contour (``iterations=0``) it is nnU-Net's loss plus 1. (With regions
    and an ignore label nnU-Net sums the cross-entropy over the regions where here it is the mean.)

    The released code's value is twice the one of ``border="outside", reduction="pooled", background_contour=True,
    smooth=1e-3``; the paper asks for ``iterations=6``.

    Not in the paper: ``min_interior``, its own suggestion for future work. A structure thinner than twice the band is
    all contour, so that no true voxel is left in L_n and a false positive costs the Dice nothing. Each class gets the
    thickest band of at most ``iterations`` that leaves this share of its voxels as interior; where none does, the Dice
    of the whole class counts in both places. The cross-entropy keeps the full band.

    Args:
        kernel: Size of the box of one erosion in voxels, one number or one an axis.
        iterations: Number of erosions, which make the band's thickness; one number or one an axis.
        border: What lies outside of the image, ``"inside"`` or ``"outside"``, as of
            :func:`~nnunet_ext.losses.contour_map`.
        regions: Channels are overlapping regions (sigmoid) instead of exclusive classes (softmax).
        ignore_label: Voxels of this label count nowhere. With ``regions`` any number says that the last channel of
            the target marks the voxels to ignore.
        batch_dice: Sum over the batch before the Dice quotients.
        reduction: Dice ``"per_class"``, then averaged, or ``"pooled"`` over the classes (the released code).
        weight_ce: Weight of the cross-entropy.
        ce_contour_weight: Weight of M, which the cross-entropy of contours has more.
        dice_contour_weight: Weight of L_c.
        dice_complement_weight: Weight of L_n.
        background_contour: M also holds the background's voxels beside the foreground (the released code).
        min_interior: Least share of a class's voxels that stays interior, 0 to 1; 0 keeps ``iterations`` for every
            class.
        smooth: Added to numerator and denominator of the Dice.
        gather: Differentiable function that stacks a tensor over processes (DDP), applied to the sums of the Dice if
            ``batch_dice``, and without gradient to the number of valid voxels. ``None`` in one process.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import ContourWeightedLoss
        >>> labels = torch.zeros(1, 1, 9, 9, dtype=torch.long)
        >>> labels[..., 2:7, 2:7] = 1
        >>> sure = 100.0 * torch.cat([labels == 0, labels == 1], 1)
        >>> round(ContourWeightedLoss()(sure, labels).item(), 4)
        0.0
        >>> on_contour, inside = sure.clone(), sure.clone()  # the same mistake in another voxel
        >>> on_contour[0, :, 2, 4] = inside[0, :, 4, 4] = torch.tensor([100.0, 0.0])
        >>> loss = ContourWeightedLoss(dice_contour_weight=0, dice_complement_weight=0)
        >>> (loss(on_contour, labels) / loss(inside, labels)).item()
        2.0
    """

    def __init__(
        self,
        kernel: int | Sequence[int] = 3,
        iterations: int | Sequence[int] = 1,
        border: str = "inside",
        *,
        regions: bool = False,
        ignore_label: int | None = None,
        batch_dice: bool = False,
        reduction: str = "per_class",
        weight_ce: float = 1.0,
        ce_contour_weight: float = 1.0,
        dice_contour_weight: float = 0.5,
        dice_complement_weight: float = 0.5,
        background_contour: bool = False,
        min_interior: float = 0.0,
        smooth: float = 1e-5,
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        check_border(border)
        for name, value in (("kernel", kernel), ("iterations", iterations)):
            per_axis(value, len(value) if isinstance(value, Sequence) else 1, name, int(name == "kernel"))
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
        if not 0 <= min_interior <= 1:
            raise ValueError(f"min_interior is a share from 0 to 1, got {min_interior}")
        if background_contour and regions:
            raise ValueError("background_contour needs exclusive classes: with regions there is no background class")
        numbers = {
            "weight_ce": weight_ce,
            "ce_contour_weight": ce_contour_weight,
            "dice_contour_weight": dice_contour_weight,
            "dice_complement_weight": dice_complement_weight,
            "smooth": smooth,
        }
        for name, number in numbers.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} must be a number of 0 or more, got {number}")
        self.kernel, self.iterations, self.border = kernel, iterations, border
        self.regions, self.ignore_label = regions, ignore_label
        self.batch_dice, self.pooled = batch_dice, reduction == "pooled"
        self.weight_ce, self.ce_contour_weight = weight_ce, ce_contour_weight
        self.dice_weights = (dice_contour_weight, dice_complement_weight)
        self.background_contour, self.min_interior = background_contour, min_interior
        self.smooth, self.gather = smooth, gather

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one scale.

        Args:
            logits: ``(B, K, *S)``, receives gradients; half precision is computed in float32.
            target: ``(B, 1, *S)`` labels 0 to K - 1 or ``ignore_label``; with ``regions`` ``(B, K, *S)``, true or 1
                inside, and one channel more for the ignored voxels if there is an ``ignore_label``.

        Returns:
            Scalar. A class that is absent costs what the network sees of it; where all is ignored the cross-entropy
            is 0 (with a graph).

        Raises:
            TypeError: If logits or target are no tensors, or of a type that says nothing.
            ValueError: If the shapes do not fit, or exclusive classes have one channel.
        """
        labels, valid = split_target(logits, target, self.regions, self.ignore_label)
        logits = at_least_float32(logits)
        compute = self._loss_of_regions if self.regions else self._loss_of_labels
        return compute(logits, labels, valid)

    def _loss_of_labels(self, logits: Tensor, labels: Tensor, valid: Tensor | None) -> Tensor:
        classes = logits.shape[1]
        ignored = None if valid is None else ~valid
        short_labels = labels.to(torch.uint8 if classes < 255 else torch.int32)
        depth, levels = self._depth(logits, lambda reach: label_contours(short_labels, reach, self.border, ignored))
        contour = depth > 0 if self.background_contour else (depth > 0) & (labels > 0)
        index = labels.long()
        log_probs = functional.log_softmax(logits, 1)
        log_true = log_probs.gather(1, index)
        weights = 1 + self.ce_contour_weight * contour.to(logits.dtype)
        if valid is not None:
            weights = weights * valid
        ce = -(weights * log_true).sum() / count_terms(logits, valid, 1, self.gather)

        # One pass over the voxels sums all classes and bands: each voxel goes to the row of its class and depth. The
        # last axis stays, so that float32 sums stay short and a GPU's atomic additions do not wait for each other.
        rows = index if levels == 0 else index + classes * depth.long()
        if valid is not None:
            rows = torch.where(valid, rows, 0)  # the background's row, which no Dice looks at
        shape = (len(logits), -1, logits.shape[-1])
        table = logits.new_zeros(len(logits), classes * (levels + 1), logits.shape[-1])
        true = log_true.exp()
        sums = [
            table.scatter_add(1, rows.reshape(shape), values.reshape(shape)).sum(2).reshape(-1, levels + 1, classes)
            for values in (true, torch.ones_like(true))
        ]
        probs = log_probs[:, 1:].exp()
        size = (probs if valid is None else probs * valid).sum(tuple(range(2, logits.ndim)))
        return self.weight_ce * ce + self._dice_loss(sums[0][..., 1:], sums[1][..., 1:], size)

    def _loss_of_regions(self, logits: Tensor, regions: Tensor, valid: Tensor | None) -> Tensor:
        ignored = None if valid is None else ~valid
        depth, levels = self._depth(logits, lambda reach: region_contours(regions, reach, self.border, ignored))
        targets = regions.to(logits.dtype)
        bce = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        weights = 1 + self.ce_contour_weight * (depth > 0).to(logits.dtype)
        probs = logits.sigmoid()
        if valid is not None:
            weights, probs, targets = weights * valid, probs * valid, targets * valid
        ce = (weights * bce).sum() / count_terms(logits, valid, logits.shape[1], self.gather)
        axes = tuple(range(2, logits.ndim))

        def by_depth(values: Tensor) -> Tensor:
            bands = [values if levels == 0 else values * (depth == n) for n in range(levels + 1)]
            return torch.stack([band.sum(axes) for band in bands], 1)

        return self.weight_ce * ce + self._dice_loss(by_depth(probs * targets), by_depth(targets), probs.sum(axes))

    def _depth(self, logits: Tensor, contours: Callable[[Reach], Tensor]) -> tuple[Tensor, int]:
        """Return for each voxel the thinnest band it belongs to, 1 to the number of bands, or 0; and that number."""
        dimensions = logits.ndim - 2
        with torch.no_grad():
            bands = [contours(reach) for reach in self._bands(dimensions)]
            if not bands:
                return torch.zeros_like(logits[:, :1], dtype=torch.uint8), 0
            depth = bands[-1].to(torch.uint8) * len(bands)
            for n, band in reversed(list(enumerate(bands[:-1], 1))):
                depth = torch.where(band, n, depth)
            return depth, len(bands)

    def _bands(self, dimensions: int) -> list[Reach]:
        """Return the windows of the bands to tell apart, the thinnest first."""
        counts = per_axis(self.iterations, dimensions, "iterations", 0)
        thinner = range(1, max(counts)) if self.min_interior > 0 else ()
        erosions = [tuple(min(n, count) for count in counts) for n in thinner] + [counts]
        reaches = [reach_of(self.kernel, erosion, dimensions) for erosion in erosions]
        return [reach for reach in reaches if any(side for sides in reach for side in sides)]

    def _dice_loss(self, true: Tensor, count: Tensor, size: Tensor) -> Tensor:
        """Return the weighted Dice losses of contour and complement.

        Args:
            true: Sums of the probabilities inside each class, by depth, ``(B, 1 + bands, K)``.
            count: Numbers of voxels of each class, by depth, ``(B, 1 + bands, K)``.
            size: Sums of the probabilities everywhere, ``(B, K)``.
        """
        sums = torch.cat([true, count, size[:, None]], 1)
        if self.batch_dice:
            # the batch first: processes may have batches of different sizes
            sums = sums.sum(0, keepdim=True)
            if self.gather is not None:
                sums = self.gather(sums).sum(0)
        true, count, size = sums.split([true.shape[1], count.shape[1], 1], 1)
        band, without_contour = self._band_of_classes(count)
        outside = (size[:, 0] - true.sum(1)).clamp_min(0)  # rounding; there are no negative probabilities
        on_contour, contour_count = (true * band).sum(1), (count * band).sum(1)
        inside, inside_count = (true * ~band).sum(1), (count * ~band).sum(1)
        contour = torch.stack(
            [
                torch.where(without_contour, inside, on_contour),
                torch.where(without_contour, inside + outside, on_contour),
                torch.where(without_contour, inside_count, contour_count),
            ]
        )
        complement = torch.stack([inside, inside + outside, inside_count])
        if self.pooled:
            contour, complement = contour.sum(2), complement.sum(2)
        losses = [1 - self._dice(*sums).mean() for sums in (contour, complement)]
        return self.dice_weights[0] * losses[0] + self.dice_weights[1] * losses[1]

    def _band_of_classes(self, count: Tensor) -> tuple[Tensor, Tensor]:
        """Return which depths are contour of each class, ``(B, 1 + bands, K)``, and which classes have no contour."""
        depths = torch.arange(count.shape[1], device=count.device)[:, None]
        voxels = count.sum(1, keepdim=True)
        interior = voxels - count[:, 1:].cumsum(1)
        chosen = (interior >= self.min_interior * voxels).sum(1, keepdim=True)
        return (depths > 0) & (depths <= chosen), chosen[:, 0] == 0

    def _dice(self, intersection: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        return (2 * intersection + self.smooth) / (predicted + true + self.smooth).clamp_min(1e-8)
