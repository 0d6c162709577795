"""Which slices of a label map are annotated, along which axis, and how slices are numbered in the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation

from nnunet_ext.data.geometry import affine_of

OF_FILE = "xyz"  # axes of a file, the last of an array first
OF_PATIENT = ("left-right", "front-back", "head-foot")


@dataclass(frozen=True)
class Annotated:
    """Slices along one axis of a label map.

    Attributes:
        whole: Indices of the slices of which each voxel is annotated.
        partly: Indices of those of which some voxels are.
    """

    whole: tuple[int, ...]
    partly: tuple[int, ...]


def annotated_slices(labels: np.ndarray, axis: int, ignore: int | None) -> Annotated:
    """Find the annotated slices along an axis.

    Args:
        labels: Label map ``(*S)``.
        axis: Array axis along which slices are looked for.
        ignore: Label of voxels that are not annotated; without one, every voxel is.

    Returns:
        Slices that are annotated as a whole, and those in part.
    """
    voxels = labels.size // labels.shape[axis]
    others = tuple(other for other in range(labels.ndim) if other != axis)
    known = np.full(labels.shape[axis], voxels) if ignore is None else np.count_nonzero(labels != ignore, axis=others)
    whole = np.flatnonzero(known == voxels)
    partly = np.flatnonzero((known > 0) & (known < voxels))
    return Annotated(tuple(int(index) for index in whole), tuple(int(index) for index in partly))


def along_another_axis(
    labels: np.ndarray, axis: int, ignore: int | None, named: Mapping[int, Sequence[int]]
) -> tuple[int, list[int]]:
    """Find the axis along which slices were annotated, where it is not the one that is asked for.

    With an ignore label, slices of the other axis are whole and none of the asked axis is. With named slices, all
    labelled voxels lie in slices of these numbers along the other axis, but not along the asked one.

    Args:
        labels: Label map ``(*S)``.
        axis: Array axis that is asked for.
        ignore: Label of voxels that are not annotated, if there is one.
        named: Along each axis, indices of slices that are said to be annotated: those of the same numbers; empty where
            the ignore label says so.

    Returns:
        The array axis and the indices of its annotated slices; ``(axis, [])`` where there is no other one.
    """
    others = [other for other in range(labels.ndim) if other != axis and labels.shape[other] > 1]
    if not named:
        if annotated_slices(labels, axis, ignore).whole:
            return axis, []
        found = {other: list(annotated_slices(labels, other, ignore).whole) for other in others}
        return next(((other, slices) for other, slices in found.items() if slices), (axis, []))
    marked = labels > 0 if ignore is None else (labels > 0) & (labels != ignore)
    slices_of = {
        candidate: np.flatnonzero(marked.any(axis=tuple(a for a in range(labels.ndim) if a != candidate))).tolist()
        for candidate in (axis, *others)
    }
    if not slices_of[axis] or set(slices_of[axis]) <= set(named[axis]):
        return axis, []
    fits = [other for other in others if set(slices_of[other]) <= set(named[other])]
    return (fits[0], slices_of[fits[0]]) if fits else (axis, [])


@dataclass(frozen=True)
class SliceNumbers:
    """Numbers of slices in the order of the file, from 1, as viewers show them.

    Attributes:
        total: Number of slices.
        axis: Axis of the file: 0 is its first (x), 2 its last (z).
        reversed: Whether the reader turned the axis around, so that the first slice of the array is the last of the
            file.
    """

    total: int
    axis: int
    reversed: bool = False

    def number(self, index: int) -> int:
        """Return the number of a slice of the array."""
        return self.total - index if self.reversed else index + 1

    def index(self, number: int) -> int:
        """Return the index in the array of a slice.

        Raises:
            ValueError: If there is no such slice.
        """
        if not 1 <= number <= self.total:
            raise ValueError(
                f"there is no slice {number} along the axis {OF_FILE[self.axis]}, which has {self.total}: slices count "
                f"from 1 to {self.total} in the order of the file"
            )
        return self.total - number if self.reversed else number - 1


def slice_numbers(properties: Mapping[str, Any], axis: int, total: int) -> SliceNumbers:
    """Return how slices along an array axis are numbered in the file that the array was read from.

    Args:
        properties: Properties of the image, as ``read_images`` of nnU-Net's readers returns them.
        axis: Array axis.
        total: Number of slices along it.
    """
    image_axis = 2 - axis  # nnU-Net's arrays have the axes of the image reversed
    stored, read = _stored_orientation(properties), affine_of(properties, of_array=True)
    if stored is None or read is None:
        return SliceNumbers(total, image_axis)
    of_file, (patient, sign) = stored, io_orientation(read)[image_axis]
    file_axis = int(np.flatnonzero(of_file[:, 0] == patient)[0])
    return SliceNumbers(total, file_axis, bool(of_file[file_axis, 1] != sign))


def _stored_orientation(properties: Mapping[str, Any]) -> np.ndarray | None:
    """Return, of each axis of a file that the reader turned: the patient's axis next to it, and 1 or -1 as it points.

    None where the reader leaves the axes as they are.
    """
    if "original_orientation" in properties.get("sitk_stuff", {}):
        turned: np.ndarray = axcodes2ornt(tuple(properties["sitk_stuff"]["original_orientation"]))
        return turned
    affine = affine_of(properties)
    if "reoriented_affine" not in properties.get("nibabel_stuff", {}) or affine is None:
        return None
    nearest: np.ndarray = io_orientation(affine)
    return nearest


def axis_name(properties: Mapping[str, Any], axis: int) -> str:
    """Return what an array axis is called: ``z (head-foot)``, in the order of the file, where it points if known.

    Args:
        properties: Properties of the image, as ``read_images`` of nnU-Net's readers returns them.
        axis: Array axis.
    """
    name = OF_FILE[slice_numbers(properties, axis, 1).axis]
    affine = affine_of(properties, of_array=True)
    if affine is None:
        return name
    return f"{name} ({OF_PATIENT[int(io_orientation(affine)[2 - axis, 0])]})"
