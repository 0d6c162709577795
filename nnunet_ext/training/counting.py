"""Counting labels where they are: nothing here waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

_EXACT = 2**24  # up to which float32 counts


def counts_of(index: Tensor, there: Tensor, number: int) -> Tensor:
    """Count indices where a mask says so; others than 0 to ``number - 1`` are left out.

    ``bincount`` would wait for the device to learn the highest index.

    Args:
        index: Integers of any shape.
        there: Bool, like ``index``.
        number: Number of indices that are counted.

    Returns:
        ``(number,)`` float32, exact up to 2^24, rounded above.
    """
    index = torch.where(there, index, -1).float().flatten()
    # in parts: a bin of float32 that is counted up by ones stays at 2^24
    parts = [torch.histc(part, bins=number, min=-0.5, max=number - 0.5) for part in index.split(_EXACT)]
    return torch.stack(parts).sum(0)


def class_counts(labels: Tensor, there: Tensor | None, outputs: int, regions: bool = False) -> Tensor:
    """Count the voxels of each class.

    Args:
        labels: ``(B, 1, *S)`` integers; with ``regions`` ``(B, K, *S)``, true or 1 inside.
        there: ``(B, 1, *S)`` or like ``labels``, non-zero where a voxel counts; ``None`` for everywhere.
        outputs: Channels of the network, K.
        regions: Whether there are overlapping regions instead of exclusive classes.

    Returns:
        ``(K,)``; of regions ``(2, K)``: voxels outside and inside.
    """
    mask = torch.ones_like(labels, dtype=torch.bool) if there is None else (there > 0).expand_as(labels)
    if not regions:
        return counts_of(labels, mask, outputs)
    axes = (0, *range(2, labels.ndim))
    inside = (labels > 0) & mask
    return torch.stack([(mask & ~inside).sum(axes), inside.sum(axes)]).float()
