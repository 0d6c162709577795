"""Cross-entropy weighted by the distance to the nearest boundary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.losses._common import at_least_float32, count_terms, split_target
from nnunet_ext.losses.contour import contour_map


class DistanceWeightedCrossEntropy(nn.Module):
    """Cross-entropy with the weight ``1 + phi``; phi falls from 1 on a boundary to 0 at the voxel furthest from any.

    Caliva, Iriondo, Martinez, Majumdar and Pedoia, "Distance map loss penalty term for semantic segmentation", MIDL
    2019 (arXiv:1908.03679). Distances are Euclidean, by scipy, on GPUs by cuCIM where that is installed; on patches
    of a million voxels scipy takes about as long as a forward pass of a small network.

    Args:
        spacing: Size of a voxel along each axis, any unit; ``None`` for equal ones.
        regions: Channels are overlapping regions (sigmoid) instead of exclusive classes (softmax).
        ignore_label: Voxels of this label count nowhere. With ``regions`` any number says that the last channel of
            the target marks the voxels to ignore.
    """

    def __init__(
        self, spacing: Sequence[float] | None = None, regions: bool = False, ignore_label: int | None = None
    ) -> None:
        super().__init__()
        self.spacing, self.regions, self.ignore_label = spacing, regions, ignore_label

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one scale; shapes as of :class:`~nnunet_ext.losses.ContourWeightedLoss`.

        Raises:
            ValueError: If the shapes do not fit.
        """
        labels, valid = split_target(logits, target, self.regions, self.ignore_label)
        logits = at_least_float32(logits)
        with torch.autocast(logits.device.type, enabled=False):
            weights = 1 + closeness(labels if valid is None else labels.masked_fill(~valid, 0), self.spacing)
            if self.regions:
                truth = labels.to(logits.dtype)
                terms = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            else:
                terms = -functional.log_softmax(logits, 1).gather(1, labels.long())
            if valid is not None:
                terms = terms * valid
            return (weights * terms).sum() / count_terms(logits, valid, terms.shape[1], None)


@torch.no_grad()
def closeness(labels: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
    """Return 1 on the boundaries of each channel, falling linearly with the distance to 0 at its furthest voxel.

    Args:
        labels: ``(B, K, *S)``, integer or bool.
        spacing: Size of a voxel along each axis.

    Returns:
        ``(B, K, *S)`` float32; 0 in a channel without a boundary.
    """
    from monai.transforms.utils import distance_transform_edt  # imported late: it takes a second

    flat = labels.reshape(-1, 1, *labels.shape[2:])
    apart = ~contour_map(flat)[:, 0]
    bounded = ~apart.flatten(1).all(1).reshape(-1, *[1] * (apart.ndim - 1))
    # a channel without a boundary would have distances to nothing; on what is all zero they are 0
    apart = (apart & bounded).float()
    distance = cast(Tensor, distance_transform_edt(apart, sampling=None if spacing is None else list(spacing))).float()
    furthest = distance.flatten(1).amax(1).clamp_min(1e-8).reshape(bounded.shape)
    return ((1 - distance / furthest) * bounded).reshape(labels.shape)
