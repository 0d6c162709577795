"""What the contour-weighted loss sees of label files, as pictures and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_ext.data.fingerprint_figure import save_figure
from nnunet_ext.losses import contour_map
from nnunet_ext.losses.contour import reach_of, region_contours
from nnunet_ext.training.contours import band_iterations

_COLOURS = [*colormaps["tab10"].colors, *colormaps["Set2"].colors]  # type: ignore[attr-defined]
_PLANES = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Band:
    """What makes a contour.

    Attributes:
        kernel: Size of the box of one erosion, one number or one an axis (array order).
        iterations: Erosions.
        thickness_mm: Thickness in mm instead of ``iterations``.
        border: ``"inside"`` or ``"outside"``.
    """

    kernel: int | Sequence[int] = 3
    iterations: int = 1
    thickness_mm: float | None = None
    border: str = "inside"


@dataclass(frozen=True)
class LabelNames:
    """Labels and what they are called.

    Attributes:
        names: Name -> label, or labels of a region; without background.
        ignored: The ignore label, None if there is none.
    """

    names: dict[str, int | tuple[int, ...]]
    ignored: int | None = None

    @property
    def has_regions(self) -> bool:
        """Whether any name stands for several labels."""
        return any(isinstance(value, tuple) for value in self.names.values())

    @classmethod
    def of_folder(cls, labels: Path) -> LabelNames | None:
        """Return the names in the dataset.json beside a folder of labels (or in it), None if there is none."""
        for folder in (labels, labels.parent):
            if (folder / "dataset.json").is_file():
                content: dict[str, Any] = dict(json.loads((folder / "dataset.json").read_text())["labels"])
                ignored = content.pop("ignore", None)
                names = {name: tuple(v) if isinstance(v, list) else int(v) for name, v in content.items() if v != 0}
                return cls(names, None if ignored is None else int(ignored))
        return None

    @classmethod
    def of_labels(cls, labels: np.ndarray) -> LabelNames:
        """Return numbers as names."""
        return cls({f"label {value}": int(value) for value in np.unique(labels) if value != 0})


def contours_of(labels: np.ndarray, spacing_mm: Sequence[float], names: LabelNames, band: Band) -> np.ndarray:
    """Return the contours of the foreground as the loss computes them.

    Args:
        labels: ``(*S)`` integers.
        spacing_mm: Array order.
        names: Of the labels; regions have contours of their own.
        band: Thickness and border.

    Returns:
        ``(K, *S)`` bool, one channel a name.
    """
    steps = band_iterations(spacing_mm, band.iterations, band.thickness_mm)
    tensor = torch.from_numpy(np.ascontiguousarray(labels)).long()[None, None]
    masks = torch.cat([torch.isin(tensor, torch.tensor(value)) for value in names.names.values()], 1)
    if names.has_regions:
        ignored = None if names.ignored is None else tensor == names.ignored
        found = region_contours(masks, reach_of(band.kernel, steps, labels.ndim), band.border, ignored)
    else:
        found = masks & contour_map(tensor, band.kernel, steps, band.border, names.ignored)
    return found[0].numpy()


def shares(labels: np.ndarray, contours: np.ndarray, names: LabelNames) -> dict[str, tuple[int, float]]:
    """Return the number of voxels of each name, and the share of them that is contour (NaN without voxels)."""
    table = {}
    for (name, value), contour in zip(names.names.items(), contours, strict=True):
        voxels = int(np.isin(labels, value).sum())
        table[name] = (voxels, float(contour.sum() / voxels) if voxels else float("nan"))
    return table


def draw(
    path: Path,
    title: str,
    labels: np.ndarray,
    contours: np.ndarray,
    spacing_mm: Sequence[float],
    names: LabelNames,
    image: np.ndarray | None = None,
) -> None:
    """Draw a slice along each axis: contours opaque, what is inside of them transparent.

    The slices are those with the most classes, and of these the one with the largest interior.

    Args:
        path: PNG to write; complete or not there.
        title: Of the figure.
        labels: ``(Z, Y, X)``.
        contours: ``(K, Z, Y, X)`` bool, one channel a name.
        spacing_mm: Array order.
        names: Of the labels.
        image: ``(Z, Y, X)``, drawn under the labels.
    """
    planes = [axis for axis in range(3) if axis == 0 or labels.shape[0] > 1]
    sizes = np.array(labels.shape) * spacing_mm
    widths = [float(sizes[2]), float(sizes[2]), float(sizes[1])][: len(planes)]
    heights = [float(sizes[1]), float(sizes[0]), float(sizes[0])][: len(planes)]
    scale = 4.2 / max(heights)
    figure = Figure(figsize=(max(5.0, sum(widths) * scale + 1), 5.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(planes), squeeze=False, width_ratios=widths)[0]
    colours = np.array([_COLOURS[n % len(_COLOURS)] for n in range(len(names.names))])
    masks = np.stack([np.isin(labels, value) for value in names.names.values()])
    inside = (masks & ~contours).any(0)
    limits = None if image is None else np.percentile(image, (0.5, 99.5))
    for plane, axes in zip(planes, all_axes, strict=True):
        others = tuple(a for a in range(3) if a != plane)
        present = masks.any(tuple(a + 1 for a in others)).sum(0)
        best = int(np.lexsort((inside.sum(others), present))[-1])
        flat = [np.take(volume, best, plane + 1) for volume in (masks, contours)]
        overlay = np.zeros((*flat[0].shape[1:], 4))
        for parts, alpha in zip(flat, (0.35, 1), strict=True):
            for colour, part in zip(colours, parts, strict=True):
                overlay[part] = (*colour, alpha)
        rows, columns = (spacing_mm[a] for a in others)
        options: dict[str, Any] = {"aspect": rows / columns, "interpolation": "nearest"}
        if plane:
            options["origin"] = "lower"  # the head on top
        under = np.zeros(overlay.shape[:2]) if image is None else np.take(image, best, plane)
        lowest, highest = (0, 1) if limits is None else limits
        axes.imshow(under, cmap="gray", vmin=lowest, vmax=highest, **options)
        axes.imshow(overlay, **options)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{_PLANES[plane]}, {best + 1} of {labels.shape[plane]}", fontsize=9)
    figure.suptitle(title, fontsize=10)
    handles = [
        Patch(color=colour, label=f"{name}: {share:.0%} contour" if voxels else f"{name}: none")
        for colour, (name, (voxels, share)) in zip(colours, shares(labels, contours, names).items(), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=8)
    save_figure(figure, path)
