"""The report's figures, in matplotlib without a display."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from nnunet_ext.demo.phantom import LABELS

Array = npt.NDArray[Any]

COLOURS = {
    "liver": "#d1654f",
    "spleen": "#8f6fd1",
    "kidneys": "#4caf68",
    "aorta": "#f01f1f",
    "pancreas": "#f2cf1d",
    "gallbladder": "#27c4dd",
}
_WINDOW_HU = (-160, 240)
_BASELINE_COLOUR, _CANDIDATE_COLOUR = "#7f8c9a", "#1f6fb4"


@dataclass(frozen=True)
class OverlayRow:
    """One case of the overlay figure, all of it one axial slice.

    Attributes:
        title: Text left of the row.
        hu: Scan, ``(y, x)``.
        maps: Label maps, ``(y, x)``, one for each column after the scan.
        aspect: Voxel height over voxel width, so that the axes are to scale in mm.
        captions: Text under each column, the scan's included; empty for none.
    """

    title: str
    hu: Array
    maps: Sequence[Array]
    aspect: float
    captions: Sequence[str]


def read_slices(image: Path, label_maps: Sequence[Path]) -> tuple[Array, list[Array], float]:
    """Read the axial slice with the most labels, front up and the patient's right on the left, however it is stored.

    Args:
        image: File of the scan.
        label_maps: Files of label maps on the same grid; the first one, the ground truth, chooses the slice.

    Returns:
        Scan and label maps as ``(y, x)``, and the aspect of ``OverlayRow``.
    """
    scan = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(image)), "LPS")
    volumes = [
        SimpleITK.GetArrayFromImage(SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")) for path in label_maps
    ]
    # ties between slices with the same organs go to the one that shows the small organs best
    shown = [
        (len(np.unique(truth)), min(np.unique(truth[truth > 0], return_counts=True)[1], default=0))
        for truth in volumes[0]
    ]
    best = max(range(len(shown)), key=lambda index: shown[index])
    spacing = scan.GetSpacing()
    return SimpleITK.GetArrayFromImage(scan)[best], [volume[best] for volume in volumes], spacing[1] / spacing[0]


def overlay_figure(rows: Sequence[OverlayRow], columns: Sequence[str]) -> Figure:
    """Scans beside their label maps as coloured overlays, with a legend.

    Args:
        rows: Rows of the figure, one a case.
        columns: Titles of the columns: the scan's, then one for each label map.

    Returns:
        The figure; save it with ``savefig``.
    """
    figure = Figure(figsize=(2.75 * len(columns) + 0.4, 2.25 * len(rows) + 0.75), facecolor="white")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    organs = [organ for organ in LABELS if organ in COLOURS]
    palette = ListedColormap([COLOURS[organ] for organ in organs])
    for row, line in zip(rows, axes, strict=True):
        for column, axis in enumerate(line):
            axis.imshow(row.hu, cmap="gray", vmin=_WINDOW_HU[0], vmax=_WINDOW_HU[1], aspect=row.aspect)
            if column:
                overlay = np.ma.masked_equal(row.maps[column - 1], 0)
                axis.imshow(
                    overlay, cmap=palette, vmin=0.5, vmax=len(organs) + 0.5, alpha=0.75,
                    aspect=row.aspect, interpolation="nearest",
                )  # fmt: skip
            axis.set(xticks=[], yticks=[], xlabel=row.captions[column])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(row.title, fontsize=9)
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title, fontsize=11)
    handles = [Patch(color=COLOURS[organ], label=organ) for organ in organs]
    figure.legend(handles=handles, loc="lower center", ncols=len(organs), frameon=False)
    figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))
    return figure


def dice_figure(organs: Sequence[str], baseline: Array, candidate: Array, titles: tuple[str, str]) -> Figure:
    """Dice of every test case, the two methods side by side and joined by lines, with their means.

    Args:
        organs: Names of the organs.
        baseline: Dice of the first method, ``(cases, organs)``.
        candidate: Dice of the second method, ``(cases, organs)``.
        titles: Names of the two methods.

    Returns:
        The figure; save it with ``savefig``.
    """
    figure = Figure(figsize=(9.5, 4.2), facecolor="white")
    axis = figure.subplots()
    places = np.arange(len(organs))
    lefts, rights = places - 0.17, places + 0.17
    for first, second in zip(baseline, candidate, strict=True):
        axis.plot(np.stack([lefts, rights]), np.stack([first, second]), color="#d5d9de", linewidth=0.8, zorder=1)
    for x, values, colour, title in (
        (lefts, baseline, _BASELINE_COLOUR, titles[0]),
        (rights, candidate, _CANDIDATE_COLOUR, titles[1]),
    ):
        axis.scatter(np.broadcast_to(x, values.shape), values, s=16, color=colour, alpha=0.75, linewidths=0, zorder=2)
        means = np.nanmean(values, axis=0)
        axis.hlines(means, x - 0.13, x + 0.13, color=colour, linewidth=3, zorder=3, label=f"{title} (bar: mean)")
        for place, mean in zip(x, means, strict=True):
            axis.annotate(
                f"{mean:.2f}", (place, 1.0), (0, 10), textcoords="offset points", ha="center", fontsize=8, color=colour
            )
    axis.set(xticks=places, xticklabels=organs, ylabel="Dice", ylim=(-0.03, 1.09), yticks=np.linspace(0, 1, 6))
    axis.grid(axis="y", color="#eceef1", zorder=0)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
    axis.set_title(f"Dice of each of the {len(baseline)} test cases", fontsize=11)
    figure.tight_layout()
    return figure
