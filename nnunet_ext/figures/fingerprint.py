"""Intensities, spacings and shapes of a dataset, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ext.figures.style import save_figure
from nnunet_ext.fingerprints.case_statistics import CaseStatistics
from nnunet_ext.fingerprints.intensity import IntensityStatistics

COLOURS = {"labelled": "#0072b2", "unlabelled": "#e69f00", "foreground": "#009e73"}
_BINS = 160


@dataclass(frozen=True)
class Group:
    """Intensities of one kind of voxels.

    Attributes:
        title: Kind of the voxels, ``"labelled"``, ``"unlabelled"`` or ``"foreground"``.
        channels: Statistics of each image channel.
    """

    title: str
    channels: list[IntensityStatistics]


def draw_fingerprint(
    path: Path,
    title: str,
    channel_names: Sequence[str],
    groups: Sequence[Group],
    cases: dict[str, list[CaseStatistics]],
) -> None:
    """Draw a row for each channel, one for the spacings and one for the shapes, and write a PNG.

    Args:
        path: PNG file to write; it is complete or not there.
        title: Name of the dataset, above the figure.
        channel_names: Names of the image channels as in dataset.json.
        groups: Intensities of each kind of voxels; groups without a voxel are left out.
        cases: Title of a group, labelled or unlabelled -> statistics of its cases.
    """
    rows = len(channel_names)
    figure = Figure(figsize=(12, 3.4 * rows + 5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows + 2, 3, height_ratios=[3.4] * rows + [2.5, 2.5])
    for channel, name in enumerate(channel_names):
        drawn = [(g.title, g.channels[channel]) for g in groups if g.channels and g.channels[channel].count]
        _draw_intensities(figure.add_subplot(grid[channel, :]), name, drawn)
    for axis in range(3):
        spacings = {kind: [case.spacing[axis] for case in group] for kind, group in cases.items() if group}
        shapes = {
            kind: [float(case.shape_after_crop[axis]) for case in group] for kind, group in cases.items() if group
        }
        _draw_histogram(figure.add_subplot(grid[rows, axis]), spacings, f"spacing, axis {axis} [mm]")
        _draw_histogram(figure.add_subplot(grid[rows + 1, axis]), shapes, f"shape after crop, axis {axis} [voxels]")
    counts = ", ".join(f"{len(group)} {kind}" for kind, group in cases.items())
    figure.suptitle(f"{title}: {counts} cases")
    save_figure(figure, path)


def _draw_intensities(axes: Axes, name: str, groups: list[tuple[str, IntensityStatistics]]) -> None:
    windows = {title: statistics.percentiles((0.5, 50.0, 99.5)) for title, statistics in groups}
    low = min(statistics.percentiles((0.1,))[0] for _, statistics in groups)
    high = max(statistics.percentiles((99.9,))[0] for _, statistics in groups)
    if high <= low:
        low, high = low - 1, high + 1
    edges = _edges(axes, low, high, [window[1] for window in windows.values()])
    for row, (title, statistics) in enumerate(groups):
        values, counts = statistics.distribution()
        share, _ = np.histogram(values, edges, weights=counts / statistics.count * 100)
        share[share == 0] = np.nan  # a gap rather than a line to the ground
        axes.stairs(share, edges, color=COLOURS[title], linewidth=1.4, label=_window_text(title, windows[title]))
        # The clipping window as a bar under the curves, one below the other.
        axes.axvspan(
            windows[title][0], windows[title][2], 0.02 + 0.035 * row, 0.045 + 0.035 * row, color=COLOURS[title], lw=0
        )
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(axes.get_ylim()[0] / 10, 1e-6))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylabel("voxels per bin [%]")
    axes.set_xlabel(f"intensity, channel {name}; bars: the clipping window (0.5 to 99.5 %) that each would give")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def _edges(axes: Axes, low: float, high: float, medians: list[float]) -> np.ndarray:
    """Return bins of equal width; of equal ratio where the values span orders of magnitude."""
    threshold = max(abs(float(np.median(medians))), (high - low) * 1e-6)
    if max(abs(low), abs(high)) < 50 * threshold:
        return np.linspace(low, high, _BINS + 1)
    axes.set_xscale("symlog", linthresh=threshold)
    # arcsinh is linear below the threshold and logarithmic above, as the axis is.
    return np.sinh(np.linspace(np.arcsinh(low / threshold), np.arcsinh(high / threshold), _BINS + 1)) * threshold


def _window_text(title: str, window: list[float]) -> str:
    voxels = "foreground voxels (labels above 0)" if title == "foreground" else f"all voxels, {title} cases"
    return f"{voxels}\n{window[0]:.6g} to {window[2]:.6g}, median {window[1]:.6g}"


def _draw_histogram(axes: Axes, groups: dict[str, list[float]], label: str) -> None:
    joined = np.concatenate([np.asarray(values) for values in groups.values()])
    low, high = float(joined.min()), float(joined.max())
    if high - low < 1e-3 * max(abs(high), 1e-12):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, 25)
    for width, (title, values) in zip((3.5, 1.4), groups.items(), strict=False):  # the first stays visible below
        share = np.histogram(values, edges)[0] / len(values) * 100
        axes.stairs(share, edges, color=COLOURS[title], linewidth=width, label=f"{title}, median {np.median(values):g}")
        axes.plot(np.median(values), -4, marker="^", color=COLOURS[title], markersize=3 + 1.5 * width, clip_on=False)
    axes.set_ylim(-8, 105)
    axes.set_xlabel(label, fontsize=9)
    axes.set_ylabel("cases [%]", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7)
