"""Cross-entropy weighted by the distance to the nearest boundary."""

from __future__ import annotations

import math
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
        spacing: Size of a voxel along each axis of ``S``, in any unit; ``None`` for equal sizes.
        regions: Channels are overlapping regions (sigmoid) instead of exclusive classes (softmax).
        ignore_label: Voxels of this label count nowhere. With ``regions`` any number says that the last channel of
            the target marks the voxels to ignore.

    Raises:
        ValueError: If ``spacing`` is not made of positive numbers.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import DistanceWeightedCrossEntropy
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 1]).reshape(1, 1, 1, 7)
        >>> logits = torch.zeros(1, 2, 1, 7, requires_grad=True)
        >>> DistanceWeightedCrossEntropy(spacing=(3.0, 1.0))(logits, labels).backward()
        >>> weight = -14 * logits.grad.gather(1, labels).flatten()  # a probability of 1/2, seven voxels
        >>> [round(number.item(), 2) for number in weight]  # twice as much on the boundary
        [1.0, 1.33, 1.67, 2.0, 2.0, 1.67, 1.33]
    """

    def __init__(
        self, spacing: Sequence[float] | None = None, regions: bool = False, ignore_label: int | None = None
    ) -> None:
        super().__init__()
        if spacing is not None and not all(0 < length < math.inf for length in spacing):
            raise ValueError(f"spacing must be positive numbers, one for each axis of a voxel, got {tuple(spacing)}")
        _distance_transform()  # what is not installed is missed here, not in the first step
        self.spacing, self.regions, self.ignore_label = spacing, regions, ignore_label

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one scale; shapes as of :class:`~nnunet_ext.losses.ContourWeightedLoss`.

        Raises:
            TypeError: If logits or target are no tensors, or of a type that says nothing.
            ValueError: If the shapes do not fit, exclusive classes have one channel, or ``spacing`` has other axes.
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
        spacing: Size of a voxel along each axis of ``S``, in any unit; ``None`` for equal sizes.
        ignored: ``(B, 1, *S)`` bool; these voxels are on no boundary and make none beside them.

    Returns:
        ``(B, K, *S)`` float32; 0 in a channel without a boundary.

    Raises:
        ValueError: If ``spacing`` has other axes.
    """
    dimensions = labels.ndim - 2
    if spacing is not None and len(spacing) != dimensions:
        raise ValueError(
            f"spacing must be one number for each of the {dimensions} axes of the labels, got {tuple(spacing)}"
        )
    transform, runs_on_gpu = _distance_transform()
    ignored_maps = None if ignored is None else ignored.expand_as(labels).reshape(-1, 1, *labels.shape[2:])
    maps = labels.reshape(-1, 1, *labels.shape[2:]).to(torch.int32)
    interior = ~label_contours(maps, reach_of(3, 1, dimensions), "inside", ignored_maps)[:, 0]
    has_boundary = ~interior.flatten(1).all(1).reshape(-1, *[1] * dimensions)
    # a channel without a boundary would have distances to nothing; on what is all zero they are 0
    starts = (interior & has_boundary).float()
    starts = starts if runs_on_gpu and labels.is_cuda else starts.cpu()
    distance = transform(starts, sampling=None if spacing is None else list(spacing))
    distance = cast(Tensor, distance).float().to(labels.device)
    if ignored_maps is not None:
        distance = distance.masked_fill(ignored_maps[:, 0], 0)
    furthest = distance.flatten(1).amax(1).clamp_min(1e-8).reshape(has_boundary.shape)
    return ((1 - distance / furthest) * has_boundary).reshape(labels.shape)


@cache
def _distance_transform() -> tuple[Callable[..., Any], bool]:
    """Return MONAI's distance transform, and whether it can run on CUDA."""
    from monai.transforms.utils import distance_transform_edt  # imported late: it takes a second
    from monai.utils import optional_import

    return distance_transform_edt, bool(optional_import("cucim")[1] and optional_import("cupy")[1])
