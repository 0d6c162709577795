"""Which array axis of an image runs left to right, front to back and head to foot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nibabel.orientations import io_orientation

from nnunet_ext.data.geometry import affine_of

XYZ = "xyz"


@dataclass(frozen=True)
class Axes:
    """Array axes of the patient's axes.

    Attributes:
        of: Array axis of ``x`` (left-right), ``y`` (front-back) and ``z`` (head-foot, the axial axis).
        known: Whether the direction of the image is known; if not, the array order is taken for ``(z, y, x)``.
    """

    of: tuple[int, int, int]
    known: bool

    @property
    def axial(self) -> int:
        """Array axis along which the slices are stacked."""
        return self.of[2]

    def to_xyz(self, values: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Reorder three values from array order to ``x, y, z``."""
        x, y, z = (values[axis] for axis in self.of)
        return x, y, z

    def to_array(self, values: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Reorder three values from ``x, y, z`` to array order."""
        ordered: list[Any] = [None, None, None]
        for axis, value in zip(self.of, values, strict=True):
            ordered[axis] = value
        first, second, third = ordered
        return first, second, third


UNKNOWN_AXES = Axes((2, 1, 0), known=False)


def find_axes(properties: Mapping[str, Any]) -> Axes:
    """Find the patient's axes in the properties of an image that nnU-Net's reader returns.

    The axes of an oblique image are those nearest to the patient's, each taken once; flips make no difference.

    Args:
        properties: Properties of an image as returned by ``read_images`` of nnU-Net's readers, whose arrays are ``(C,
            *S)`` with the last image axis first.

    Returns:
        The axes; of an image without a direction, or with one that is no rotation, ``x, y, z`` are the last, middle and
        first array axis.
    """
    affine = affine_of(properties, of_array=True)
    if affine is None:
        return UNKNOWN_AXES
    nearest = [int(axis) for axis in io_orientation(affine)[:, 0]]  # of each image axis; nnU-Net reverses their order
    x, y, z = (2 - nearest.index(axis) for axis in range(3))
    return Axes((x, y, z), known=True)
