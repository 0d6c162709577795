"""The attention gate of ANU-Net."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.networks._checks import check_features, check_gating


class AttentionGate(nn.Module):
    """Scale a feature map at each position by a coefficient that a coarser feature map decides.

    Li et al., "ANU-Net: Attention-based nested U-Net to exploit full resolution features for medical image
    segmentation", Computers & Graphics 2020, Eq. 2 and 3::

        q = ReLU(N(W_f f) + N(W_g g)),  alpha = sigmoid(W_theta q),  result = alpha f

    with 1x1(x1) convolutions W and one coefficient for all channels. The paper also normalises W_theta q; over a single
    channel an instance norm would keep the gate from ever closing as a whole, so that is off unless asked for.

    Args:
        channels: Number of channels of the features f and of the gating map g.
        inner_channels: Number of channels of q; ``None`` is half of ``channels``, at least 1.
        conv_op: Class of the convolutions, ``nn.Conv2d`` or ``nn.Conv3d``.
        norm_op: Class of the normalisation N; ``None`` for none.
        norm_op_kwargs: Keyword arguments of each normalisation beside its number of channels.
        norm_on_coefficient: Normalise W_theta q as well.

    Raises:
        ValueError: If there are no channels.

    Example:
        >>> import torch
        >>> from nnunet_ext.networks import AttentionGate
        >>> gate = AttentionGate(channels=8)
        >>> features, gating = torch.randn(2, 8, 16, 16), torch.randn(2, 8, 16, 16)
        >>> gate(features, gating).shape
        torch.Size([2, 8, 16, 16])
        >>> gate.coefficients(features, gating).shape  # one for all channels
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int | None = None,
        conv_op: type[nn.Module] = nn.Conv2d,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: dict[str, Any] | None = None,
        norm_on_coefficient: bool = False,
    ) -> None:
        super().__init__()
        inner = max(1, channels // 2) if inner_channels is None else inner_channels
        if channels < 1 or inner < 1:
            raise ValueError(f"channels and inner_channels must be at least 1, got {channels} and {inner}")

        def unit(inputs: int, outputs: int, norm: bool) -> nn.Module:
            layers = [conv_op(inputs, outputs, 1)]  # type: ignore[call-arg]
            if norm and norm_op is not None:
                layers.append(norm_op(outputs, **(norm_op_kwargs or {})))
            return nn.Sequential(*layers)

        self.features = unit(channels, inner, True)
        self.gating = unit(channels, inner, True)
        self.coefficient = unit(inner, 1, norm_on_coefficient)
        self.channels, self.inner_channels = channels, inner
        self.dimensions = next(self.features.parameters()).ndim - 2

    def coefficients(self, features: Tensor, gating: Tensor) -> Tensor:
        """Return alpha ``(B, 1, *S)``, 0 to 1; arguments and errors are those of :meth:`forward`."""
        if not torch.jit.is_scripting():
            check_features(features, self.channels, self.dimensions)
            check_gating(features, gating)
        return torch.sigmoid(self.coefficient(torch.relu_(self.features(features) + self.gating(gating))))

    def forward(self, features: Tensor, gating: Tensor) -> Tensor:
        """Return ``alpha * features``.

        Args:
            features: The map f to be scaled, ``(B, C, *S)``.
            gating: The map g that decides, ``(B, C, *S)``.

        Raises:
            ValueError: If the shapes do not fit each other or the number of channels.
        """
        return features * self.coefficients(features, gating)
