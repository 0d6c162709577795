"""The part ``ANUNet``: the nested attention U-Net, each depth of it supervised at full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from nnunet_ext.trainers._network import NetworkPart
from nnunet_ext.training import architecture, nesting


class ANUNetPart(NetworkPart):
    """Trains ANU-Net in place of the plans' U-Net, with its hybrid loss unless the name has another one.

    What shapes the network is a class attribute, changed in a subclass. It is written into the plans beside the model,
    and inference builds from there.

    Attributes:
        anu_aggregation: How a node joins its inputs: ``"concat"``, or ``"sum"``, which is cheaper.
        anu_gate_ratio: Inner channels of a gate by those of its level.
        anu_depth: Depth of the nest, ``None`` for all that the plans' stages allow.
        anu_output_weights: Weights of the outputs, one a depth, depth 1 first; ``None`` weighs all alike.
        anu_gamma: Exponent of the weight of undecided voxels in the hybrid loss.
        anu_delta: Least distance from 1/2 that the weight of undecided voxels sees.
        anu_checkpointing: Whether to keep only each node's result and compute the rest again for gradients: less
            memory, more time, the same training.
    """

    anu_aggregation = "concat"
    anu_gate_ratio = 0.5
    anu_depth: int | None = None
    network_keys = architecture.NESTED_KEYS
    network_architecture = staticmethod(nesting.nested_architecture)

    def set_defaults(self) -> None:
        """Weigh all outputs alike, and keep activations."""
        super().set_defaults()
        self.anu_output_weights: Sequence[float] | None = None
        self.anu_gamma = 2.0
        self.anu_delta = 0.1
        self.anu_checkpointing = False

    def refuse_unsupported(self) -> None:
        """Refuse weights of outputs that do not fit the depth."""
        super().refuse_unsupported()
        nesting.output_weights(self)

    def build_networks(self) -> None:
        """Build the networks, which may compute activations again."""
        super().build_networks()
        alike = getattr(self, "companion", None) is None  # else network 2 is another one
        names = ("network", "network_2") if alike else ("network",)
        networks = [getattr(self, name) for name in names if hasattr(self, name)]
        nesting.set_checkpointing(networks, self.anu_checkpointing)

    def deep_supervision_scales(self) -> list[list[float]] | None:
        """Return scale 1 for each output: no target is downsampled."""
        if not self.enable_deep_supervision:
            return None
        return [[1.0] * len(self.configuration_manager.patch_size)] * nesting.number_of_outputs(self)

    def output_weights(self) -> tuple[float, ...]:
        """Return the weights of the outputs, the deepest first."""
        return nesting.output_weights(self)

    def default_loss(self) -> nn.Module:
        """Return the hybrid loss."""
        return nesting.hybrid_criterion(self)

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of the nest."""
        names = ("aggregation", "gate_ratio", "output_weights", "gamma", "delta", "checkpointing")
        settings = {f"anu_{name}": getattr(self, f"anu_{name}") for name in names}
        return super().hyperparameters() | settings | {"anu_depth": nesting.number_of_outputs(self)}
