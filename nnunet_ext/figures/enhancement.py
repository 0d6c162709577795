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
    """Features and scores of one enhanced stage.

    Attributes:
        number: Number of the encoder stage, 0 at the highest resolution.
        score: Kind of the scores, ``"curvature"`` or ``"entropy"``.
        features: Feature maps ``(C, *S)`` that enter the enhancement.
        scores: Score of each channel, ``(C,)``.
        ranking: Indices of all channels by falling score, ``(C,)``.
        selected: Number of channels, the first of the ranking, that are repeated.
    """

    number: int
    score: str
    features: np.ndarray
    scores: np.ndarray
    ranking: np.ndarray
    selected: int


def load_network(
    model: Path, plans: dict[str, Any], dataset_json: dict[str, Any], checkpoint: Path
) -> tuple[nn.Module, middle_patch.DrawnModel]:
    """Build a trained network from the plans beside it; see :func:`~nnunet_ext.figures.middle_patch.load_network`.

    Raises:
        ValueError: If the network has no instructive feature enhancement.
    """
    reason = "has no instructive feature enhancement; give one trained with IFECurvature or IFEEntropy in its name"
    return middle_patch.load_network(model, plans, dataset_json, checkpoint, tuple(ENHANCED.values()), reason)


@torch.no_grad()
def enhanced_stages(network: nn.Module, model: Model, images: tuple[str, ...], device: torch.device) -> list[Stage]:
    """Run the network on the patch in the middle of a case, and return features and scores of each enhanced stage.

    Args:
        network: Network from :func:`load_network`, on any device.
        model: Plans of the network from :func:`load_network`.
        images: Image files of the case, one a channel.
        device: Device to run the network on.
    """
    data = middle_patch.read_middle_patch(model, images)
    inputs: dict[str, Tensor] = {}
    enhancements: Any = network.enhancements
    hooks = [
        module.register_forward_hook(lambda _, arguments, __, stage=stage: inputs.update({stage: arguments[0]}))
        for stage, module in enhancements.items()
    ]
    try:
        network.to(device)(data[None].to(device))
    finally:
        for hook in hooks:
            hook.remove()
    stages = []
    for stage, module in enhancements.items():
        scores = module.scores(inputs[stage])[0]
        ranking = scores.sort(descending=True, stable=True).indices
        features, values = (tensor.float().cpu().numpy() for tensor in (inputs[stage][0], scores))
        stages.append(Stage(int(stage), module.score, features, values, ranking.cpu().numpy(), module.selected))
    return stages


@plain_style()
def draw_stages(path: Path, title: str, stages: Sequence[Stage]) -> None:
    """Draw, for each stage, all scores, and the channels with the highest and with the lowest ones.

    Args:
        path: PNG file to write; it is complete or not there.
        title: Title above the whole figure.
        stages: Enhanced stages, from :func:`enhanced_stages`, one block of rows each.
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
