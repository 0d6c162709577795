"""What several losses share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Gather = Callable[[Tensor], Tensor]


def at_least_float32(logits: Tensor) -> Tensor:
    """Return half precision as float32; float64 stays as it is."""
    return logits if logits.dtype == torch.float64 else logits.float()


def count_terms(logits: Tensor, valid_mask: Tensor | None, channels: int, gather: Gather | None) -> Tensor:
    """Return the number of terms of a mean over the valid voxels, at least 1.

    Args:
        logits: ``(B, K, *S)``.
        valid_mask: ``(B, 1, *S)``, non-zero where the loss counts; ``None`` counts every voxel.
        channels: Terms a voxel.
        gather: Stacks a tensor over processes; the result is then their average, because gradients are averaged later.
    """
    if valid_mask is None:
        count = torch.full((), logits[:, :1].numel() * channels, dtype=torch.float32, device=logits.device)
    else:
        count = (valid_mask > 0).sum(dtype=torch.float32) * channels
    if gather is not None:
        with torch.no_grad():
            count = gather(count.reshape(1)).mean()
    return count.clamp_min(1.0)


def check_exclusive_classes(logits: Tensor) -> None:
    """Raise ValueError if logits have one channel: a softmax of it says nothing, and a Dice of no class is NaN."""
    if logits.shape[1] < 2:
        raise ValueError(
            f"exclusive classes need 2 output channels or more, the background's first, got logits of shape "
            f"{tuple(logits.shape)}; for one structure in one channel take the loss of regions (sigmoid)"
        )


def split_target(
    logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor | None]:
    """Return targets without what is to be ignored, and the mask of the valid voxels.

    Args:
        logits: ``(B, K, *S)``.
        target: ``(B, 1, *S)`` labels; with ``regions`` ``(B, K, *S)``, true or 1 inside, and one channel more, true
            where the voxel is ignored, if there is an ``ignore_label``.
        regions: Channels are regions.
        ignore_label: Or None.

    Returns:
        Labels ``(B, 1, *S)``, 0 where they are ignored, or regions ``(B, K, *S)`` bool; and ``(B, 1, *S)`` bool, or
        None if there is no ``ignore_label``.

    Raises:
        ValueError: If the shapes do not fit, or there is one channel for exclusive classes.
    """
    if not regions:
        check_exclusive_classes(logits)
    channels = logits.shape[1] + (ignore_label is not None) if regions else 1
    expected = (logits.shape[0], channels, *logits.shape[2:])
    if tuple(target.shape) != expected:
        raise ValueError(f"target must have shape {expected}, got {tuple(target.shape)}")
    if ignore_label is None:
        return target > 0 if regions else target, None
    if regions:
        return target[:, :-1] > 0, target[:, -1:] <= 0
    valid = target != ignore_label
    return torch.where(valid, target, 0), valid
