"""What the two networks think of the unlabelled patches: class shares and agreement, from one histogram."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def label_counts(first: Tensor, second: Tensor, valid_mask: Tensor | None, classes: int) -> Tensor:
    """Count exclusive hard labels of two networks.

    Args:
        first: Class indices of network 1, ``(B, 1, *S)``.
        second: Class indices of network 2, ``(B, 1, *S)``.
        valid_mask: Mask ``(B, 1, *S)`` of the voxels to count, or None for all.
        classes: Number of classes, K.

    Returns:
        ``(3, K)`` int64: voxels of network 1, of network 2, and of both at once. Not every device has float64, and
        float32 cannot count them.
    """
    pairs = first * classes + second
    if valid_mask is not None:
        pairs = torch.where(valid_mask > 0, pairs, classes * classes)
    joint = torch.bincount(pairs.flatten(), minlength=classes * classes + 1)[: classes * classes]
    joint = joint.reshape(classes, classes)
    return torch.stack([joint.sum(1), joint.sum(0), joint.diagonal()])


def region_counts(first: Tensor, second: Tensor, valid_mask: Tensor | None) -> Tensor:
    """Count hard labels ``(B, K, *S)`` bool of overlapping regions, as :func:`label_counts` does for classes."""
    axes = (0, *range(2, first.ndim))
    if valid_mask is not None:
        first, second = first & (valid_mask > 0), second & (valid_mask > 0)
    return torch.stack([x.sum(axes) for x in (first, second, first & second)])


def shares_and_agreement(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of each class in the pseudo-labels and the Dice of the two networks.

    Args:
        counts: Voxels ``(3, K)`` as counted, summed over batches.

    Returns:
        Shares ``(K,)`` (mean of both networks, of all counted voxels) and Dice ``(K,)`` (NaN where neither network
        has the class). For overlapping regions the shares are relative to the sum over the regions.
    """
    first, second, both = counts
    total = max((first + second).sum(), 1.0)
    size = first + second
    with np.errstate(invalid="ignore", divide="ignore"):
        dice = np.where(size > 0, 2 * both / size, np.nan)
    return size / total, dice
