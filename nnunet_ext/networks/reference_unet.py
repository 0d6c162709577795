"""nnU-Net's plain U-Net with windows of CT at its input and the position of the slice before its heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import Tensor, nn

from nnunet_ext.networks._checks import check_image, divisors_of
from nnunet_ext.networks.reference_input import ReferenceInput, with_position


class ReferenceUNet(PlainConvUNet):
    """nnU-Net's default U-Net with windows of CT at its input and the position of the slice before each head.

    Without windows and position it is nnU-Net's network, weight for weight.

    Args:
        input_channels: Number of image channels of the data, the position not counted.
        arguments: Positional arguments of nnU-Net's network of the same kind, from the second one on.
        windows: ``(lower, upper)`` in Hounsfield units of each window; ``None`` or none leaves all channels be.
        hounsfield_channels: Which image channels are CT in Hounsfield units / 1000.
        position: Whether the data have one more channel, the position of the slice.
        keywords: Keyword arguments of nnU-Net's network.

    Attributes:
        input_channels: Number of channels that the network is given, the position counted.
        divisors: What each axis of an image must be a multiple of.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nnunet_ext.networks import ReferenceUNet
        >>> network = ReferenceUNet(
        ...     input_channels=1,
        ...     n_stages=3,
        ...     features_per_stage=[4, 8, 16],
        ...     conv_op=nn.Conv2d,
        ...     kernel_sizes=3,
        ...     strides=[1, 2, 2],
        ...     n_conv_per_stage=1,
        ...     num_classes=2,
        ...     n_conv_per_stage_decoder=1,
        ...     nonlin=nn.ReLU,
        ...     windows=[(-150, 250), (-1350, 225)],
        ...     hounsfield_channels=[0],
        ...     position=True,
        ... )
        >>> network.input_channels, network(torch.randn(1, 2, 16, 24)).shape
        (2, torch.Size([1, 2, 16, 24]))
    """

    def __init__(
        self,
        input_channels: int,
        *arguments: Any,
        windows: Sequence[Sequence[float]] | None = None,
        hounsfield_channels: Sequence[int] = (),
        position: bool = False,
        **keywords: Any,
    ) -> None:
        reference_input = ReferenceInput(input_channels, windows, hounsfield_channels, position)
        super().__init__(reference_input.output_channels, *arguments, **keywords)
        self.reference_input = reference_input
        if position:
            self.decoder.seg_layers = nn.ModuleList(_wider(layer) for layer in self.decoder.seg_layers)
        self.input_channels = reference_input.input_channels
        self.divisors = divisors_of(self.encoder.strides)

    def forward(self, x: Tensor) -> Any:
        """Return the logits, one tensor a scale with deep supervision.

        Args:
            x: Image ``(B, input_channels, *S)``, the position last; each axis of ``S`` a multiple of its divisor.

        Raises:
            TypeError: If the image is not of a floating-point type.
            ValueError: If the image does not fit; names the shape that would.
        """
        check_image(x, self.input_channels, self.divisors)
        image, position = self.reference_input(x)
        skips = self.encoder(image)
        return self.decoder(skips) if position is None else self._decoded(skips, position)

    def _decoded(self, skips: Sequence[Tensor], position: Tensor) -> Any:
        """Do what nnU-Net's decoder does, with the position before each head."""
        features, outputs = skips[-1], []
        decoder = self.decoder
        for number, (up, stage, head) in enumerate(
            zip(decoder.transpconvs, decoder.stages, decoder.seg_layers, strict=True)
        ):
            features = stage(torch.cat((up(features), skips[-number - 2]), 1))
            if decoder.deep_supervision or number == len(decoder.stages) - 1:
                outputs.append(head(with_position(features, position)))
        return outputs[::-1] if decoder.deep_supervision else outputs[-1]


def _wider(head: Any) -> nn.Module:
    """Return a head with one input channel more."""
    wider: nn.Module = type(head)(head.in_channels + 1, head.out_channels, head.kernel_size, bias=head.bias is not None)
    return wider


def channels_given(network: nn.Module, image_channels: int) -> int:
    """Return how many channels a network is given: those of the image, and the position where it takes one.

    Args:
        network: A network of nnU-Net or of ours, not compiled or wrapped.
        image_channels: Number of image channels of the data, as nnU-Net counts them.
    """
    given = getattr(network, "input_channels", image_channels)
    return given if isinstance(given, int) else image_channels
