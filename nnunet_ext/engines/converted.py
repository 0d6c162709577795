"""Converted networks, tried before they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_ext.engines.conversion import convert, copy_for_cpu


class ConvertedNetworks:
    """A network in OpenVINO's form, with any of its weights.

    Args:
        network: Network of one output; it is left as it is.
        window: Channels and axes of a window, ``(C, *P)``.
        precision: What it will be computed in, ``"float32"`` or ``"bfloat16"``.
        folder: Where they are kept; ``None`` for the user's cache.
    """

    def __init__(self, network: nn.Module, window: Sequence[int], precision: str, folder: Path | None) -> None:
        self.network, self.window, self.precision, self.folder = network, tuple(window), precision, folder

    def model(self, weights: Mapping[str, Any] | None = None) -> Any:
        """Return OpenVINO's model with some weights.

        Args:
            weights: State of the network; ``None`` for its own.

        Raises:
            ConversionError: If the network cannot be converted.
        """
        return convert(copy_for_cpu(self.network, weights), self.window)
