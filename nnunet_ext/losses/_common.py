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
        channels: Number of terms of each voxel.
        gather: Function that stacks a tensor over processes; the result is then their average, because gradients are
            averaged later. ``None`` in one process.
    """
    if valid_mask is None:
        count = torch.full((), logits[:, :1].numel() * channels, dtype=torch.float32, device=logits.device)
    else:
        count = (valid_mask > 0).sum(dtype=torch.float32) * channels
    if gather is not None:
        with torch.no_grad():
            count = gather(count.reshape(1)).mean()
    return count.clamp_min(1.0)


def soft_dice(
    probs: Tensor, onehot: Tensor, mask: Tensor | None, batch_dice: bool, smooth: float, gather: Gather | None
) -> tuple[Tensor, Tensor]:
    """Return nnU-Net's soft Dice of each class, and how many voxels of the target each of them has.

    Args:
        probs: ``(B, K, *S)``.
        onehot: ``(B, K, *S)``, 0 or 1.
        mask: ``(B, 1, *S)`` or ``(B, K, *S)``, non-zero where a voxel counts; ``None`` counts every voxel.
        batch_dice: Sum over the batch before the quotient.
        smooth: Added to numerator and denominator.
        gather: Differentiable function that stacks a tensor over processes, if ``batch_dice``; ``None`` in one process.

    Returns:
        Dice and voxels, ``(B, K)``; with ``batch_dice`` ``(K,)``.
    """
    axes = tuple(range(2, probs.ndim))
    if mask is not None:
        onehot = onehot * (mask > 0)
        size = (probs * (mask > 0)).sum(axes)
    else:
        size = probs.sum(axes)
    sums = torch.stack([(probs * onehot).sum(axes), size, onehot.sum(axes)])
    if batch_dice:
        # the batch first: processes may have batches of different sizes
        sums = sums.sum(1)
        if gather is not None:
            sums = gather(sums).sum(0)
    true = sums[2]
    return (2 * sums[0] + smooth) / (sums[1] + true + smooth).clamp_min(1e-8), true


def mean_of_present(values: Tensor, voxels: Tensor) -> Tensor:
    """Return the mean over the classes that have a voxel, 0 without such a class; over the last axis."""
    present = voxels > 0
    return (values * present).sum(-1) / present.sum(-1).clamp_min(1)


def split_target(
    logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor | None]:
    """Return targets without what is to be ignored, and the mask of the valid voxels.

    Args:
        logits: ``(B, K, *S)``.
        target: ``(B, 1, *S)`` labels; with ``regions`` ``(B, K, *S)``, true or 1 inside, and one channel more, true
            where the voxel is ignored, if there is an ``ignore_label``.
        regions: Channels are overlapping regions instead of exclusive classes.
        ignore_label: Label of the voxels to ignore; ``None`` if there are none.

    Returns:
        Labels ``(B, 1, *S)``, 0 where they are ignored, or regions ``(B, K, *S)`` bool; and ``(B, 1, *S)`` bool, or
        None if there is no ``ignore_label``.

    Raises:
        TypeError: If logits or target are no tensors, or of a type that says nothing.
        ValueError: If the shapes do not fit, or there is one channel for exclusive classes.
    """
    check_inputs(logits, target, regions, marks_ignored=regions and ignore_label is not None)
    if ignore_label is None:
        return target > 0 if regions else target, None
    if regions:
        return target[:, :-1] > 0, target[:, -1:] <= 0
    valid = target != ignore_label
    return torch.where(valid, target, 0), valid


def check_inputs(
    logits: Tensor,
    target: Tensor,
    regions: bool,
    name: str = "target",
    valid_mask: Tensor | None = None,
    marks_ignored: bool = False,
) -> None:
    """Refuse what a loss of one scale cannot be computed from, and say what would fit.

    Shapes and types alone, so that no device is waited for; and nothing in a trace, which would warn of each comparison
    and forget it.

    Args:
        logits: Output of a network, to be looked at.
        target: Labels or regions, to be looked at.
        regions: Channels are overlapping regions instead of exclusive classes.
        name: What errors call the target.
        valid_mask: Mask of the voxels that count, to be looked at; ``None`` if there is none.
        marks_ignored: The target has one channel more, which marks the voxels to ignore.

    Raises:
        TypeError: If logits or target are no tensors, or of a type that says nothing.
        ValueError: If the shapes do not fit, or there is one channel for exclusive classes.
    """
    if _is_traced():
        return
    check_logits(logits, regions)
    _check_target(logits, target, regions, name, marks_ignored)
    check_mask(valid_mask, (logits.shape[0], 1, *logits.shape[2:]), "valid_mask")


def check_mask(mask: Tensor | None, shape: tuple[int, ...], name: str) -> None:
    """Refuse a mask of another shape.

    Args:
        mask: To be looked at; ``None`` is fine.
        shape: What it must have.
        name: What the error calls it.

    Raises:
        ValueError: If the shape is another one.
    """
    if not _is_traced() and mask is not None and tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(mask.shape)}")


def check_logits(logits: Tensor, regions: bool) -> None:
    """Refuse what is no output of a network, or has one channel for exclusive classes.

    A softmax of one channel says nothing, and the mean Dice of no class is NaN.

    Args:
        logits: Output of a network, to be looked at.
        regions: Channels are overlapping regions instead of exclusive classes.

    Raises:
        TypeError: If logits are no tensor, or not of a floating-point type.
        ValueError: If logits have no axes, or one channel for exclusive classes.
    """
    if _is_traced():
        return
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"logits must be one tensor, got {type(logits).__name__}; give each output of deep supervision to a loss "
            "of its own, as nnU-Net's DeepSupervisionWrapper does"
        )
    if logits.ndim < 3:
        raise ValueError(f"logits must have shape (B, K, *S), got {tuple(logits.shape)}")
    if not logits.is_floating_point():
        raise TypeError(
            f"logits must be of a floating-point type, got {logits.dtype}; give what the network returns, before a "
            "softmax or an argmax"
        )
    if not regions and logits.shape[1] < 2:
        raise ValueError(
            f"exclusive classes need 2 output channels or more, the background's first, got logits of shape "
            f"{tuple(logits.shape)}; for one structure in one channel take the loss of regions (sigmoid)"
        )


def check_label_map(labels: Tensor) -> None:
    """Refuse what is no map of labels.

    Args:
        labels: ``(B, 1, *S)``, to be looked at.

    Raises:
        TypeError: If labels are not integers or bool.
        ValueError: If the shape is another one.
    """
    if _is_traced():
        return
    if labels.ndim < 3 or labels.shape[1] != 1:
        raise ValueError(f"labels must have shape (B, 1, *S), got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be integers, got {labels.dtype}; convert them with .long()")


def _check_target(logits: Tensor, target: Tensor, regions: bool, name: str, marks_ignored: bool) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(target).__name__}; convert arrays with torch.from_numpy")
    classes = logits.shape[1]
    channels = classes + marks_ignored if regions else 1
    expected, shape = (logits.shape[0], channels, *logits.shape[2:]), tuple(target.shape)
    if shape != expected:
        remedy = ""
        if channels == 1 and shape == expected[:1] + expected[2:]:
            remedy = f"; add the axis of the channel by {name}[:, None]"
        elif shape[:1] + shape[2:] == expected[:1] + expected[2:]:
            remedy = _remedy_of_channels(shape[1], classes, regions, name, marks_ignored)
        raise ValueError(f"{name} must have shape {expected}, got {shape}{remedy}")
    if target.is_complex():
        raise TypeError(f"{name} must be integers, bool or real numbers, got {target.dtype}")


def _remedy_of_channels(channels: int, classes: int, regions: bool, name: str, marks_ignored: bool) -> str:
    """Return what to do about a target whose number of channels alone does not fit."""
    if not regions:
        return f"; make classes of channels by {name}.argmax(1, keepdim=True)" if channels == classes else ""
    if marks_ignored:
        return "; with an ignore_label the last channel marks the voxels to ignore" if channels == classes else ""
    if channels == classes + 1:
        return "; a channel of voxels to ignore needs an ignore_label"
    return "; each region has a channel of its own" if channels == 1 else ""


def _is_traced() -> bool:
    # torch.compile may look: it guards these shapes anyway, and falls back to the sentence that says what is wrong
    return torch.jit.is_scripting() or torch.jit.is_tracing()
