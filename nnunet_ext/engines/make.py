"""Engines from the choice of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from nnunet_ext.engines.engine import COMPILE, OPENVINO, Engine, EngineChoice
from nnunet_ext.engines.openvino_engine import OpenVinoEngine
from nnunet_ext.engines.torch_engine import TorchEngine


def make_engine(
    choice: EngineChoice,
    network: nn.Module,
    window: Sequence[int],
    device: torch.device,
    folder: Path | None = None,
    batch: int = 1,
) -> Engine:
    """Return an engine, ready to run.

    Args:
        choice: Which one; it must fit the device.
        network: Network of one output, with its weights, deep supervision off. The engine ``"torch"`` runs this very
            network, the others a copy.
        window: Channels and axes of each window, ``(C, *P)``.
        device: Where it runs, and where windows lie.
        folder: Where converted networks are kept, such as the model's; ``None`` for the user's cache.
        batch: Most windows at a time; a compiled network is compiled for it here.

    Raises:
        ConversionError: If the network cannot be converted or compiled; torch can run it.
    """
    if choice.engine == OPENVINO:
        return OpenVinoEngine(network, window, choice.precision, folder)
    engine = TorchEngine(network, device, choice.precision, choice.engine == COMPILE)
    if choice.engine == COMPILE:
        for _ in engine.run([torch.zeros((batch, *window), device=device)]):
            pass
    return engine
