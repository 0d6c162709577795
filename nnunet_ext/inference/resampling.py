"""nnU-Net's resampling of images, axis after axis: the same values from a fraction of the memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)
from skimage.transform import resize

Resampling = Callable[..., Any]


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

    A spline in 3D is a spline in each slice followed by one across the slices. So the large intermediate arrays (the
    whole image in float64, and its padded and filtered copies) are needed for one slice at a time only; what is held
    is the stack of slices that are resampled in plane.

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


def _resample(image: np.ndarray, target: np.ndarray, order: int, order_across: int, clip: bool) -> None:
    """Write ``image`` resampled to the shape of ``target`` into it: every slice, then across the slices."""
    keywords: dict[str, Any] = {"mode": "edge", "anti_aliasing": False}
    slices = np.empty((len(image), *target.shape[1:]))
    for index, plane in enumerate(image):
        slices[index] = resize(plane.astype(float), target.shape[1:], order, clip=clip, **keywords)
    if len(image) == len(target):
        target[:] = slices
        return
    for row in range(target.shape[1]):
        shape = (len(target), target.shape[2])
        target[:, row] = resize(slices[:, row], shape, order_across, clip=clip and order_across > 0, **keywords)
