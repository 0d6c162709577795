"""The depths of a nested network as a picture: accuracy, parameters, time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nnunet_ext.figures.style import plain_style, save_figure

_COLOURS = {"dice": "#0072b2", "iou": "#009e73", "precision": "#e69f00", "recall": "#cc79a7"}


@plain_style()
def draw_depths(path: Path, document: dict[str, Any]) -> None:
    """Draw accuracy, parameters, time and memory by depth, and write a PNG.

    Args:
        path: PNG file to write; it is complete or not there.
        document: Content of ``prune.json``, as ``compare_depths`` returns it.
    """
    depths = document["depths"]
    x = [int(depth) for depth in depths]
    figure = Figure(figsize=(14, 3.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4)
    for name, colour in _COLOURS.items():
        values = [np.nan if entry[name] is None else entry[name] for entry in depths.values()]
        panels[0].plot(x, values, "o-", color=colour, label=name if name != "iou" else "IoU")
    panels[0].legend(fontsize=8, frameon=False)
    panels[0].set_title("accuracy, mean", fontsize=10)
    memory = "peak_gpu_memory_mb" if depths[str(x[-1])]["peak_gpu_memory_mb"] is not None else "peak_memory_mb"
    bars = (
        ("parameters", "parameters [million]", 1e-6),
        ("seconds", "network [s/case]", 1.0),
        (memory, f"peak {'GPU ' if 'gpu' in memory else ''}memory [GB]", 1e-3),
    )
    for axes, (key, title, scale) in zip(panels[1:], bars, strict=True):
        heights = [(entry[key] or 0) * scale for entry in depths.values()]
        axes.bar(x, heights, color=["#d55e00" if d == document["recommended"] else "#bbbbbb" for d in x])
        for d, height in zip(x, heights, strict=True):
            axes.annotate(f"{height:.3g}", (d, height), ha="center", va="bottom", fontsize=8)
        axes.margins(y=0.12)
        axes.set_title(title, fontsize=10)
    for axes in panels:
        axes.set_xticks(x)
        axes.set_xlabel("prune depth")
        axes.spines[["top", "right"]].set_visible(False)
    title = f"{Path(document['model']).name}, fold {document['fold']}: {len(document['cases'])} case(s); "
    figure.suptitle(f"{title}recommended depth {document['recommended'] or 'unknown'} (orange)", fontsize=11)
    save_figure(figure, path)
