"""CT as the networks of the reference module see it: a slice in each window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from nnunet_ext.data.geometry import affine_of
from nnunet_ext.data.position import slice_positions
from nnunet_ext.figures.style import plain_style, save_figure
from nnunet_ext.networks import ReferenceInput
from nnunet_ext.networks.reference_input import HOUNSFIELD_PER_UNIT

_FAT, _BONE = -100, 100  # every CT has voxels below and above, air and bone


@dataclass(frozen=True)
class AxialScan:
    """A scan whose slices are stacked from the feet to the head, where it says where they point.

    Attributes:
        image: ``(Z, Y, X)``, the patient's right at the left and the front at the top.
        spacing: Spacing of the axes in mm.
        known: Whether the image says where it points; else it is as it was stored.
    """

    image: np.ndarray
    spacing: tuple[float, float, float]
    known: bool


def check_hounsfield(file: str | Path, image: np.ndarray) -> None:
    """Raise ValueError if the values of an image cannot be Hounsfield units.

    Args:
        file: File of the image, for the message.
        image: Its values.
    """
    low, high = float(image.min()), float(image.max())
    if low >= _FAT or high <= _BONE:
        hint = " (CT stored with an offset has to be read with it, often -1024)" if low >= 0 else ""
        raise ValueError(
            f"{file} has values from {low:g} to {high:g}, which are no Hounsfield units: air is about -1000, and bone "
            f"above 300{hint}; windows are for CT"
        )


def axial(image: np.ndarray, properties: Mapping[str, Any]) -> AxialScan:
    """Turn an image so that it is looked at as radiologists do.

    Args:
        image: ``(Z, Y, X)`` as nnU-Net's readers return it.
        properties: Properties of the image, from the same reader.
    """
    affine, spacing = affine_of(properties, of_array=True), [float(s) for s in properties["spacing"]]
    if affine is None:
        return AxialScan(image, (spacing[0], spacing[1], spacing[2]), False)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("LPS"))
    turned = apply_orientation(image.transpose(2, 1, 0), turn).transpose(2, 1, 0)
    of_axis: list[float] = [0.0, 0.0, 0.0]
    for axis, target in enumerate(turn[:, 0]):
        of_axis[2 - int(target)] = spacing[2 - axis]
    return AxialScan(turned, (of_axis[0], of_axis[1], of_axis[2]), True)


@plain_style()
def draw_windows(
    path: Path, title: str, scan: AxialScan, windows: Mapping[str, Sequence[float]], number: int | None = None
) -> None:
    """Draw one slice in each window, as the layer at the input of the networks makes it.

    Args:
        path: PNG file to write; it is complete or not there.
        title: Name of the scan, for the title.
        scan: Scan in Hounsfield units.
        windows: Name and ``(lower, upper)`` in Hounsfield units.
        number: Number of the slice, 1 the first; None for the one in the middle.

    Raises:
        ValueError: If there is no such slice.
    """
    slices = len(scan.image)
    number = (slices + 1) // 2 if number is None else number
    if not 1 <= number <= slices:
        raise ValueError(f"--slice must lie between 1 and {slices}, the slices of {title}, got {number}")
    layer = ReferenceInput(1, list(windows.values()), [0])
    data = torch.from_numpy(scan.image[number - 1].astype(np.float32) / HOUNSFIELD_PER_UNIT)
    made = layer(data[None, None])[0][0].numpy()
    aspect = scan.spacing[1] / scan.spacing[2]
    height = 3.2 * aspect * made.shape[1] / made.shape[2]
    figure = Figure(figsize=(3.3 * len(windows), min(height, 9.0) + 0.45), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(windows), squeeze=False)[0]
    for axes, view, (name, (low, high)) in zip(all_axes, made, windows.items(), strict=True):
        axes.imshow(view, cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{name}: {low:g} to {high:g} HU", fontsize=9, parse_math=False)
    position = f"position {slice_positions(slices)[number - 1]:.2f}" + (" from the feet" if scan.known else "")
    figure.suptitle(f"{title}: slice {number} of {slices}, {position}", fontsize=10, parse_math=False)
    save_figure(figure, path)
