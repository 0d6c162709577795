"""Curves beyond nnU-Net's own: logged once an epoch, kept in checkpoints, drawn beside nnU-Net's progress.png."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Panel:
    """One panel of the figure.

    Attributes:
        title: Its title.
        curves: Key and legend of each curve; those after the first are dashed where they have one value a class.
        log_scale: Logarithmic values.
    """

    title: str
    curves: tuple[tuple[str, str], ...]
    log_scale: bool = False


def register(logger: Any, keys: Sequence[str]) -> None:
    """Add curves to nnU-Net's logger; repeat it after a checkpoint was loaded, which replaces the logger's content.

    A curve that a checkpoint does not have is filled with NaN up to the present.
    """
    content = logger.local_logger.my_fantastic_logging
    length = len(content["train_losses"])
    for key in keys:
        content.setdefault(key, [float("nan")] * length)


def log(logger: Any, values: dict[str, Any], epoch: int) -> None:
    """Log one value a curve for an epoch; lists are one value a class. Goes to wandb as well, where it is on."""
    for key, value in values.items():
        logger.log(key, value, epoch)


def draw(logger: Any, panels: Sequence[Panel], class_names: Sequence[str]) -> np.ndarray:
    """Draw curves as a figure of one panel below the other.

    Args:
        logger: nnU-Net's logger.
        panels: What to draw.
        class_names: Names for curves that have one value a class; the last ones where a curve leaves out the first.

    Returns:
        An RGB array ``(height, width, 3)``, uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    content = logger.local_logger.my_fantastic_logging
    figure = Figure(figsize=(12, 5 * len(panels)), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(len(panels), 1))
    for ax, panel in zip(axes, panels, strict=True):
        for number, (key, legend) in enumerate(panel.curves):
            _plot(ax, content.get(key, []), legend, class_names, dashed=number > 0)
        ax.set_title(panel.title, fontsize=15)
        ax.set_xlabel("epoch", fontsize=13)
        ax.tick_params(labelsize=12)  # sizes are given because nnU-Net changes matplotlib's defaults
        ax.grid(alpha=0.3)
        if panel.log_scale:
            ax.set_yscale("symlog", linthresh=1e-5)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=12)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _plot(ax: Any, values: list[Any], legend: str, class_names: Sequence[str], dashed: bool) -> None:
    vectors = (list, tuple, np.ndarray)
    width = max((len(v) for v in values if isinstance(v, vectors)), default=0)
    if not width:
        ax.plot(np.array(values, float), "o-", markersize=3, label=legend, linewidth=1.8)
        return
    rows = [list(v) if isinstance(v, vectors) else [np.nan] * width for v in values]
    names = list(class_names)[-width:]
    for i, column in enumerate(np.array(rows, float).T):
        color = f"C{(i + len(class_names) - width) % 10}"
        style = "o--" if dashed else "o-"
        ax.plot(column, style, markersize=3, color=color, label=f"{legend} {names[i]}", linewidth=1.6)


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
    temporary = path.with_name(".progress.png")  # overwritten after a kill
    joint.save(temporary)
    os.replace(temporary, path)
