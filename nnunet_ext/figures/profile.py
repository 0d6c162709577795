"""A profile as a picture: seconds, memory and accuracy of each setting, memory over time, and the best trade."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ext.figures.style import plain_style, save_figure
from nnunet_ext.inference.spacing_report import STAGES

_STAGE_COLOURS = dict(zip(STAGES, ("#56b4e9", "#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=True))
_PAIR_COLOURS = ("#0072b2", "#e69f00")
_WALL = "#999999"
_BUDGET = "#009e73"
_BUDGETS_SHOWN = 5
_PANEL_INCHES = 4.2

Entries = dict[str, dict[str, Any]]


@plain_style()
def draw_profile(path: Path, document: dict[str, Any]) -> None:
    """Draw the settings that were measured, and write a PNG.

    Args:
        path: PNG file to write; it is complete or not there.
        document: Content of ``profile.json``, as ``profile`` returns it.
    """
    entries = {name: entry for name, entry in document["settings"].items() if "measured" in entry}
    figure = _figure(entries, document)
    FigureCanvasAgg(figure)
    save_figure(figure, path)


def _figure(entries: Entries, document: dict[str, Any]) -> Figure:
    bars: list[Callable[[Axes, Entries], None]] = [_draw_seconds, _draw_peaks]
    if any("quality" in entry for entry in entries.values()):
        bars.append(_draw_quality)
    curves = [("memory_mb", "host memory [MB]"), ("cpu_percent", "CPU utilisation, smoothed [%]")]
    if any(entry["curves"]["gpu_memory_mb"] for entry in entries.values()):
        curves.insert(1, ("gpu_memory_mb", "GPU memory [MB]"))
    with_trade = any(_dice(entry) is not None for entry in entries.values())
    bars_inches, curves_inches = 1.3 + 0.55 * max(1, len(entries)), 3.4
    width = _PANEL_INCHES * max(len(bars), len(curves) + with_trade) + 1.2
    figure = Figure(figsize=(width, bars_inches + curves_inches + 0.6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[bars_inches, curves_inches])
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    for axes, draw in zip(above.subplots(1, len(bars), sharey=True, squeeze=False)[0], bars, strict=True):
        draw(axes, entries)
        axes.grid(axis="x", linewidth=0.4, alpha=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    colours = _setting_colours(entries)
    panels = below.subplots(1, len(curves) + with_trade, squeeze=False)[0]
    for axes, (key, label) in zip(panels[: len(curves)], curves, strict=True):
        _draw_curves(axes, entries, key, label, colours)
    if with_trade:
        _draw_trade(panels[-1], entries, document.get("trade"), colours)
    handles, names = below.axes[0].get_legend_handles_labels()
    if names:
        below.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), fontsize=8, frameon=False)
    figure.suptitle(_title(document), fontsize=11)
    return figure


def _title(document: dict[str, Any]) -> str:
    device, options = document["device"], document["options"]
    hardware = device["gpu"] or f"{device['processor']}, {device['cores']} cores"
    return (
        f"{Path(options['model']).name}, fold(s) {' '.join(map(str, options['folds']))}: {len(document['cases'])} "
        f"case(s) on {options['device']} ({hardware})"
    )


def _draw_seconds(axes: Axes, entries: Entries) -> None:
    """Wall time a case, and below it the stages, whose sum differs because several processes work at a time."""
    has_stages = any(entry["measured"]["stages"] for entry in entries.values())
    height, offset = (0.36, 0.2) if has_stages else (0.6, 0.0)
    for row, entry in enumerate(entries.values()):
        measured = entry["measured"]
        seconds = measured["seconds_per_case"]
        axes.barh(row - offset, seconds, height, color=_WALL, label="wall time / cases" if row == 0 else None)
        axes.text(seconds, row - offset, f" {seconds:.3g}", va="center", fontsize=8)
        left = 0.0
        for stage, value in (measured["stages"] or {}).items():
            label = stage if stage not in axes.get_legend_handles_labels()[1] else None
            axes.barh(row + offset, value, height, left=left, color=_STAGE_COLOURS[stage], label=label)
            left += value
    _finish(axes, entries, "seconds a case" + (" (stages overlap in time)" if has_stages else ""))


def _draw_peaks(axes: Axes, entries: Entries) -> None:
    kinds = [("host", "peak_memory_mb"), ("GPU", "peak_gpu_memory_mb")]
    rows = [{kind: entry["measured"][key] for kind, key in kinds} for entry in entries.values()]
    _draw_pairs(axes, entries, rows, ".0f", "peak memory [MB]")


def _draw_quality(axes: Axes, entries: Entries) -> None:
    rows = []
    for entry in entries.values():
        mean = entry.get("quality", {}).get("mean", {})
        rows.append({"DSC": mean.get("dsc"), "NSD": mean.get("nsd")})
    tolerances = dict.fromkeys(f"{e['quality']['tolerance_mm']:g} mm" for e in entries.values() if "quality" in e)
    _draw_pairs(axes, entries, rows, ".3f", f"mean over the classes; NSD at {' or '.join(tolerances)}")
    axes.set_xlim(0, 1.15)


def _dice(entry: dict[str, Any]) -> float | None:
    return entry.get("quality", {}).get("mean", {}).get("dsc")


def _compared_alike(entries: Entries, trade: dict[str, Any] | None) -> Entries:
    """Leave out what was compared with other labels than the reference of a trade."""
    if trade is None or trade["reference"] not in entries:
        return entries
    labels = entries[trade["reference"]]["quality"].get("labels")
    return {name: entry for name, entry in entries.items() if entry.get("quality", {}).get("labels") == labels}


def _draw_trade(axes: Axes, entries: Entries, trade: dict[str, Any] | None, colours: dict[str, Any]) -> None:
    """Mean DSC over seconds a case; with a budget, what lies within it, and the pick with a ring; triangles: below."""
    points = {
        name: (entry["measured"]["seconds_per_case"], dice)
        for name, entry in _compared_alike(entries, trade).items()
        if (dice := _dice(entry)) is not None
    }
    pick = None if trade is None else points.get(trade["setting"])
    reference = None if trade is None else points.get(trade["reference"])
    least = -1.0
    if trade is not None and pick is not None and reference is not None:
        least = reference[1] - _BUDGETS_SHOWN * trade["budget"] if trade["budget"] else least
        axes.axhline(reference[1] - trade["budget"], color=_BUDGET, linewidth=1.2, linestyle="--")
        axes.axhspan(reference[1] - trade["budget"], 1, color=_BUDGET, alpha=0.1, linewidth=0)
        axes.scatter(*pick, s=190, facecolors="none", edgecolors="black", linewidths=1.6, zorder=4)
        title = f"fastest within {trade['budget']:g} of {trade['reference']}: {trade['setting']}"
        axes.set_title(title, fontsize=9)
    shown = {name: max(dice, least) for name, (_, dice) in points.items()}
    for name, (seconds, dice) in points.items():
        # what is far below is at the edge, so that the budget can be seen
        axes.scatter(seconds, shown[name], s=42, color=colours[name], zorder=3, marker="o" if dice >= least else "v")
    low, high = min(shown.values()), max(shown.values())
    margin = max(0.1 * (high - low), 5e-4)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("seconds a case", fontsize=9)
    axes.set_ylabel("mean DSC", fontsize=9)
    axes.set_xlim(left=0)
    axes.tick_params(labelsize=8)
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_pairs(axes: Axes, entries: Entries, rows: list[dict[str, float | None]], digits: str, label: str) -> None:
    """Draw up to two bars a setting; a kind that no setting has takes no room."""
    kinds = [kind for kind in rows[0] if any(row[kind] is not None for row in rows)] if rows else []
    height = 0.72 / max(1, len(kinds))
    for number, kind in enumerate(kinds):
        places = [row + (number - (len(kinds) - 1) / 2) * height for row in range(len(rows))]
        values = [row[kind] for row in rows]
        axes.barh(places, [value or 0.0 for value in values], height * 0.92, color=_PAIR_COLOURS[number], label=kind)
        for place, value in zip(places, values, strict=True):
            axes.text(value or 0.0, place, f" {value:{digits}}" if value is not None else " -", va="center", fontsize=8)
    _finish(axes, entries, label)


def _finish(axes: Axes, entries: Entries, label: str) -> None:
    axes.set_yticks(range(len(entries)), list(entries))
    axes.set_ylim(len(entries) - 0.4, -0.6)  # the first setting at the top
    axes.set_xlim(0, axes.get_xlim()[1] * 1.12)  # room for the numbers
    axes.set_xlabel(label, fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def _draw_curves(axes: Axes, entries: Entries, key: str, label: str, colours: dict[str, Any]) -> None:
    for name, entry in entries.items():
        curve = entry["curves"][key]
        if curve:
            values = curve["values"] if key != "cpu_percent" else _smoothed(curve["values"])
            axes.plot(curve["seconds"], values, color=colours[name], linewidth=1.2, label=name)
    axes.set_xlabel("seconds since the start", fontsize=9)
    axes.set_ylabel(label, fontsize=9)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.grid(linewidth=0.4, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _smoothed(values: list[float], width: int = 7) -> list[float]:
    """Return means over neighbouring values; utilisation jumps up and down five times a second."""
    windows = [values[max(0, i - width // 2) : i + width // 2 + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _setting_colours(entries: Entries) -> dict[str, Any]:
    palette = colormaps["tab10"] if len(entries) <= 10 else colormaps["tab20"]
    return {name: palette(number % palette.N) for number, name in enumerate(entries)}
