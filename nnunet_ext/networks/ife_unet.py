"""nnU-Net's U-Nets with instructive feature enhancement of their skip connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import Tensor, nn

from nnunet_ext.networks._checks import check_image, divisors_of
from nnunet_ext.networks.feature_enhancement import InstructiveFeatureEnhancement


class _EnhancedSkips:
    """Enhances the skip connections of some encoder stages; the encoder's own path does not change.

    The first convolution of each matching decoder stage has as many input channels more as are appended, at their end:
    upsampled, raw, selected.
    """

    encoder: Any
    decoder: Any

    def __init__(
        self,
        *args: Any,
        ife_stages: Sequence[int] = (1, 2),
        ife_ratios: Sequence[float] = (0.75, 0.5),
        ife_axes: Sequence[Sequence[int] | None] | None = None,
        ife_score: str = "curvature",
        ife_bins: int = 64,
        ife_step: int = 1,
        **kwargs: Any,
    ) -> None:
        """Build the plain network, then widen the decoder.

        Args:
            *args: Positional arguments of nnU-Net's network of the same name.
            ife_stages: Encoder stages whose skips are enhanced, 0 the highest resolution; not the bottleneck.
            ife_ratios: Share of a stage's channels that is appended, one number for each enhanced stage.
            ife_axes: Spatial axes that the scores look along, one entry for each enhanced stage; ``None`` for all.
            ife_score: Score that ranks the channels, ``"curvature"`` or ``"entropy"``.
            ife_bins: Number of bins along each side of the joint histogram, for the entropy.
            ife_step: Take the entropy of every position of that many along each axis.
            **kwargs: Keyword arguments of nnU-Net's network of the same name.

        Raises:
            ValueError: If stages and ratios do not fit the network.
        """
        super().__init__(*args, **kwargs)
        stages = len(self.encoder.output_channels)
        axes = [None] * len(ife_stages) if ife_axes is None else list(ife_axes)
        if not len(ife_stages) == len(ife_ratios) == len(axes):
            raise ValueError(
                f"one ratio and one entry of axes are needed for each of the stages {list(ife_stages)}, got "
                f"{list(ife_ratios)} and {axes}"
            )
        if len(set(ife_stages)) != len(ife_stages):
            raise ValueError(f"each stage can be enhanced once, got {list(ife_stages)}")
        if any(not 0 <= stage < stages - 1 for stage in ife_stages):
            raise ValueError(
                f"stages must lie between 0 and {stages - 2}, the last one with a skip, got {list(ife_stages)}"
            )
        enhancements = {}
        for stage, ratio, stage_axes in zip(ife_stages, ife_ratios, axes, strict=True):
            enhancement = InstructiveFeatureEnhancement(
                self.encoder.output_channels[stage], ratio, ife_score, stage_axes, ife_bins, ife_step
            )
            widen(self.decoder.stages[stages - 2 - stage].convs[0], enhancement.selected)
            enhancements[str(stage)] = enhancement
        self.enhancements = nn.ModuleDict(enhancements)
        first_weight = next(weight for weight in self.encoder.parameters() if weight.ndim > 1)
        self.input_channels = int(first_weight.shape[1])
        self.divisors = divisors_of(self.encoder.strides)

    def forward(self, x: Tensor) -> Any:
        """Return the logits, one tensor a scale with deep supervision.

        Args:
            x: Image ``(B, input_channels, *S)``; each axis of ``S`` a multiple of its entry of ``divisors``.

        Raises:
            TypeError: If the image is not of a floating-point type.
            ValueError: If the image does not fit; names the shape that would.
        """
        check_image(x, self.input_channels, self.divisors)
        skips = list(self.encoder(x))
        for stage, enhancement in self.enhancements.items():
            skips[int(stage)] = enhancement(skips[int(stage)])
        return self.decoder(skips)

    @property
    def added_input_channels(self) -> dict[str, int]:
        """Number of input channels that the plain network has not, by the weights that have them, at their end."""
        added: dict[str, int] = {}
        stages = len(self.encoder.output_channels)
        for stage, module in self.enhancements.items():
            enhancement: Any = module
            block = f"decoder.stages.{stages - 2 - int(stage)}.convs.0"
            added |= {f"{block}.{name}.weight": enhancement.selected for name in ("conv", "all_modules.0")}
        return added

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> np.int64:
        """Return nnU-Net's measure of the size of all feature maps, the appended channels included."""
        total = super().compute_conv_feature_map_size(input_size)  # type: ignore[misc]
        size = list(input_size)
        for stage, strides in enumerate(self.encoder.strides):
            size = [length // stride for length, stride in zip(size, strides, strict=True)]
            if str(stage) in self.enhancements:
                channels: Any = self.enhancements[str(stage)].selected
                total += np.prod([channels, *size], dtype=np.int64)
        return total


class IFEPlainConvUNet(_EnhancedSkips, PlainConvUNet):
    """nnU-Net's default U-Net with enhanced skip connections.

    Attributes:
        input_channels: Number of image channels.
        divisors: What each axis of an image must be a multiple of.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nnunet_ext.networks.ife_unet import IFEPlainConvUNet
        >>> network = IFEPlainConvUNet(
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
        ...     ife_stages=[0, 1],
        ...     ife_ratios=[0.5, 0.5],
        ... )
        >>> network(torch.randn(1, 1, 16, 24)).shape
        torch.Size([1, 2, 16, 24])
    """


class IFEResidualEncoderUNet(_EnhancedSkips, ResidualEncoderUNet):
    """nnU-Net's residual encoder U-Net with enhanced skip connections.

    Attributes:
        input_channels: Number of image channels.
        divisors: What each axis of an image must be a multiple of.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from nnunet_ext.networks.ife_unet import IFEResidualEncoderUNet
        >>> network = IFEResidualEncoderUNet(
        ...     input_channels=1,
        ...     n_stages=3,
        ...     features_per_stage=[4, 8, 16],
        ...     conv_op=nn.Conv2d,
        ...     kernel_sizes=3,
        ...     strides=[1, 2, 2],
        ...     n_blocks_per_stage=1,
        ...     num_classes=2,
        ...     n_conv_per_stage_decoder=1,
        ...     nonlin=nn.ReLU,
        ...     ife_stages=[1],
        ...     ife_ratios=[0.75],
        ... )
        >>> network.enhancements["1"].selected  # of 8 channels
        6
        >>> network(torch.randn(1, 1, 16, 24)).shape
        torch.Size([1, 2, 16, 24])
    """


def widen(block: Any, channels: int) -> None:
    """Give the convolution of a block more input channels, at their end; the weights are new.

    Args:
        block: A ``ConvDropoutNormReLU`` of dynamic_network_architectures, changed in place.
        channels: Number of input channels to add.
    """
    plain = block.conv
    wider = type(plain)(
        plain.in_channels + channels,
        plain.out_channels,
        plain.kernel_size,
        plain.stride,
        plain.padding,
        plain.dilation,
        bias=plain.bias is not None,
    )
    block.conv, block.input_channels = wider, wider.in_channels
    block.all_modules[0] = wider  # the same module under its second name


def zero_added_channels(state: dict[str, Tensor], added: dict[str, int]) -> dict[str, Tensor]:
    """Return the weights of a plain network with zeros for the input channels that it has not.

    Args:
        state: State dict of the plain network.
        added: Number of input channels to add to each of its weights, ``added_input_channels`` of the enhanced network.
    """
    padded = dict(state)
    for key, channels in added.items():
        if key in state:
            shape = (state[key].shape[0], channels, *state[key].shape[2:])
            padded[key] = torch.cat([state[key], state[key].new_zeros(shape)], 1)
    return padded
