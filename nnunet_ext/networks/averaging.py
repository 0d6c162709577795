"""Two networks as one, for prediction."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class AverageOfNetworks(nn.Module):
    """Averages the probabilities of networks, which may be of different kinds, and gives them as logits.

    The softmax of what comes out is the mean of the networks' softmax; for regions that is said of the sigmoid.

    Args:
        networks: Networks of the same output, deep supervision off.
        regions: Whether the channels are regions, each there or not, instead of exclusive classes.

    Attributes:
        apart: Whether the networks' own logits follow the average, as further channels.
    """

    def __init__(self, *networks: nn.Module, regions: bool = False) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.regions = regions
        self.apart = False

    def forward(self, image: Tensor) -> Tensor:
        """Return ``(B, K, *S)`` logits for ``(B, C, *S)``; ``(B, K + N K, *S)`` where those of N networks follow."""
        outputs = [network(image) for network in self.networks]
        average = outputs[0] if len(outputs) == 1 else mean_logits(outputs, self.regions)
        return torch.cat([average, *outputs], 1) if self.apart else average


def mean_logits(outputs: list[Tensor], regions: bool) -> Tensor:
    """Return logits of the mean probabilities of several networks, in float32 where they are given in 16 bit.

    Args:
        outputs: Logits ``(B, K, *S)`` of each network.
        regions: Whether probabilities are sigmoids instead of softmaxes.
    """
    logits = [output.float() if output.dtype in (torch.float16, torch.bfloat16) else output for output in outputs]
    if regions:
        present, absent = (
            torch.stack([functional.logsigmoid(sign * one) for one in logits]).logsumexp(0) for sign in (1, -1)
        )
        return present - absent
    return torch.stack([one.log_softmax(1) for one in logits]).logsumexp(0) - math.log(len(logits))
