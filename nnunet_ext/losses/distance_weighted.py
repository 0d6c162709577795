"""Cross-entropy weighted by the distance to the nearest boundary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.losses._common import at_least_float32, count_terms, split_target
from nnunet_ext.losses.contour import label_contours, reach_of


class DistanceWeightedCrossEntropy(nn.Module):
    """Cross-entropy with the weight ``1 + phi``; phi falls from 1 on a boundary to 0 at the voxel furthest from any.

    Caliva, Iriondo, Martinez, Majumdar and Pedoia, "Distance map loss penalty term for semantic segmentation", MIDL
    2019 (arXiv:1908.03679). Distances are Euclidean, by scipy on the CPU, on CUDA by cuCIM where that is installed.
    Ignored voxels make no boundary. A process of DDP counts its own voxels alone.

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
        _distance_transform()  # what is not installed is missed here, not in the first step
        self.spacing, self.regions, self.ignore_label = spacing, regions, ignore_label

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one scale; shapes as of :class:`~nnunet_ext.losses.ContourWeightedLoss`.

        Raises:
            ValueError: If the shapes do not fit, or exclusive classes have one channel.
        """
        labels, valid = split_target(logits, target, self.regions, self.ignore_label)
        logits = at_least_float32(logits)
        weights = 1 + boundary_closeness(labels, self.spacing, None if valid is None else ~valid)
        if self.regions:
            truth = labels.to(logits.dtype)
            terms = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        else:
            terms = -functional.log_softmax(logits, 1).gather(1, labels.long())
        if valid is not None:
            terms = terms * valid
        return (weights * terms).sum() / count_terms(logits, valid, terms.shape[1], None)


@torch.no_grad()
def boundary_closeness(labels: Tensor, spacing: Sequence[float] | None = None, ignored: Tensor | None = None) -> Tensor:
    """Return 1 on the boundaries of each channel, falling linearly with the distance to 0 at its furthest voxel.

    Args:
        labels: ``(B, K, *S)``, integer or bool.
        spacing: Size of a voxel along each axis.
        ignored: ``(B, 1, *S)`` bool; these voxels are on no boundary and make none beside them.

    Returns:
        ``(B, K, *S)`` float32; 0 in a channel without a boundary.
    """
    transform, on_gpu = _distance_transform()
    hidden = None if ignored is None else ignored.expand_as(labels).reshape(-1, 1, *labels.shape[2:])
    flat = labels.reshape(-1, 1, *labels.shape[2:]).to(torch.int32)
    window = reach_of(3, 1, labels.ndim - 2)
    apart = ~label_contours(flat, window, "inside", hidden)[:, 0]
    bounded = ~apart.flatten(1).all(1).reshape(-1, *[1] * (apart.ndim - 1))
    # a channel without a boundary would have distances to nothing; on what is all zero they are 0
    distant = (apart & bounded).float()
    distant = distant if on_gpu and labels.is_cuda else distant.cpu()
    distance = transform(distant, sampling=None if spacing is None else list(spacing))
    distance = cast(Tensor, distance).float().to(labels.device)
    if hidden is not None:
        distance = distance.masked_fill(hidden[:, 0], 0)
    furthest = distance.flatten(1).amax(1).clamp_min(1e-8).reshape(bounded.shape)
    return ((1 - distance / furthest) * bounded).reshape(labels.shape)


@cache
def _distance_transform() -> tuple[Callable[..., Any], bool]:
    """Return MONAI's distance transform, and whether it can run on CUDA."""
    from monai.transforms.utils import distance_transform_edt  # imported late: it takes a second
    from monai.utils import optional_import

    return distance_transform_edt, bool(optional_import("cucim")[1] and optional_import("cupy")[1])
