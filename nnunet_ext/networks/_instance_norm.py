"""Instance normalisation that predicts faster on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class _RowwiseOnCPU:
    """Computes instance norms without gradients on CPUs as a group norm of one channel a group.

    That is the same by definition. torch's instance norm runs the code of batch norm, which takes twice as long there;
    of a network that is cut to its shallowest nodes norms are a sixth of the time.
    """

    num_features: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    track_running_stats: bool

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised ``(B, C, *S)``."""
        full_precision = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        if full_precision and not self.track_running_stats and not torch.is_grad_enabled():
            return functional.group_norm(x, self.num_features, self.weight, self.bias, self.eps)
        return super().forward(x)  # type: ignore[misc]


class InstanceNorm2d(_RowwiseOnCPU, nn.InstanceNorm2d):
    """torch's, for images."""


class InstanceNorm3d(_RowwiseOnCPU, nn.InstanceNorm3d):
    """torch's, for volumes."""


def faster_on_cpu(norm_op: type[nn.Module] | None) -> type[nn.Module] | None:
    """Return the class here that stands for one of torch's, or any other class as it is."""
    own: dict[type[nn.Module] | None, type[nn.Module]] = {
        nn.InstanceNorm2d: InstanceNorm2d,
        nn.InstanceNorm3d: InstanceNorm3d,
    }
    return own.get(norm_op, norm_op)
