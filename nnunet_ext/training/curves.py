"""Curves beyond nnU-Net's own: logged once an epoch, kept in checkpoints, drawn beside nnU-Net's progress.png."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext import files
from nnunet_ext.plugin import compat

_COLOURS = 10  # classes that matplotlib's own colours tell apart
_MORE_COLOURS = ("#000075", "#f032e6", "#00d084", "#7f0000")
MOST_CLASSES = _COLOURS + len(_MORE_COLOURS)  # beyond, a panel shows some of them
_RECENT = 10  # epochs that decide which
_LONGEST_NAME = 24
_MARKED_EPOCHS = 60  # of a curve whose points are marked


@dataclass(frozen=True)
class Panel:
    """One panel of the figure.

    Attributes:
        title: Title above the panel.
        curves: Key and legend of each curve; those after the first are dashed where they have one value a class.
        log_scale: Whether the values are on a logarithmic axis.
        lowest: How many classes with the lowest values in this panel are shown, in all panels, where there are too
            many.
        called: What the classes with the lowest values are called.
        mean: Whether to draw the mean over the classes where there are many.
    """

    title: str
    curves: tuple[tuple[str, str], ...]
    log_scale: bool = False
    lowest: int = 0
    called: str = ""
    mean: bool = False


def register(logger: Any, keys: Sequence[str]) -> None:
    """Add curves to nnU-Net's logger; repeat it after a checkpoint was loaded, which replaces the logger's content.

    A curve that a checkpoint does not have is filled with NaN up to the present.
    """
    content = compat.logged_curves(logger)
    length = len(content["train_losses"])
    for key in keys:
        content.setdefault(key, [float("nan")] * length)


def log(logger: Any, values: dict[str, Any], epoch: int) -> None:
    """Log one value a curve for an epoch; lists are one value a class. Goes to wandb as well, where it is on."""
    for key, value in values.items():
        logger.log(key, value, epoch)


def draw(logger: Any, panels: Sequence[Panel], class_names: Sequence[str]) -> np.ndarray:
    """Draw curves as a figure of one panel below the other.

    A class has one colour in all panels. Of more classes than can be told apart the panels show the same few: those
    that are lowest in any panel that asks for it.

    Args:
        logger: nnU-Net's logger of curves.
        panels: Panels to draw, the first on top.
        class_names: Names for curves that have one value a class; the last ones where a curve leaves out the first.

    Returns:
        An RGB array ``(height, width, 3)``, uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure_of(logger, panels, class_names))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def figure_of(logger: Any, panels: Sequence[Panel], class_names: Sequence[str]) -> Any:
    """Return the figure that :func:`draw` draws."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator

    content = compat.logged_curves(logger)
    tables = {key: _table(content.get(key, [])) for panel in panels for key, _ in panel.curves}
    shown, left_out = _shown_classes(panels, tables, len(class_names))
    window = 1
    if len(shown) >= _COLOURS:  # noise of many lines hides them all
        tables, window = _smoothed(tables)
    figure = Figure(figsize=(12, 5 * len(panels)), dpi=80, layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(panels), 1))
    for ax, panel in zip(axes, panels, strict=True):
        by_class = any(tables[key].ndim == 2 for key, _ in panel.curves)
        if by_class:
            _plot_classes(ax, panel, tables, class_names, shown)
        else:
            for key, legend in panel.curves:
                _line(ax, tables[key], legend)
        title, xlabel = panel.title, "epoch"
        if by_class and left_out:
            title += f"\n{left_out}{', and the mean of all' if panel.mean else ''}"
        if by_class and window > 1:
            xlabel += f" (running mean of {window})"
        ax.set_title(title, fontsize=14)
        ax.set_xlabel(xlabel, fontsize=13)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.tick_params(labelsize=12)  # sizes are given because nnU-Net changes matplotlib's defaults
        ax.grid(alpha=0.3)
        if panel.log_scale:
            ax.set_yscale("symlog", linthresh=1e-6, subs=(2, 5))
            # shares of one order of magnitude have no power of ten among them
            ax.yaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(3, 1.5)))
            ax.tick_params(which="minor", labelsize=10)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=12)
    return figure


def _table(values: list[Any]) -> np.ndarray:
    """Return ``(epochs, classes)`` of a curve with one value a class, else ``(epochs,)``."""
    vectors = (list, tuple, np.ndarray)
    width = max((len(v) for v in values if isinstance(v, vectors)), default=0)
    if not width:
        return np.array(values, float)
    rows = [list(v) if isinstance(v, vectors) else [np.nan] * width for v in values]
    return np.array(rows, float)


def _smoothed(tables: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Return running means of curves with one value a class, where there are many epochs, and over how many of them."""
    epochs = max(map(len, tables.values()), default=0)
    if epochs <= _MARKED_EPOCHS:
        return tables, 1
    half = round(epochs / 40)
    smooth = {}
    for key, table in tables.items():
        if table.ndim == 2:
            padded = np.pad(table, ((half, half), (0, 0)), constant_values=np.nan)
            windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1, 0)
            table = np.where(np.isfinite(table), _mean(windows, -1), np.nan)
        smooth[key] = table
    return smooth, 2 * half + 1


def _shown_classes(panels: Sequence[Panel], tables: dict[str, np.ndarray], number: int) -> tuple[dict[int, Any], str]:
    """Return the class numbers to draw with their colours, and in words what is left out, if any."""
    # the first class is the background where some curves leave it out
    widths = {table.shape[1] for table in tables.values() if table.ndim == 2}
    first = number - min(widths, default=number)
    if number - first <= MOST_CLASSES:
        chosen, words = list(range(number)), ""
    else:
        chosen, said = [], []
        for panel in panels:
            added = [c for c in _lowest(panel, tables, number, first) if c not in chosen][: panel.lowest]
            chosen += added
            said += [f"{len(added)} {panel.called}"] if added else []
        words = f"{' and '.join(reversed(said)) or 'none yet'} of {number - first} classes"
    colours = [f"C{i}" for i in range(_COLOURS)] + list(_MORE_COLOURS)
    return {c: colours[(i if words else c) % len(colours)] for i, c in enumerate(chosen)}, words


def _lowest(panel: Panel, tables: dict[str, np.ndarray], number: int, first: int) -> list[int]:
    """Return the numbers of the classes in the order of what a panel shows of late, the lowest first."""
    recent = np.full((len(panel.curves), number), np.nan)
    for row, (key, _) in zip(recent, panel.curves, strict=True):
        table = tables[key]
        if table.ndim == 2 and len(table):
            row[number - table.shape[1] :] = _mean(table[-_RECENT:], 0)
    means = _mean(recent, 0)
    return [int(c) for c in np.argsort(means, kind="stable") if c >= first and np.isfinite(means[c])]


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean of what is finite, NaN where nothing is."""
    finite = np.isfinite(values)
    total = np.where(finite, values, 0).sum(axis)
    count = finite.sum(axis)
    return np.where(count, total / np.maximum(count, 1), np.nan)


def _plot_classes(
    ax: Any, panel: Panel, tables: dict[str, np.ndarray], class_names: Sequence[str], shown: dict[int, Any]
) -> None:
    """Draw one line a class and curve; the legend names each class once, in the order of the lines' ends."""
    number = len(class_names)
    ends: dict[int, list[float]] = {c: [] for c in shown}
    means: list[np.ndarray] = []
    for style, (key, legend) in zip(("-", "--"), panel.curves, strict=False):
        table = tables[key]
        if table.ndim < 2:
            continue
        offset = number - table.shape[1]
        if len(panel.curves) > 1:
            _line(ax, np.full(len(table), np.nan), legend, style, "grey")
        for c, colour in shown.items():
            if c >= offset:
                _line(ax, table[:, c - offset], None, style, colour)
                ends[c].append(float(_last(table[:, c - offset])))
        if panel.mean and table.shape[1] > _COLOURS:
            means.append(_mean(table, 1))
            _line(ax, means[-1], None, style, "black", 2.6)
    if means:
        ax.plot([], [], "-", color="black", label=f"mean {_values(panel, map(_last, means))}", linewidth=2.6)
    order = sorted((c for c in shown if ends[c]), key=lambda c: -np.nan_to_num(_mean(np.array(ends[c]), 0), nan=-1))
    for c in order:
        legend = f"{_short(class_names[c])} {_values(panel, ends[c])}"
        ax.plot([], [], "-", color=shown[c], label=legend, linewidth=2.4)


def _values(panel: Panel, ends: Iterable[float]) -> str:
    return " / ".join("-" if np.isnan(v) else f"{v:.1e}" if panel.log_scale else f"{v:.2f}" for v in ends)


def _line(
    ax: Any, values: np.ndarray, legend: str | None, style: str = "-", color: Any = None, width: float = 1.6
) -> None:
    # a value between two gaps is no line: short trainings and rare classes show points
    finite = np.isfinite(values)
    alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False] if len(values) else finite
    marked = np.flatnonzero(finite if len(values) <= _MARKED_EPOCHS else alone)
    ax.plot(values, style, marker="o", markersize=3, markevery=list(marked), color=color, label=legend, linewidth=width)


def _last(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else float("nan")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 12]}\N{HORIZONTAL ELLIPSIS}{name[-11:]}"


def append_to_progress_png(folder: str, picture: np.ndarray) -> None:
    """Put a picture to the right of nnU-Net's progress.png, replacing that file in one step."""
    from PIL import Image

    path = Path(folder) / "progress.png"
    if not path.is_file():
        return
    with Image.open(path) as stock:
        left = stock.convert("RGB")
    right = Image.fromarray(picture)
    scale = left.height / right.height
    right = right.resize((max(1, round(right.width * scale)), left.height))
    joint = Image.new("RGB", (left.width + right.width, left.height), "white")
    joint.paste(left, (0, 0))
    joint.paste(right, (left.width, 0))
    with files.whole(path) as temporary:
        joint.save(temporary)
