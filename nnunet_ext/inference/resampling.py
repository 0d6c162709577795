"""nnU-Net's resampling of images, axis after axis by matrices: the same values in a fraction of time and memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from skimage.transform import resize

Resampling = Callable[..., Any]
_ROWS = 32  # of a matrix in one block: weighs what a product costs to begin against the zeros in it
_NEGLIGIBLE = 1e-14  # weights that nobody sees in float32, nor nearly so in float64
_COLUMNS = 2**12  # of slices on top of each other that are resampled across at a time
_SLAB_BYTES = 2**22  # of slices that are resampled in plane at a time: what is larger, malloc keeps


def with_less_memory(resampling: Resampling) -> Resampling:
    """Return a function that resamples like one of the plans, up to rounding, with less memory where possible.

    Args:
        resampling: Function of the plans: ``resampling_fn_data`` of nnU-Net's ConfigurationManager.

    Returns:
        :func:`resample_axis_by_axis` with the same arguments, or ``resampling`` itself where it would not be the same.
    """
    keywords = dict(getattr(resampling, "keywords", {}))
    is_default = getattr(resampling, "func", None) is resample_data_or_seg_to_shape
    if not is_default or keywords.pop("is_seg", False) or not set(keywords) <= set(_ARGUMENTS):
        return resampling
    if keywords.get("order_z", 0) not in (0, 1):  # scipy's splines treat the edge otherwise than skimage's
        return resampling
    return functools.partial(resample_axis_by_axis, **keywords)


_ARGUMENTS = ("order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold")


def resample_axis_by_axis(
    data: np.ndarray,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    order: int = 3,
    order_z: int = 0,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
) -> np.ndarray:
    """Resample an image as nnU-Net's ``resample_data_or_seg_to_shape`` does.

    A spline is linear in the voxels, and one in 3D is one along each axis after the other. So every axis has a matrix,
    which is almost zero off its diagonal; products with its blocks take the place of a spline at each voxel. What is
    held beside image and result is the stack of slices that are resampled in plane. Sums are made in float64, as in
    nnU-Net, so that float32 values differ in their last digit at most: a network's logits, rounded to float16, would
    show more.

    Args:
        data: Image ``(C, *S)`` with 3 spatial axes.
        new_shape: Spatial shape of the result, in voxels.
        current_spacing: Spacing of ``data`` in mm; it only decides whether slices are resampled apart, as in nnU-Net.
        new_spacing: Spacing of the result in mm, for the same decision.
        order: Order of the spline, 0 to 5.
        order_z: Order of the interpolation across slices, where these are resampled apart.
        force_separate_z: Resample slices apart: yes, no, or ``None`` for nnU-Net's rule.
        separate_z_anisotropy_threshold: Ratio of the largest to the smallest spacing above which nnU-Net's rule
            resamples slices apart.

    Returns:
        ``(C, *new_shape)`` of the type of ``data``, or ``data`` itself where the shape is wanted already.
    """
    new_shape = tuple(int(n) for n in new_shape)
    if data.shape[1:] == new_shape:
        return data
    separate, axis = determine_do_sep_z_and_axis(
        force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold
    )
    result = np.empty((len(data), *new_shape), data.dtype)
    for image, target in zip(data, result, strict=True):
        slice_axis = axis if separate and axis is not None else 0
        moved = np.moveaxis(target, slice_axis, 0)
        _resample(np.moveaxis(image, slice_axis, 0), moved, order, order_z if separate else order, separate)
        if not separate and order > 1:  # splines overshoot; skimage, and so nnU-Net, cuts that off
            np.clip(target, image.min(), image.max(), out=target)
    return result


@dataclass(frozen=True)
class _Block:
    """Rows of the matrix of an axis: voxels ``start`` to ``stop`` of the result, from those in ``first`` to ``last``.

    Attributes:
        weights: ``(stop - start, last - first)``.
    """

    start: int
    stop: int
    first: int
    last: int
    weights: torch.Tensor


@functools.lru_cache(maxsize=16)
def _blocks(size: int, new_size: int, order: int) -> tuple[_Block, ...]:
    """Return the matrix of an axis: what skimage makes of every single voxel."""
    every = resize(np.eye(size), (new_size, size), order, mode="edge", anti_aliasing=False, clip=False)
    found = []
    for start in range(0, new_size, _ROWS):
        rows = every[start : start + _ROWS]
        needed = np.flatnonzero((np.abs(rows) > _NEGLIGIBLE).any(0))
        first, last = int(needed[0]), int(needed[-1]) + 1
        weights = torch.from_numpy(np.ascontiguousarray(rows[:, first:last]))
        found.append(_Block(start, start + len(rows), first, last, weights))
    return tuple(found)


def _resample(image: np.ndarray, target: np.ndarray, order: int, order_across: int, clip: bool) -> None:
    """Write ``image`` resampled to the shape of ``target`` into it: every slice, then across the slices."""
    in_plane = np.empty((len(image), *target.shape[1:]))
    step = max(1, _SLAB_BYTES // (in_plane.itemsize * image.shape[1] * image.shape[2]))
    for start in range(0, len(image), step):
        slab = np.ascontiguousarray(image[start : start + step], float)
        resampled = in_plane[start : start + step]
        _resample_slices(torch.from_numpy(slab), torch.from_numpy(resampled), order)
        if clip and order > 1:
            low, high = slab.min((1, 2), keepdims=True), slab.max((1, 2), keepdims=True)
            np.clip(resampled, low, high, out=resampled)
    if len(image) == len(target):
        target[:] = in_plane
        return
    slices, (height, width) = torch.from_numpy(in_plane), target.shape[1:]
    blocks = _blocks(len(image), len(target), order_across)
    step = max(1, _COLUMNS // width)
    for start in range(0, height, step):
        columns = slices[:, start : start + step].flatten(1)
        for block in blocks:
            across = block.weights @ columns[block.first : block.last]
            target[block.start : block.stop, start : start + step] = across.numpy().reshape(
                block.stop - block.start, -1, width
            )


def _resample_slices(slab: torch.Tensor, out: torch.Tensor, order: int) -> None:
    """Write slices ``(N, Y, X)`` resampled in plane into others."""
    height, width = slab.shape[1:]
    along_x = slab
    if width != out.shape[2]:
        along_x = out if height == out.shape[1] else slab.new_empty((len(slab), height, out.shape[2]))
        rows, new_rows = slab.flatten(0, 1), along_x.flatten(0, 1)
        for block in _blocks(width, out.shape[2], order):
            torch.mm(rows[:, block.first : block.last], block.weights.T, out=new_rows[:, block.start : block.stop])
    if height == out.shape[1]:
        if along_x is not out:
            out.copy_(along_x)
        return
    blocks = _blocks(height, out.shape[1], order)
    for source, result in zip(along_x, out, strict=True):
        for block in blocks:
            torch.mm(block.weights, source[block.first : block.last], out=result[block.start : block.stop])
