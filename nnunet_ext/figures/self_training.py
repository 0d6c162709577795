"""Dice of the cycles of a self-training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nnunet_ext.figures.style import plain_style, save_figure


@plain_style()
def draw_cycles(path: Path, title: str, cycles: Sequence[Mapping[str, Any]], best: int) -> None:
    """Draw mean, worst case and classes by cycle, and what each case gained, and write a PNG.

    Args:
        path: PNG file to write; it is complete or not there.
        title: What was trained.
        cycles: Of each cycle ``"cycle"``, ``"pseudo_labels"``, ``"dice"``, ``"worst_case"``, ``"classes"`` (class ->
            Dice) and ``"cases"`` (mean Dice of each validation case, in one order for all cycles).
        best: Number of the best cycle.
    """
    numbers = [entry["cycle"] for entry in cycles]
    classes = list(cycles[0]["classes"])
    figure = Figure(figsize=(11, 4.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    colours = matplotlib.colormaps["tab20"].resampled(max(1, len(classes)))
    for place, name in enumerate(classes):
        left.plot(numbers, [e["classes"][name] for e in cycles], "o-", lw=1, ms=3, color=colours(place), label=name)
    left.plot(numbers, [entry["dice"] for entry in cycles], "ko-", lw=2.5, label="mean")
    left.plot(numbers, [entry["worst_case"] for entry in cycles], "k:", lw=1.5, label="worst case")
    left.axvline(best, color="#d55e00", lw=6, alpha=0.2, zorder=0)
    left.set_ylabel("Dice of the validation cases")
    left.legend(fontsize=7, frameon=False, ncols=1 + len(classes) // 12, loc="center left", bbox_to_anchor=(1, 0.5))
    start = np.asarray(cycles[0]["cases"], float)
    for entry in cycles[1:]:
        gains = np.asarray(entry["cases"], float) - start
        spread = np.linspace(-0.12, 0.12, len(gains)) if len(gains) > 1 else np.zeros(len(gains))
        right.plot(entry["cycle"] + spread, np.sort(gains), ".", color="#0072b2", ms=4, alpha=0.7)
        low, high = entry["interval"]
        centre = float(np.nanmean(gains)) if np.isfinite(gains).any() else np.nan
        right.errorbar(entry["cycle"], centre, [[centre - low], [high - centre]], fmt="ko", capsize=4, lw=2)
    right.axhline(0, color="#888888", lw=1)
    right.set_ylabel("Dice over cycle 0: cases, mean, 95 %")
    labels = [f"{entry['cycle']}\n{entry['pseudo_labels']} pseudo-labels" for entry in cycles]
    for axes in (left, right):
        axes.set_xlabel("cycle")
        axes.set_xlim(-0.4, max(1, numbers[-1]) + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(numbers, labels, fontsize=8)
    figure.suptitle(f"{title}; best: cycle {best}", fontsize=11)
    save_figure(figure, path)
