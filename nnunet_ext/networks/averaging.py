"""Two networks as one, for prediction."""

from __future__ import annotations

from torch import Tensor, nn


class AverageOfNetworks(nn.Module):
    """Averages the logits of networks, as nnU-Net's predictor averages those of several folds.

    Args:
        networks: Networks of the same output, deep supervision off.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: Tensor) -> Tensor:
        """Return ``(B, K, *S)`` logits for ``(B, C, *S)``."""
        total = self.networks[0](image)
        for network in list(self.networks)[1:]:
            total = total + network(image)
        return total / len(self.networks)
