"""What networks look at in their inputs before they compute.

Shapes and types alone, so that no device is waited for. Where a call becomes a graph nothing is looked at: a trace
would warn of each comparison and forget it, and a compiled graph would guard it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_AXES = {2: "H, W", 3: "D, H, W"}


def becomes_graph() -> bool:
    """Whether a call is traced, scripted, compiled or exported."""
    return torch.jit.is_scripting() or torch.jit.is_tracing() or torch.compiler.is_compiling()


def check_image(image: Tensor, channels: int, divisors: Sequence[int]) -> None:
    """Refuse an image that a network cannot take, and say what would fit.

    Args:
        image: ``(B, C, *S)``, to be looked at.
        channels: Number of image channels that the network was built for.
        divisors: What each axis of ``S`` must be a multiple of.

    Raises:
        TypeError: If the image is not of a floating-point type.
        ValueError: If axes or channels are missing or too many, or an axis is no multiple.
    """
    if becomes_graph():
        return
    shape, dimensions = tuple(image.shape), len(divisors)
    if len(shape) != dimensions + 2 or shape[1] != channels:
        lacks_batch = len(shape) == dimensions + 1 and shape[0] == channels
        remedy = "; add the axis of the batch by image[None]" if lacks_batch else ""
        raise ValueError(f"images must have shape (B, {channels}, {_AXES[dimensions]}), got {shape}{remedy}")
    if not image.is_floating_point():
        raise TypeError(f"images must be of a floating-point type, got {image.dtype}; convert them with .float()")
    size = shape[2:]
    if any(length < 1 or length % divisor for length, divisor in zip(size, divisors, strict=True)):
        padded = tuple(max(1, -(-length // divisor)) * divisor for length, divisor in zip(size, divisors, strict=True))
        raise ValueError(
            f"an image of shape {size} does not fit this network, whose axes must be multiples of {tuple(divisors)}; "
            f"pad it to {padded}"
        )


def divisors_of(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return what each axis of an image must be a multiple of, from the strides of each level along each axis."""
    return tuple(math.prod(map(int, steps)) for steps in zip(*strides, strict=True))


def check_features(features: Tensor, channels: int | None = None, dimensions: int | None = None) -> None:
    """Refuse a feature map with other axes or channels than needed.

    Args:
        features: ``(B, C, *S)``, to be looked at.
        channels: Number of channels it must have; ``None`` for any.
        dimensions: Number of axes of ``S``; ``None`` for 2 or 3.

    Raises:
        ValueError: If it has others.
    """
    if becomes_graph():
        return
    allowed = tuple(_AXES) if dimensions is None else (dimensions,)
    if features.ndim - 2 not in allowed:
        shapes = " or ".join(f"(B, {channels or 'C'}, {_AXES[n]})" for n in allowed)
        raise ValueError(f"features must have shape {shapes}, got {tuple(features.shape)}")
    if channels is not None and features.shape[1] != channels:
        raise ValueError(f"features must have {channels} channels, got shape {tuple(features.shape)}")


def check_gating(features: Tensor, gating: Tensor) -> None:
    """Refuse a gating map that does not fit the features that it gates: of their shape, or 1 where it is one for all.

    Args:
        features: ``(B, C, *S)``, looked at already.
        gating: To be looked at.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if becomes_graph():
        return
    fits = gating.ndim == features.ndim and gating.shape[1] == features.shape[1]
    if not fits or any(size not in (1, full) for size, full in zip(gating.shape, features.shape, strict=True)):
        raise ValueError(
            f"gating must have the shape of features, {tuple(features.shape)}, got {tuple(gating.shape)}; upsample the "
            "coarser map, and give it as many channels, first"
        )
