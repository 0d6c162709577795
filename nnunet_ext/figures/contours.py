"""Contours of label files as the contour-weighted loss computes them, as pictures and as shares of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_ext.figures.style import save_figure
from nnunet_ext.files import read_json
from nnunet_ext.losses import contour_map
from nnunet_ext.losses.contour import reach_of, region_contours
from nnunet_ext.training.contours import band_iterations

_COLOURS = [*colormaps["tab10"].colors, *colormaps["Set2"].colors]  # type: ignore[attr-defined]
_LEGEND = 24  # names that fit under a figure


@dataclass(frozen=True)
class Band:
    """Thickness of a contour, and its side of the border.

    Attributes:
        kernel: Size of the box of one erosion, one number or one an axis (array order).
        iterations: Number of erosions, each with the box.
        thickness_mm: Thickness in mm instead of ``iterations``.
        border: Whether what lies beyond the patch counts as ``"inside"`` or ``"outside"`` of what touches it.
    """

    kernel: int | Sequence[int] = 3
    iterations: int = 1
    thickness_mm: float | None = None
    border: str = "inside"


@dataclass(frozen=True)
class LabelNames:
    """Names of labels and regions.

    Attributes:
        names: Name -> label, or labels of a region; without background.
        ignored: Label of voxels that do not count, None if there is none.
    """

    names: dict[str, int | tuple[int, ...]]
    ignored: int | None = None

    @property
    def has_regions(self) -> bool:
        """Whether any name stands for several labels."""
        return any(isinstance(value, tuple) for value in self.names.values())

    @classmethod
    def of_folder(cls, labels: Path) -> LabelNames | None:
        """Return the names in the dataset.json beside a folder of labels (or in it), None if there is none.

        Raises:
            ValueError: If that file has no labels in the form of nnU-Net v2.
        """
        for folder in (labels, labels.resolve().parent):
            file = folder / "dataset.json"
            if file.is_file():
                dataset_json = read_json(file, "correct it; names and numbers of the labels are read from it")
                try:
                    content: dict[str, Any] = dict(dataset_json["labels"])
                    ignored = content.pop("ignore", None)
                    names = {name: tuple(v) if isinstance(v, list) else int(v) for name, v in content.items() if v != 0}
                    return cls(names, None if ignored is None else int(ignored))
                except (KeyError, ValueError, TypeError) as error:
                    raise ValueError(
                        f'{file} has no usable "labels" ({error!r}); expected names and numbers as in nnU-Net v2, e.g. '
                        '{"background": 0, "liver": 1}'
                    ) from error
        return None

    @classmethod
    def of_labels(cls, labels: np.ndarray) -> LabelNames:
        """Return numbers as names."""
        return cls({f"label {value}": int(value) for value in np.unique(labels) if value != 0})


@dataclass(frozen=True)
class Contours:
    """Labels and their contours.

    Attributes:
        labels: Label map ``(*S)``, integers.
        names: Names of the labels or regions.
        band: Contours of all exclusive labels, ``(*S)`` bool; ``None`` for regions.
        regions: Name -> ``(*S)`` bool, the contours of each region.
    """

    labels: np.ndarray
    names: LabelNames
    band: np.ndarray | None
    regions: dict[str, np.ndarray]

    def part(self, name: str, place: EllipsisType | tuple[int | slice, ...] = ...) -> tuple[np.ndarray, np.ndarray]:
        """Return the mask of a name and the mask of its contour, in a part of the volume."""
        value = self.names.names[name]
        inside = np.isin(self.labels[place], value)
        return inside, self.regions[name][place] if self.band is None else self.band[place] & inside

    def shares(self) -> dict[str, tuple[int, float]]:
        """Return the number of voxels of each name that is there, and the share of them that is contour."""
        if self.band is None:
            counts = {name: tuple(int(mask.sum()) for mask in self.part(name)) for name in self.names.names}
        else:
            size = max([int(self.labels.max()), *(int(v) for v in self.names.names.values())]) + 1  # type: ignore[arg-type]
            positive = self.labels.clip(0)
            voxels, edge = (np.bincount(positive[mask], minlength=size) for mask in (self.labels >= 0, self.band))
            counts = {name: (int(voxels[v]), int(edge[v])) for name, v in self.names.names.items()}  # type: ignore[index]
        return {name: (total, edge / total) for name, (total, edge) in counts.items() if total}


def contours_of(labels: np.ndarray, spacing_mm: Sequence[float], names: LabelNames, band: Band) -> Contours:
    """Return the contours of the foreground as the loss computes them.

    Args:
        labels: Label map ``(*S)``, integers.
        spacing_mm: Spacing in mm, array order; an axis of infinite spacing has no contour.
        names: Names of the labels; regions have contours of their own.
        band: Thickness of the contours and side of the border.
    """
    steps = band_iterations(spacing_mm, band.iterations, band.thickness_mm, band.kernel)
    tensor = torch.from_numpy(np.ascontiguousarray(labels))[None, None]
    if not names.has_regions:
        marked = contour_map(tensor, band.kernel, steps, band.border, names.ignored)[0, 0].numpy()
        return Contours(labels, names, marked & np.isin(labels, list(names.names.values())), {})
    reach = reach_of(band.kernel, steps, labels.ndim)
    ignored = None if names.ignored is None else tensor == names.ignored
    regions = {}
    for name, value in names.names.items():
        inside = torch.isin(tensor, torch.tensor(value, dtype=tensor.dtype))
        regions[name] = region_contours(inside, reach, band.border, ignored)[0, 0].numpy()
    return Contours(labels, names, None, regions)


def draw_contours(
    path: Path, title: str, contours: Contours, spacing_mm: Sequence[float], image: np.ndarray | None = None
) -> None:
    """Draw a slice along each axis: contours opaque, what is inside of them transparent.

    The slices are those with the most classes, and of these the one with the largest interior.

    Args:
        path: PNG file to write; it is complete or not there.
        title: Title above the whole figure.
        contours: Labels and contours of a volume ``(Z, Y, X)``.
        spacing_mm: Spacing of the volume in mm, array order.
        image: Image ``(Z, Y, X)`` that is drawn under the labels.
    """
    shape, shares = contours.labels.shape, contours.shares()
    planes = [axis for axis in range(3) if axis == 0 or shape[0] > 1]
    sizes = np.array(shape) * spacing_mm
    widths = [float(sizes[1 if plane == 2 else 2]) for plane in planes]
    heights = [float(sizes[0 if plane else 1]) for plane in planes]
    scale = 4.2 / max(heights)
    rows = -(-min(len(shares), _LEGEND) // 4)
    size = (min(max(5.0, sum(widths) * scale + 1), 24.0), 5.2 + 0.2 * rows)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(planes), squeeze=False, width_ratios=widths)[0]
    colours = dict(zip(shares, _colours(len(shares)), strict=True))
    limits = None if image is None else np.percentile(image, (0.5, 99.5))
    for plane, axes in zip(planes, all_axes, strict=True):
        best = _best_slice(contours, list(shares), plane)
        place = (slice(None),) * plane + (best,)
        overlay = np.zeros((*contours.labels[place].shape, 4))
        parts = {name: contours.part(name, place) for name in shares}
        for which, alpha in ((0, 0.35), (1, 1)):
            for name, part in parts.items():
                overlay[part[which]] = (*colours[name], alpha)
        height, width = (spacing_mm[a] for a in range(3) if a != plane)
        options: dict[str, Any] = {"aspect": height / width, "interpolation": "nearest"}
        if plane:
            options["origin"] = "lower"
        under = np.zeros(overlay.shape[:2]) if image is None else image[place]
        lowest, highest = (0, 1) if limits is None else limits
        axes.imshow(under, cmap="gray", vmin=lowest, vmax=highest, **options)
        axes.imshow(overlay, **options)
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{'zyx'[plane]} = {best + 1} of {shape[plane]}", fontsize=9)
    figure.suptitle(title, fontsize=10)
    handles = [Patch(color=colours[name], label=f"{name}: {share:.0%} contour") for name, (_, share) in shares.items()]
    if len(handles) > _LEGEND:
        handles = [*handles[: _LEGEND - 1], Patch(alpha=0, label=f"and {len(handles) - _LEGEND + 1} more")]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=8)
    save_figure(figure, path)


def _best_slice(contours: Contours, names: list[str], plane: int) -> int:
    others = tuple(axis for axis in range(3) if axis != plane)
    present, interior = np.zeros(contours.labels.shape[plane], int), np.zeros(contours.labels.shape[plane], int)
    for name in names:
        inside, edge = contours.part(name)
        voxels = inside.sum(others)
        present += voxels > 0
        interior += voxels - edge.sum(others)
    return int(np.lexsort((interior, present))[-1])


def _colours(number: int) -> list[Any]:
    if number <= len(_COLOURS):
        return _COLOURS[:number]
    return [tuple(colour[:3]) for colour in colormaps["gist_rainbow"](np.linspace(0, 1, number))]
