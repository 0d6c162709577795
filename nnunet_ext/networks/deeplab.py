"""DeepLabV3+: any encoder of segmentation-models-pytorch, its decoder, and the position of the slice, in 2D."""

from __future__ import annotations

from collections.abc import Sequence

import segmentation_models_pytorch as smp
from torch import Tensor, nn

from nnunet_ext.networks._checks import check_image
from nnunet_ext.networks._shapes import built, conv_feature_map_size, leave_out_of_training
from nnunet_ext.networks.reference_input import ReferenceInput, with_position

STRIDE = 16  # of the encoder's coarsest map, whatever the encoder
_HEAD_STRIDE = 4  # of the features that the head reads


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ of segmentation-models-pytorch, never with weights from the net.

    Chen et al., "Encoder-decoder with atrous separable convolution for semantic image segmentation", ECCV 2018. It has
    one output: ``decoder.deep_supervision`` may be set as nnU-Net sets it, and changes nothing.

    Args:
        input_channels: Number of image channels, the position of the slice not counted.
        num_classes: Number of channels of the output.
        deep_supervision: Taken as nnU-Net gives it; there is one output all the same.
        windows: As :class:`ReferenceInput` takes them.
        hounsfield_channels: As :class:`ReferenceInput` takes them.
        position: Whether images have one more channel, the position of the slice, which joins the head's features.
        encoder_name: Of segmentation-models-pytorch; ``tu-`` and a name for an encoder of timm.
        decoder_channels: Channels of the decoder.
        atrous_rates: Dilations of the pyramid's three convolutions.
        dropout: Probability after the pyramid.

    Attributes:
        input_channels: Channels of what the network is given, the position counted.
        divisors: What each axis of an image must be a multiple of.

    Raises:
        ValueError: If there is no such encoder, or it cannot be dilated.

    Example:
        >>> import torch
        >>> from nnunet_ext.networks import DeepLabV3Plus
        >>> network = DeepLabV3Plus(1, 2, encoder_name="tu-test_efficientnet", decoder_channels=8)
        >>> tuple(network(torch.randn(2, 1, 32, 48)).shape)
        (2, 2, 32, 48)
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        windows: Sequence[Sequence[float]] | None = None,
        hounsfield_channels: Sequence[int] = (),
        position: bool = False,
        encoder_name: str = "efficientnet-b3",
        decoder_channels: int = 256,
        atrous_rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.reference_input = ReferenceInput(input_channels, windows, hounsfield_channels, position)
        self.input_channels, self.divisors = self.reference_input.input_channels, (STRIDE, STRIDE)
        try:
            whole = built(
                lambda: smp.DeepLabV3Plus(
                    encoder_name,
                    encoder_weights=None,
                    encoder_output_stride=STRIDE,
                    in_channels=self.reference_input.output_channels,
                    classes=num_classes,
                    decoder_channels=decoder_channels,
                    decoder_atrous_rates=tuple(atrous_rates),
                    decoder_aspp_dropout=dropout,
                )
            )
        except (KeyError, RuntimeError, ValueError) as error:  # what smp and timm raise for names they do not know
            raise ValueError(
                f"segmentation-models-pytorch makes no DeepLabV3+ of the encoder {encoder_name!r} ({error}); name "
                "another, e.g. efficientnet-b3, resnet34, or tu- and a convolutional network of timm"
            ) from error
        self.encoder = whole.encoder
        head = whole.segmentation_head[0]
        if position:
            head = nn.Conv2d(decoder_channels + 1, num_classes, 1)
            smp.base.initialization.initialize_head(head)
        self.decoder = DeepLabDecoder(whole.decoder, head, deep_supervision)
        # EfficientNets of this library keep a last convolution that its decoders do not read
        leave_out_of_training(self, self.input_channels, (4 * STRIDE, 4 * STRIDE))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, K, H, W)``.

        Args:
            image: ``(B, C, H, W)``, H and W multiples of 16, C as ``input_channels`` of the network.

        Raises:
            TypeError: If the image is not of a floating-point type.
            ValueError: If it does not fit.
        """
        check_image(image, self.input_channels, self.divisors)
        image, position = self.reference_input(image)
        logits: Tensor = self.decoder(self.encoder(image), position)
        return logits

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Return the values that convolutions make of one image of size ``(H, W)``, as nnU-Net's planners count."""
        return conv_feature_map_size(self, self.input_channels, input_size)


class DeepLabDecoder(nn.Module):
    """The pyramid and the joined features, the head at 1/4, and its logits upsampled.

    Args:
        features: Decoder of segmentation-models-pytorch.
        head: Makes logits of its features, and of the position where there is one.
        deep_supervision: As nnU-Net switches it, without effect.

    Attributes:
        seg_layers: The head alone, where nnU-Net looks for heads.
    """

    def __init__(self, features: nn.Module, head: nn.Module, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.features = features
        self.seg_layers = nn.ModuleList([head])
        self.upsample = nn.Upsample(scale_factor=_HEAD_STRIDE, mode="bilinear", align_corners=True)

    def forward(self, maps: list[Tensor], position: Tensor | None = None) -> Tensor:
        """Return logits.

        Args:
            maps: The encoder's, highest resolution first.
            position: ``(B, 1)``, where the head takes it.
        """
        features = with_position(self.features(maps), position)
        logits: Tensor = self.upsample(self.seg_layers[0](features))
        return logits
