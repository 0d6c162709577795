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
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_ext.data.fingerprint_figure import save_figure
from nnunet_ext.inference.case import Model, prepare
from nnunet_ext.inference.safe_load import load_checkpoint
from nnunet_ext.inference.spacing import PlansSpacing
from nnunet_ext.training.enhancement import NETWORKS

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
    """Build a trained network from the plans beside it.

    Args:
        model: Model folder, for messages.
        plans: Its plans.
        dataset_json: Its dataset.json.
        checkpoint: File of weights.

    Raises:
        ValueError: If the network has no instructive feature enhancement.
    """
    content = load_checkpoint(checkpoint)
    manager = PlansManager(plans)
    configuration = manager.get_configuration(content["init_args"]["configuration"])
    if configuration.network_arch_class_name not in NETWORKS.values():
        raise ValueError(
            f"the model {model} was trained by {content['trainer_name']} and has no instructive feature enhancement; "
            "give one trained with IFECurvature or IFEEntropy in its name"
        )
    if configuration.previous_stage_name is not None:
        raise ValueError(f"the model {model} is the second stage of a cascade; give one of a single stage")
    labels = manager.get_label_manager(dataset_json)
    case_model = Model(manager, configuration, dataset_json)
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        case_model.channels,
        labels.num_segmentation_heads,
        allow_init=False,
        deep_supervision=False,
    )
    network.load_state_dict(content["network_weights"])
    return network.eval(), case_model


@torch.no_grad()
def look(network: nn.Module, model: Model, images: tuple[str, ...], device: torch.device) -> list[Stage]:
    """Run the network on the patch in the middle of a case, and return what each enhanced stage saw.

    Args:
        network: Of :func:`load_network`.
        model: The same.
        images: Files, one a channel.
        device: Where to run.
    """
    data = torch.from_numpy(prepare(images, None, PlansSpacing(), model).data)
    size = model.configuration.patch_size
    if len(size) == 2:
        data = data[:, data.shape[1] // 2]
    for axis, length in enumerate(size, 1):
        missing = max(0, length - data.shape[axis])
        padding = [0] * (2 * (data.ndim - axis - 1)) + [missing // 2, missing - missing // 2]
        data = nn.functional.pad(data, padding)
        data = data.narrow(axis, (data.shape[axis] - length) // 2, length)
    seen: dict[str, Tensor] = {}
    enhancements: Any = network.enhancements
    hooks = [
        module.register_forward_hook(lambda _, given, __, stage=stage: seen.update({stage: given[0]}))
        for stage, module in enhancements.items()
    ]
    network.to(device)(data[None].to(device))
    for hook in hooks:
        hook.remove()
    stages = []
    for stage, module in enhancements.items():
        scores = module.scores(seen[stage])[0]
        ranking = scores.sort(descending=True, stable=True).indices
        features, values = (one.float().cpu().numpy() for one in (seen[stage][0], scores))
        stages.append(Stage(int(stage), module.score, features, values, ranking.cpu().numpy(), module.selected))
    return stages


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
