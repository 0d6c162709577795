"""Contours of label maps: which voxels an erosion of their own class would take away.

Huang and Sui, "Contour-weighted loss for class-imbalanced image segmentation", ICIP 2024 (arXiv:2407.06176), extract
contours by binary erosion, class after class, and store them. Here they come from the label map itself: a voxel of
class c survives the erosion of c exactly when the smallest and the largest label in its window are both c, which takes
the same time for any number of classes, needs no storage, and follows every augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.losses._common import check_label_map

Reach = tuple[tuple[int, int], ...]
BORDERS = ("inside", "outside")


def contour_map(
    labels: Tensor,
    kernel: int | Sequence[int] = 3,
    iterations: int | Sequence[int] = 1,
    border: str = "inside",
    ignore_label: int | None = None,
) -> Tensor:
    """Mark every voxel that has another label in its window, the background's voxels included.

    A voxel is marked exactly when ``iterations`` binary erosions of its class with a box of ``kernel`` voxels would
    remove it. The box is centred as in scipy: one of even size reaches one voxel further towards low indices.

    Args:
        labels: ``(B, 1, *S)``, integer or bool. On other devices than CPUs, and where it is compiled, labels must lie
            strictly between the limits of 32 bits.
        kernel: Size of the box in voxels, one number or one an axis of ``S``; 1 looks no further along an axis.
        iterations: Number of erosions, one number or one an axis.
        border: What lies outside of the image: ``"inside"``, the label of the voxel that asks (nothing is marked
            because it touches the border), or ``"outside"``, another label (as scipy's ``border_value=0``).
        ignore_label: Voxels of this label are never marked, and their neighbours see their own label in them.

    Returns:
        ``(B, 1, *S)`` bool.

    Raises:
        TypeError: If labels are not integers.
        ValueError: If the shape, ``kernel``, ``iterations`` or ``border`` do not fit.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import contour_map
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0]).reshape(1, 1, 1, 8)
        >>> contour_map(labels).int().flatten()
        tensor([0, 0, 1, 1, 0, 0, 1, 1], dtype=torch.int32)
        >>> contour_map(labels, border="outside")[..., -1, 0].item()  # the first voxel touches the border
        True
    """
    check_label_map(labels)
    check_border(border)
    labels = labels.to(torch.uint8) if labels.dtype == torch.bool else labels
    ignored = None
    limits = torch.iinfo(labels.dtype)
    # what its type cannot hold is not there, while a comparison would wrap around
    if ignore_label is not None and limits.min <= ignore_label <= limits.max:
        ignored = labels == ignore_label
    return label_contours(_in_small_type(labels), reach_of(kernel, iterations, labels.ndim - 2), border, ignored)


def check_border(border: str) -> None:
    """Raise ValueError for an unknown border."""
    if border not in BORDERS:
        raise ValueError(f"border must be one of {', '.join(BORDERS)}, got {border!r}")


def reach_of(kernel: int | Sequence[int], iterations: int | Sequence[int], dimensions: int) -> Reach:
    """Return how many voxels the window of repeated erosions reaches towards low and high indices, for each axis.

    Raises:
        ValueError: If there is not one value, or one an axis, or a value is no integer or too small.
    """
    sizes, counts = per_axis(kernel, dimensions, "kernel", 1), per_axis(iterations, dimensions, "iterations", 0)
    return tuple((size // 2 * n, (size - 1 - size // 2) * n) for size, n in zip(sizes, counts, strict=True))


def per_axis(value: int | Sequence[int], dimensions: int, name: str, least: int) -> tuple[int, ...]:
    """Return one integer an axis.

    Raises:
        ValueError: If there is not one value, or one an axis, or a value is no integer or below ``least``.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * dimensions
    if len(values) != dimensions or any(int(v) != v or v < least for v in values):
        raise ValueError(
            f"{name} must be one integer from {least} on, or one for each of {dimensions} axes, got {value}"
        )
    return tuple(int(v) for v in values)


def label_contours(labels: Tensor, reach: Reach, border: str, ignored: Tensor | None) -> Tensor:
    """Compute :func:`contour_map`.

    Args:
        labels: ``(B, C, *S)``, each channel for itself; strictly between the limits of their type (0 is fine if it is
            unsigned).
        reach: Number of voxels that the window reaches towards low and high indices, for each axis.
        border: What lies outside of the image, ``"inside"`` or ``"outside"``, as of :func:`contour_map`.
        ignored: ``(B, 1, *S)`` or ``(B, C, *S)`` bool, voxels that are never marked and hide what lies beyond.

    Returns:
        ``(B, C, *S)`` bool.
    """
    lowest, highest = _limits(labels.dtype)
    low, high = labels, labels
    if ignored is not None:
        low, high = labels.masked_fill(ignored, highest), labels.masked_fill(ignored, lowest)
    low = window(low, reach, torch.minimum, highest)
    # outside of the image the largest label differs from any label, or else none counts
    high = window(high, reach, torch.maximum, highest if border == "outside" else lowest)
    return low != high if ignored is None else (low != high) & ~ignored


def region_contours(regions: Tensor, reach: Reach, border: str, ignored: Tensor | None) -> Tensor:
    """Mark the voxels of each region that an erosion of the region takes away.

    Args:
        regions: ``(B, K, *S)`` bool.
        reach: Number of voxels that the window reaches towards low and high indices, for each axis.
        border: What lies outside of the image, ``"inside"`` or ``"outside"``, as of :func:`contour_map`.
        ignored: ``(B, 1, *S)`` bool; these voxels are never marked, and count as part of any region beside them.

    Returns:
        ``(B, K, *S)`` bool.
    """
    filled = regions if ignored is None else regions | ignored
    eroded = window(filled.to(torch.uint8), reach, torch.minimum, int(border == "inside")) > 0
    contours = regions & ~eroded
    return contours if ignored is None else contours & ~ignored


def window(values: Tensor, reach: Reach, function: Callable[[Tensor, Tensor], Tensor], outside: int) -> Tensor:
    """Return the minimum or maximum over a box around each voxel, axis after axis.

    Args:
        values: ``(B, C, *S)``.
        reach: Number of voxels that the box reaches towards low and high indices, for each axis.
        function: Function of two tensors that is taken over the box, ``torch.minimum`` or ``torch.maximum``.
        outside: Value of what lies outside of the image.
    """
    if not any(side for sides in reach for side in sides):
        return values
    # pad counts from the last axis
    values = functional.pad(values, [side for sides in reversed(reach) for side in sides], value=outside)
    for axis, sides in enumerate(reach, 2):
        full_width, width = sum(sides) + 1, 1
        while width < full_width:
            step = min(width, full_width - width)  # windows may overlap, so each pass doubles their width
            length = values.shape[axis] - step
            values = function(values.narrow(axis, 0, length), values.narrow(axis, step, length))
            width += step
    return values


def _limits(dtype: torch.dtype) -> tuple[int, int]:
    """Return numbers below and above all labels of a type (of an unsigned one, below or equal)."""
    limits = torch.iinfo(dtype)
    # torch takes a fill value as a float64, in which the limits of 64 bits overflow
    return max(limits.min, -(2**62)), min(limits.max, 2**62)


def _in_small_type(labels: Tensor) -> Tensor:
    """Return labels in a small type, on which minimum and maximum are several times faster on CPUs."""
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and labels.numel():
        lowest, highest = (int(value) for value in labels.aminmax())
        for dtype in (torch.uint8, torch.int16, torch.int32):
            if torch.iinfo(dtype).min <= lowest - (dtype != torch.uint8) and highest < torch.iinfo(dtype).max:
                return labels.to(dtype)
        return labels
    # On a GPU a look at the values would wait for it; a larger type leaves room for what lies outside.
    return labels.to(torch.int16 if labels.dtype.itemsize == 1 else torch.int32)
