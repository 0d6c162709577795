"""Which channels a model with instructive feature enhancement selects for one case, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from nnunet_ext.figures import middle_patch
from nnunet_ext.figures.style import plain_style, save_figure
from nnunet_ext.inference.case import Model
from nnunet_ext.training.architecture import ENHANCED

_SHOWN = 8  # channels in a row


@dataclass(frozen=True)
class Stage:
    """What one enhanced stage saw.

    Attributes:
        number: Of the encoder stage, 0 the highest resolution.
        score: ``"curvature"`` or ``"entropy"``.
        features: ``(C, *S)``.
        scores: ``(C,)``.
        ranking: Channels by falling score, all of them.
        selected: How many of them are appended.
    """

    number: int
    score: str
    features: np.ndarray
    scores: np.ndarray
    ranking: np.ndarray
    selected: int


def load_network(
    model: Path, plans: dict[str, Any], dataset_json: dict[str, Any], checkpoint: Path
) -> tuple[nn.Module, Model]:
    """Build a trained network from the plans beside it; see :func:`~nnunet_ext.figures.middle_patch.load_network`.

    Raises:
        ValueError: If the network has no instructive feature enhancement.
    """
    lacks = "has no instructive feature enhancement; give one trained with IFECurvature or IFEEntropy in its name"
    return middle_patch.load_network(model, plans, dataset_json, checkpoint, tuple(ENHANCED.values()), lacks)


@torch.no_grad()
def look(network: nn.Module, model: Model, images: tuple[str, ...], device: torch.device) -> list[Stage]:
    """Run the network on the patch in the middle of a case, and return what each enhanced stage saw.

    Args:
        network: Of :func:`load_network`.
        model: The same.
        images: Files, one a channel.
        device: Where to run.
    """
    data = middle_patch.cut(model, images)
    seen: dict[str, Tensor] = {}
    enhancements: Any = network.enhancements
    hooks = [
        module.register_forward_hook(lambda _, given, __, stage=stage: seen.update({stage: given[0]}))
        for stage, module in enhancements.items()
    ]
    try:
        network.to(device)(data[None].to(device))
    finally:
        for hook in hooks:
            hook.remove()
    stages = []
    for stage, module in enhancements.items():
        scores = module.scores(seen[stage])[0]
        ranking = scores.sort(descending=True, stable=True).indices
        features, values = (one.float().cpu().numpy() for one in (seen[stage][0], scores))
        stages.append(Stage(int(stage), module.score, features, values, ranking.cpu().numpy(), module.selected))
    return stages


@plain_style()
def draw(path: Path, title: str, stages: Sequence[Stage]) -> None:
    """Draw, for each stage, all scores, and the channels with the highest and with the lowest ones.

    Args:
        path: PNG to write; complete or not there.
        title: Of the figure.
        stages: What was seen.
    """
    figure = Figure(figsize=(14, 0.4 + 5.4 * len(stages)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(len(stages), 1, squeeze=False)
    for part, stage in zip(parts[:, 0], stages, strict=True):
        grid = part.add_gridspec(3, _SHOWN, height_ratios=[1.1, 1, 1])
        ordered = stage.scores[stage.ranking]
        bars = part.add_subplot(grid[0, :])
        colours = ["#0072b2"] * stage.selected + ["#bbbbbb"] * (len(ordered) - stage.selected)
        bars.bar(range(len(ordered)), ordered, color=colours)
        bars.set(ylabel=stage.score + (" [bits]" if stage.score == "entropy" else ""), xlabel="channels by score")
        bars.set_title(
            f"encoder stage {stage.number}: {stage.selected} of {len(ordered)} channels are repeated (blue)",
            fontsize=10,
        )
        bars.spines[["top", "right"]].set_visible(False)
        selected, rejected = stage.ranking[: stage.selected][:_SHOWN], stage.ranking[stage.selected :][-_SHOWN:]
        for row, (name, channels) in enumerate((("selected", selected), ("not selected", rejected)), 1):
            for column, channel in enumerate(channels):
                axes = part.add_subplot(grid[row, column])
                features = stage.features[channel]
                axes.imshow(features[len(features) // 2] if features.ndim == 3 else features, cmap="gray")
                axes.set(xticks=[], yticks=[])
                axes.set_title(f"{name} {channel}\n{stage.scores[channel]:.3g}", fontsize=8)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)
