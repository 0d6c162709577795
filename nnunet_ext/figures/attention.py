"""Coefficients of the attention gates of an ANU-Net in one case, as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from nnunet_ext.networks import AttentionGate
from nnunet_ext.training.architecture import NESTED


@dataclass(frozen=True)
class GateMap:
    """Attention coefficients of one gate.

    Attributes:
        level: Level i of the gate's node X(i, j), 0 at the highest resolution.
        column: Column j of the gate's node X(i, j).
        skip: Column k of the feature map X(i, k) that the gate scales.
        alpha: Attention coefficients ``(*S)``, 0 to 1.
    """

    level: int
    column: int
    skip: int
    alpha: np.ndarray


def load_network(
    model: Path, plans: dict[str, Any], dataset_json: dict[str, Any], checkpoint: Path
) -> tuple[nn.Module, middle_patch.DrawnModel]:
    """Build a trained network from the plans beside it; see :func:`~nnunet_ext.figures.middle_patch.load_network`.

    Raises:
        ValueError: If the network has no attention gates.
    """
    reason = "has no attention gates; give one trained with ANUNet in its name"
    return middle_patch.load_network(model, plans, dataset_json, checkpoint, (NESTED,), reason)


@torch.no_grad()
def gate_maps(
    network: nn.Module, model: Model, images: tuple[str, ...], device: torch.device
) -> tuple[np.ndarray, list[GateMap]]:
    """Run the network on the patch in the middle of a case, and return the patch and the coefficients of each gate.

    Args:
        network: Network from :func:`load_network`, on any device.
        model: Plans of the network from :func:`load_network`.
        images: Image files of the case, one a channel.
        device: Device to run the network on.

    Returns:
        First channel of the patch ``(*S)``, and the maps in the order of computation.
    """
    data = middle_patch.read_middle_patch(model, images)
    maps: list[GateMap] = []

    def make_hook(name: str) -> Callable[[AttentionGate, tuple[Tensor, ...], Tensor], None]:
        level, column, skip = map(int, name.split("_"))

        def record_coefficients(gate: AttentionGate, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            alpha = gate.coefficients(*inputs)[0, 0]
            maps.append(GateMap(level, column, skip, alpha.float().cpu().numpy()))

        return record_coefficients

    decoder: Any = network.decoder
    hooks = [gate.register_forward_hook(make_hook(name)) for name, gate in decoder.gates.items()]
    try:
        network.to(device)(data[None].to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return data[0].numpy(), maps


def middle_slice(volume: np.ndarray) -> np.ndarray:
    """Return a 2D array, or the slice in the middle of the first axis of a 3D one."""
    return volume[len(volume) // 2] if volume.ndim == 3 else volume


@plain_style()
def draw_gates(path: Path, title: str, image: np.ndarray, maps: Sequence[GateMap], level: int = 0) -> None:
    """Draw the maps of the gates of one level over the image, one row a node.

    Args:
        path: PNG file to write; it is complete or not there.
        title: Title above the whole figure.
        image: First channel of the patch, ``(*S)``.
        maps: Maps of all gates, from :func:`gate_maps`.
        level: Level i whose gates are drawn, 0 at the highest resolution.

    Raises:
        ValueError: If the network has no gate at this level.
    """
    chosen = [gate for gate in maps if gate.level == level]
    if not chosen:
        levels = sorted({gate.level for gate in maps})
        raise ValueError(f"there are gates at the levels {levels}, got {level}; pass one of them")
    columns = max(gate.column for gate in chosen)
    grey = middle_slice(image)
    height = 2.6 * grey.shape[0] / grey.shape[1]
    figure = Figure(
        figsize=(2.6 * (columns + 1) + 0.8, height * columns + 0.9), layout="constrained", facecolor="white"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(columns, columns + 1, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    extent = (0, grey.shape[1], grey.shape[0], 0)
    low, high = np.percentile(grey, [1, 99])
    heat_map = None
    for gate in chosen:
        panel = axes[gate.column - 1, gate.skip + 1]
        panel.imshow(grey, cmap="gray", vmin=low, vmax=high, extent=extent)
        alpha = middle_slice(gate.alpha)
        heat_map = panel.imshow(
            alpha, cmap="inferno", vmin=0, vmax=1, alpha=0.6, extent=extent, interpolation="nearest"
        )
        panel.set_title(f"X({level},{gate.skip})  {alpha.min():.2f} to {alpha.max():.2f}", fontsize=8)
    for row in range(columns):
        axes[row, 0].imshow(grey, cmap="gray", vmin=low, vmax=high, extent=extent)
        axes[row, 0].set_title(f"into X({level},{row + 1})", fontsize=9)
    if heat_map is not None:
        figure.colorbar(heat_map, ax=axes, shrink=0.6, label="attention coefficient")
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
