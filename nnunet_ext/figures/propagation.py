"""A propagation as a picture: a strip of slices with what came from below, from above and of both, and agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from nibabel.orientations import io_orientation

from nnunet_ext.data.geometry import affine_of
from nnunet_ext.figures.style import plain_style, save_figure
from nnunet_ext.inference.sparse_case import SparseCase
from nnunet_ext.propagation.driver import Propagated, suggest

_SHOWN = 9  # slices, if there are not more references than that
_MOST = 14
_BESIDE = 2.2  # inches beside the slices: their rows' names, and the legend
_MARGIN = 0.12  # of the box of the labels, that is shown around them
_REFERENCE, _SUGGESTED = "#e6007e", "#00b4d8"  # neither is among the first labels' colours
ROWS = ("forward", "backward", "result")


@dataclass(frozen=True)
class Strip:
    """What is drawn of a case, in the order of the slices of the file.

    Attributes:
        title: Above the picture.
        image: ``(T, H, W)``.
        aspect: Height of a voxel, in its widths.
        labels: Row -> label maps ``(T, H, W)``.
        directions: ``(T, 2)``: whether a forward and a backward pass came to a slice.
        agreement: ``(T,)``, NaN at references.
        references: Which slices are references, ``(T,)`` bool.
        suggested: Places of the slices to annotate next.
        numbers: Number of each slice in the file.
    """

    title: str
    image: np.ndarray
    aspect: float
    labels: dict[str, np.ndarray]
    directions: np.ndarray
    agreement: np.ndarray
    references: np.ndarray
    suggested: tuple[int, ...]
    numbers: np.ndarray


def strip_of(
    case: SparseCase, image: np.ndarray, result: Propagated, order: Sequence[int] = (0, 1, 2), number: int = 3
) -> Strip:
    """Take what is drawn out of a case.

    Args:
        case: The case.
        image: ``(C, T, H, W)`` on the grid of the model; its first channel is shown.
        result: What became of its references.
        order: Array axes of the image, the one of the slices first: ``transpose_forward`` of the plans.
        number: Number of slices to annotate next that are marked.
    """
    first = int(case.properties["bbox_used_for_cropping"][0][0])
    total = len(result.agreement)
    labels = {"forward": result.forward, "backward": result.backward, "result": result.labels}
    look = _as_looked_at(case, order)
    maps = {name: np.asarray(values)[look] for name, values in labels.items()}
    directions = np.asarray(result.directions)
    strip = Strip(
        f"{case.case}: {len(case.given.indices)} annotated slice(s) of {case.numbers.total}",
        image[0][look],
        float(case.target[0] / case.target[1]),
        maps,
        directions,
        np.asarray(result.agreement, float),
        np.logical_not(directions.any(1)),
        tuple(suggest(result, number)) if total > 1 else (),
        np.array([case.numbers.number(first + index) for index in range(total)]),
    )
    return _turned(strip) if case.numbers.reversed else strip


def _as_looked_at(case: SparseCase, order: Sequence[int]) -> tuple[slice, slice, slice]:
    """Return what turns slices so that right is at the left, and front or head at the top, where that is known."""
    affine = affine_of(case.properties, of_array=True)
    if affine is None:
        return slice(None), slice(None), slice(None)
    # nibabel counts towards right, front and head; its axes are those of the array reversed
    towards = [io_orientation(affine)[2 - axis, 1] for axis in order[1:]]
    rows, columns = (slice(None, None, -1 if sign > 0 else 1) for sign in towards)
    return slice(None), rows, columns


def _turned(strip: Strip) -> Strip:
    """Return the slices in the opposite order; what is forward stays so by name only for the order of the file."""
    labels = {name: values[::-1] for name, values in strip.labels.items()}
    labels["forward"], labels["backward"] = labels["backward"], labels["forward"]
    last = len(strip.image) - 1
    return Strip(
        strip.title,
        strip.image[::-1],
        strip.aspect,
        labels,
        strip.directions[::-1, ::-1],
        strip.agreement[::-1],
        strip.references[::-1],
        tuple(last - place for place in strip.suggested),
        strip.numbers[::-1],
    )


def chosen_places(strip: Strip, most: int = _SHOWN) -> list[int]:
    """Return the slices that are shown: references, those to annotate next, and others far from all that are."""
    labelled = np.flatnonzero(strip.labels["result"].any((1, 2)))
    low, high = (int(labelled[0]), int(labelled[-1])) if len(labelled) else (0, len(strip.image) - 1)
    references = [int(place) for place in np.flatnonzero(strip.references)]
    if len(references) > most:
        references = [references[place] for place in np.linspace(0, len(references) - 1, most).astype(int)]
    found = sorted({*references, *strip.suggested[: max(0, _MOST - len(references))]})
    between = np.arange(low, high + 1)
    while len(found) < min(most, len(between)):
        distance = np.abs(between[:, None] - np.array(found or [low])).min(1)
        if not distance.max():
            break
        found = sorted({*found, int(between[distance.argmax()])})
    return found


@plain_style()
def draw_propagation(path: Path, strip: Strip, names: Mapping[int, str] = MappingProxyType({})) -> None:
    """Draw a strip and the agreement of the passes below it.

    Args:
        path: PNG file to write; it is complete or not there.
        strip: What is drawn.
        names: What labels are called.
    """
    places = chosen_places(strip)
    rows, columns = _box(strip)
    classes = [int(label) for label in np.unique(strip.labels["result"]) if label > 0]
    palette = colormaps["tab10"] if len(classes) <= 10 else colormaps["tab20"]
    colours = {label: palette(number % palette.N) for number, label in enumerate(classes)}
    ratio = strip.aspect * (rows.stop - rows.start) / (columns.stop - columns.start)
    width = max(8.0, 1.35 * len(places) + 0.6)
    height = (width - _BESIDE) / len(places) * ratio * len(ROWS)
    figure = Figure(figsize=(width, min(height, 9.0) + 2.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(ROWS) + 1, len(places), height_ratios=[1] * len(ROWS) + [2.0 * len(ROWS) / height])
    low, high = np.percentile(strip.image, (0.5, 99.5))
    for row, name in enumerate(ROWS):
        for column, place in enumerate(places):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(
                strip.image[place, rows, columns],
                cmap="gray",
                vmin=low,
                vmax=max(high, low + 1e-6),
                aspect=strip.aspect,
                interpolation="nearest",
            )
            comes = name == "result" or bool(strip.directions[place, row])
            if comes:
                _outline(axes, strip.labels[name][place, rows, columns], colours)
            _dress(axes, strip, name, place, comes, column == 0)
    _curve(figure.add_subplot(grid[len(ROWS), :]), strip, places)
    figure.suptitle(strip.title, fontsize=10, parse_math=False)
    handles = [
        Line2D([], [], color=colour, label=names.get(label, f"label {label}")) for label, colour in colours.items()
    ]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(10, len(handles)), frameon=False, fontsize=8
        )
    save_figure(figure, path)


def _dress(axes: Axes, strip: Strip, name: str, place: int, comes: bool, is_first: bool) -> None:
    """Name a picture, and frame it where the slice was given or is to be annotated next."""
    height, width = axes.images[0].get_array().shape[:2]  # type: ignore[union-attr]
    axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # outlines reach beyond
    if is_first:
        axes.set_ylabel(name, fontsize=9)
    if name == ROWS[0]:
        axes.set_title(f"slice {strip.numbers[place]}", fontsize=8)
    reference, suggested = bool(strip.references[place]), place in strip.suggested
    if not comes:
        text = "reference" if reference else "no pass"
        box = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1}
        axes.text(
            0.5, 0.05, text, transform=axes.transAxes, ha="center", va="bottom", fontsize=7, color="white", bbox=box
        )
    if reference or suggested:
        for spine in axes.spines.values():
            spine.set(color=_REFERENCE if reference else _SUGGESTED, linewidth=2.2)


def _outline(axes: Axes, labels: np.ndarray, colours: Mapping[int, object]) -> None:
    for label in (int(value) for value in np.unique(labels[labels > 0])):
        mask = np.pad((labels == label).astype(float), 1)
        columns, rows = np.arange(-1.0, labels.shape[1] + 1), np.arange(-1.0, labels.shape[0] + 1)
        axes.contour(columns, rows, mask, levels=[0.5], colors=[colours.get(label, "white")], linewidths=1.2)


def _curve(axes: Axes, strip: Strip, places: Sequence[int]) -> None:
    both = strip.directions.all(1)
    one = strip.directions.any(1) & ~both
    for chosen, style, text in ((both, "-", "Dice of both passes"), (one, ":", "one pass: its own certainty")):
        if chosen.any():
            values = np.where(chosen, strip.agreement, np.nan)
            axes.plot(strip.numbers, values, style, color="black", marker=".", markersize=4, linewidth=1, label=text)
    given = strip.numbers[strip.references]
    axes.vlines(given, 0, 1, color=_REFERENCE, linewidth=1.2, label="annotated", zorder=0)
    if strip.suggested:
        suggested = list(strip.suggested)
        axes.plot(
            strip.numbers[suggested],
            strip.agreement[suggested],
            "o",
            color=_SUGGESTED,
            markersize=6,
            label="to annotate next",
        )
    axes.plot(strip.numbers[list(places)], np.full(len(places), -0.06), "^", color="0.4", markersize=4, label="shown")
    ends = (strip.numbers.min() - 0.9, strip.numbers.max() + 0.9)  # no tick for slice 0, which there is not
    axes.set(xlabel="slice", ylabel="agreement", ylim=(-0.12, 1.05), xlim=ends)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(1.0, 0.0))


def _box(strip: Strip) -> tuple[slice, slice]:
    """Return the part of the slices that has labels, with a margin; all of it where nothing has."""
    found = np.logical_or.reduce([labels.any(0) for labels in strip.labels.values()])
    if not found.any():
        return slice(0, found.shape[0]), slice(0, found.shape[1])
    sides = []
    for axis, length in enumerate(found.shape):
        places = np.flatnonzero(found.any(1 - axis))
        margin = max(4, round(_MARGIN * (places[-1] - places[0] + 1)))
        sides.append(slice(max(0, int(places[0]) - margin), min(length, int(places[-1]) + margin + 1)))
    return sides[0], sides[1]
