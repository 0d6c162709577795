"""Where an image has something, and where its axes point in the patient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel
import numpy as np

_SINGULAR = 1e-6  # determinant of unit axes below which they span no volume


def nonzero_box(data: np.ndarray) -> tuple[slice, ...]:
    """Return the box of nnU-Net's crop to non-zero: filling holes, which takes long, does not change it.

    Args:
        data: Image, ``(C, *S)``.

    Returns:
        One slice an axis of ``S``; everything where no voxel differs from 0, as in nnU-Net.
    """
    box = [slice(0, n) for n in data.shape[1:]]
    for axis in range(data.ndim - 1):
        first = _first_nonzero(data, box, axis, range(data.shape[axis + 1]))
        if first is None:
            return tuple(slice(0, n) for n in data.shape[1:])
        last = _first_nonzero(data, box, axis, range(data.shape[axis + 1] - 1, first - 1, -1))
        box[axis] = slice(first, (first if last is None else last) + 1)
    return tuple(box)


def _first_nonzero(data: np.ndarray, box: list[slice], axis: int, indices: range) -> int | None:
    for index in indices:
        selection: list[Any] = [slice(None), *box]
        selection[axis + 1] = index
        if data[tuple(selection)].any():
            return index
    return None


def affine_of(properties: Mapping[str, Any], of_array: bool = False) -> np.ndarray | None:
    """Return the affine of an image with axes of length 1 and no origin, as nibabel counts: towards right, front, head.

    Args:
        properties: Properties of the image, as ``read_images`` of nnU-Net's readers returns them.
        of_array: Where a reader turns what is in the file, return the affine of the array that was read, not the
            file's.

    Returns:
        ``(4, 4)``, a column an axis of the image; None where the reader gives none in 3D, or it is no direction.
    """
    affine = np.eye(4)
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        key = "reoriented_affine" if of_array and "reoriented_affine" in stuff else "original_affine"
        affine[:3, :3] = np.asarray(stuff[key], float)[:3, :3]
    else:
        direction = np.asarray(properties.get("sitk_stuff", {}).get("direction", ()), float)
        if direction.size != 9:
            return None
        affine[:3, :3] = np.diag([-1, -1, 1]) @ direction.reshape(3, 3)  # ITK counts towards left and back
    if not np.isfinite(affine).all():
        return None
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] /= np.where(lengths > 0, lengths, 1)
    return None if abs(np.linalg.det(affine[:3, :3])) < _SINGULAR else affine


def orientation(properties: Mapping[str, Any]) -> str | None:
    """Return where the axes of the file point (R, A, S or L, P, I for x, y, z), or None where it does not say.

    Args:
        properties: Properties of the image, as ``read_images`` of nnU-Net's readers returns them.
    """
    affine = affine_of(properties)
    return None if affine is None else "".join(map(str, nibabel.aff2axcodes(affine)))
