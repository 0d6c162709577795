"""Agreement of networks as pictures: scores of all scans, and the scans at both ends with the networks' outlines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nnunet_ext.figures.style import save_figure

_ACCEPTED, _REJECTED = "#0072b2", "#d55e00"
_COLUMNS = 6
_MARGIN = 0.15  # of the box of the labels, that is shown around them
_FEW_CLASSES = 20  # that a colour each can tell apart


@dataclass(frozen=True)
class OneCase:
    """A slice of one scan.

    Attributes:
        title: Above the picture.
        image: ``(Y, X)``.
        aspect: Height of a voxel, in its widths.
        consensus: Labels ``(Y, X)``.
        members: Labels of each network ``(M, Y, X)``.
    """

    title: str
    image: np.ndarray
    aspect: float
    consensus: np.ndarray
    members: np.ndarray


def draw_scores(
    path: Path,
    scores: Sequence[float],
    classes: Mapping[str, Sequence[float]],
    accepted: Sequence[bool],
    thresholds: tuple[float, float] | None,
) -> None:
    """Draw the scores of all scans, the best first, and write a PNG.

    Args:
        path: PNG file to write; it is complete or not there.
        scores: Score of each scan, descending.
        classes: Class -> its score in each scan, NaN where it is not there.
        accepted: Whether each scan is accepted.
        thresholds: Least score of a scan and of each of its classes, None where there are none.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    ranked, by_class = figure.subplots(1, 2, width_ratios=[1.6, 1])
    places = np.arange(1, len(scores) + 1)
    palette = colormaps["tab10"] if len(classes) <= 10 else colormaps["tab20"]
    if len(classes) <= _FEW_CLASSES:
        for number, (name, values) in enumerate(classes.items()):
            of_class = palette(number % palette.N)
            ranked.plot(places, values, ".", markersize=3, color=of_class, alpha=0.7, label=name)
    for mask, colour, label in ((True, _ACCEPTED, "accepted"), (False, _REJECTED, "rejected")):
        chosen = np.array([one == mask for one in accepted], bool)
        if chosen.any():
            text = f"{label} ({int(chosen.sum())})"
            ranked.plot(places[chosen], np.array(scores)[chosen], "o", markersize=4, color=colour, label=text)
    if thresholds is not None:
        for value, style, text in zip(thresholds, ("--", ":"), ("least score", "least of a class"), strict=True):
            ranked.axhline(value, color="black", linestyle=style, linewidth=0.9, label=f"{text}: {value:g}")
    ranked.set(xlabel="scans, the best first", ylabel="agreement", ylim=(-0.03, 1.03))
    ranked.xaxis.set_major_locator(MaxNLocator(integer=True))
    ranked.legend(fontsize=7, frameon=False, ncols=max(1, math.ceil((len(classes) + 4) / 8)), loc="lower left")
    _draw_classes(by_class, classes, None if thresholds is None else thresholds[1])
    for axes in (ranked, by_class):
        axes.grid(linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    save_figure(figure, path)


def _draw_classes(axes: Axes, classes: Mapping[str, Sequence[float]], threshold: float | None) -> None:
    names = list(classes)
    values = [[value for value in classes[name] if not math.isnan(value)] for name in names]
    places = np.arange(len(names), 0, -1)
    for place, own in zip(places, values, strict=True):
        if own:
            axes.plot(own, np.full(len(own), place), "|", color=_ACCEPTED, alpha=0.5, markersize=8)
            axes.plot([np.median(own)] * 2, [place - 0.3, place + 0.3], color=_REJECTED, linewidth=2)
    labels = [f"{name} ({len(own)})" for name, own in zip(names, values, strict=True)]
    axes.set_yticks(places, labels)
    axes.set(xlim=(-0.03, 1.03), ylim=(0.4, len(names) + 0.6), xlabel="agreement by class (scans), and median")
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle=":", linewidth=0.9)


def draw_contact_sheet(path: Path, rows: Mapping[str, Sequence[OneCase]]) -> None:
    """Draw one slice of each case with the outlines of every network and, in white, of the consensus.

    Args:
        path: PNG file to write; it is complete or not there.
        rows: Title -> cases.
    """
    columns = min(_COLUMNS, max(len(cases) for cases in rows.values()))
    heights = [math.ceil(len(cases) / columns) for cases in rows.values()]
    size = (max(2.5 * columns, 5) + 0.2, 2.5 * sum(heights) + 0.25 * len(rows) + 0.3)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    members = max(len(case.members) for cases in rows.values() for case in cases)
    colours = [colormaps["tab10"](number % 10) for number in range(members)]
    for part, (title, cases), height in zip(parts, rows.items(), heights, strict=True):
        part.suptitle(title, fontsize=10)
        all_axes = part.subplots(height, columns, squeeze=False).ravel()
        for axes, case in zip(all_axes, cases, strict=False):
            _draw_case(axes, case, colours)
        for axes in all_axes[len(cases) :]:
            axes.set_axis_off()
    handles = [Line2D([], [], color=colour, label=f"network {n}") for n, colour in enumerate(colours, 1)]
    handles.append(Line2D([], [], color="#bbbbbb", linewidth=2, label="consensus (white)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=8)
    save_figure(figure, path)


def _draw_case(axes: Axes, case: OneCase, colours: Sequence[Any]) -> None:
    box = _box(case)
    image = case.image[box]
    low, high = np.percentile(case.image, (0.5, 99.5))
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=case.aspect, interpolation="nearest")
    _outline(axes, case.consensus[box], "white", 1.8)
    for labels, colour in zip(case.members, colours, strict=False):
        _outline(axes, labels[box], colour, 0.9)
    height, width = image.shape
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # outlines reach beyond
    axes.set_title(case.title, fontsize=7)


def _outline(axes: Axes, labels: np.ndarray, colour: Any, width: float) -> None:
    for label in np.unique(labels[labels > 0]):
        mask = np.pad((labels == label).astype(float), 1)
        extent = (-1.0, labels.shape[1], -1.0, labels.shape[0])  # of the padded mask, in voxels of the image
        columns = np.arange(extent[0], extent[1] + 1)
        rows = np.arange(extent[2], extent[3] + 1)
        axes.contour(columns, rows, mask, levels=[0.5], colors=[colour], linewidths=width)


def _box(case: OneCase) -> tuple[slice, slice]:
    """Return the part of the slice that any network finds something in, with a margin; all of it where none does."""
    found = (case.members > 0).any(0) | (case.consensus > 0)
    if not found.any():
        return slice(None), slice(None)
    sides = []
    for axis in range(2):
        places = np.flatnonzero(found.any(1 - axis))
        margin = max(4, round(_MARGIN * (places[-1] - places[0] + 1)))
        sides.append(slice(max(0, int(places[0]) - margin), int(places[-1]) + margin + 1))
    return sides[0], sides[1]
