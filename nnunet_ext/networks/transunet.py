"""TransUNet: a convolutional encoder, a transformer on its coarsest map, and a decoder with skips, in 2D."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers import GroupNormAct, HybridEmbed, StdConv2dSame, resample_abs_pos_embed
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from nnunet_ext.networks._checks import check_image
from nnunet_ext.networks._instance_norm import InstanceNorm2d
from nnunet_ext.networks._shapes import built, conv_feature_map_size
from nnunet_ext.networks.reference_input import ReferenceInput, with_position

STRIDE = 16  # of the coarsest map
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": partial(InstanceNorm2d, affine=True),
}


class TransUNet(nn.Module):
    """TransUNet with the hybrid encoder R50-ViT-B/16, any part of which can be made narrower.

    Chen et al., "TransUNet: Transformers make strong encoders for medical image segmentation", 2021, section 3. The
    encoder is timm's: a ResNetV2 with weight-standardised convolutions and group normalisation, whose map at 1/16 is
    embedded, given a learned position, and passed through the transformer. The decoder upsamples by 2 four times; its
    first three blocks join the encoder's maps at 1/8, 1/4 and 1/2. Image channels, or the windows of CT, go into the
    first convolution as they are: a single one is not repeated to three.

    Args:
        input_channels: Number of image channels, the position of the slice not counted.
        num_classes: Number of channels of each output.
        patch_size: Size ``(H, W)`` of the images that the position table is made for, multiples of 16; it is
            interpolated for others.
        deep_supervision: Return the outputs at full size, 1/2, 1/4 and 1/8 instead of the first one.
        windows: As :class:`ReferenceInput` takes them.
        hounsfield_channels: As :class:`ReferenceInput` takes them.
        position: Whether images have one more channel, the position of the slice, which joins each head's features.
        stem_channels: Channels at 1/2.
        channels: Channels of the encoder's stages at 1/4, 1/8 and 1/16, multiples of four times ``groups``.
        blocks: Number of residual blocks of each stage.
        groups: Of the encoder's group normalisation.
        embed_dim: Channels of the transformer.
        depth: Number of its layers.
        num_heads: Heads of each.
        mlp_ratio: Channels inside each layer's perceptron, by those of the transformer.
        dropout: Probability in the transformer, after the positions and in each layer's projections.
        bridge_channels: Channels between transformer and decoder.
        decoder_channels: Channels of the decoder's blocks, at 1/8, 1/4, 1/2 and full size.
        norm: Of the decoder: ``"batch"`` as in the paper, or ``"instance"`` for small batches.

    Attributes:
        input_channels: Channels of what the network is given, the position counted.
        divisors: What each axis of an image must be a multiple of.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_ext.networks import TransUNet
        >>> narrow = {"stem_channels": 8, "channels": (16, 16, 32), "blocks": (1, 1, 1), "groups": 4, "embed_dim": 24}
        >>> narrow |= {"depth": 1, "num_heads": 2, "bridge_channels": 16, "decoder_channels": (8, 8, 8, 8)}
        >>> network = TransUNet(1, 2, (32, 48), deep_supervision=True, **narrow)
        >>> [tuple(logits.shape) for logits in network(torch.randn(2, 1, 32, 48))]
        [(2, 2, 32, 48), (2, 2, 16, 24), (2, 2, 8, 12), (2, 2, 4, 6)]
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        patch_size: Sequence[int],
        deep_supervision: bool = False,
        windows: Sequence[Sequence[float]] | None = None,
        hounsfield_channels: Sequence[int] = (),
        position: bool = False,
        stem_channels: int = 64,
        channels: Sequence[int] = (256, 512, 1024),
        blocks: Sequence[int] = (3, 4, 9),
        groups: int = 32,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        bridge_channels: int = 512,
        decoder_channels: Sequence[int] = (256, 128, 64, 16),
        norm: str = "batch",
    ) -> None:
        super().__init__()
        patch_size = tuple(int(size) for size in patch_size)
        _check_patch(patch_size, norm)
        _check_widths(channels, blocks, groups, embed_dim, num_heads, decoder_channels)
        self.reference_input = ReferenceInput(input_channels, windows, hounsfield_channels, position)
        self.input_channels, self.divisors = self.reference_input.input_channels, (STRIDE, STRIDE)
        backbone = partial(
            ResNetV2,
            layers=list(blocks),
            channels=tuple(channels),
            stem_chs=stem_channels,
            num_classes=0,
            global_pool="",
            in_chans=self.reference_input.output_channels,
            preact=False,
            stem_type="same",
            conv_layer=partial(StdConv2dSame, eps=1e-8),
            norm_layer=partial(GroupNormAct, num_groups=groups, eps=1e-6),
        )
        widths = (channels[-1], embed_dim, depth, num_heads, mlp_ratio, dropout)
        self.encoder = built(lambda: _transformer(backbone(), patch_size, *widths))
        skips = (channels[1], channels[0], stem_channels, 0)
        self.decoder = TransUNetDecoder(
            embed_dim, bridge_channels, skips, decoder_channels, num_classes, norm, deep_supervision, position
        )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Return logits.

        Args:
            image: ``(B, C, H, W)``, H and W multiples of 16, C as ``input_channels`` of the network.

        Returns:
            ``(B, K, H, W)``; with deep supervision a list of these at full size, 1/2, 1/4 and 1/8.

        Raises:
            TypeError: If the image is not of a floating-point type.
            ValueError: If it does not fit.
        """
        check_image(image, self.input_channels, self.divisors)
        image, position = self.reference_input(image)
        coarsest, skips = self.encode(image)
        result: Tensor | list[Tensor] = self.decoder(coarsest, skips, position)
        return result

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the transformer's map ``(B, E, H/16, W/16)``, and the maps at 1/8, 1/4 and 1/2.

        Args:
            image: What the input layer gives, ``(B, C, H, W)``.
        """
        encoder = self.encoder
        embedding = cast(HybridEmbed, encoder.patch_embed)
        backbone: Any = embedding.backbone
        half = backbone.stem.norm(backbone.stem.conv(image))
        quarter = backbone.stages[0](backbone.stem.pool(half))
        eighth = backbone.stages[1](quarter)
        tokens = embedding.proj(backbone.stages[2](eighth))
        size = tokens.shape[-2:]
        tokens = encoder.pos_drop(tokens.flatten(2).transpose(1, 2) + self._positions(size))
        tokens = encoder.norm(encoder.blocks(tokens))
        return tokens.transpose(1, 2).unflatten(2, size), [eighth, quarter, half]

    def _positions(self, size: Sequence[int]) -> Tensor:
        """Return the table of positions ``(1, h * w, E)`` for a map of another size, by bicubic interpolation."""
        table, grid = cast(Tensor, self.encoder.pos_embed), self.encoder.patch_embed.grid_size
        if tuple(size) == tuple(grid):
            return table
        resized: Tensor = resample_abs_pos_embed(table, list(size), list(grid), num_prefix_tokens=0)
        return resized

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Return the values that convolutions make of one image of size ``(H, W)``, as nnU-Net's planners count."""
        return conv_feature_map_size(self, self.input_channels, input_size)


class _Embedding(HybridEmbed):
    """timm's, told how many channels its backbone has, which it would find out by a pass through it."""

    def __init__(self, feature_dim: int, **arguments: Any) -> None:
        self._feature_dim = feature_dim
        super().__init__(**arguments)

    def _init_backbone(self, **arguments: Any) -> Any:  # type: ignore[override]
        return super()._init_backbone(**arguments | {"feature_dim": self._feature_dim})


def _transformer(
    backbone: nn.Module,
    patch_size: tuple[int, ...],
    feature_dim: int,
    embed_dim: int,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    dropout: float,
) -> VisionTransformer:
    # sizes are told, so that a network can be built where there is nothing to compute with (torch's meta device)
    embedding = partial(
        _Embedding,
        backbone=backbone,
        feature_dim=feature_dim,
        feature_size=tuple(size // STRIDE for size in patch_size),
        feature_ratio=STRIDE,
        strict_img_size=False,
    )
    return VisionTransformer(
        img_size=cast("tuple[int, int]", patch_size),
        patch_size=1,
        num_classes=0,
        global_pool="",
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        class_token=False,
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
        embed_layer=embedding,
    )


class TransUNetDecoder(nn.Module):
    """Upsamples by 2 four times and joins skips.

    Args:
        embed_dim: Channels of the transformer's map.
        bridge_channels: Channels between transformer and decoder.
        skip_channels: Of the map that each block joins, 0 for none.
        channels: Of each block.
        num_classes: Number of channels of each output.
        norm: ``"batch"`` or ``"instance"``.
        deep_supervision: Return an output of each block, the last one first.
        position: Whether the heads take the position of the slice as one more channel.

    Attributes:
        deep_supervision: May be changed.
        seg_layers: Heads, of the last block first.
    """

    def __init__(
        self,
        embed_dim: int,
        bridge_channels: int,
        skip_channels: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        norm: str,
        deep_supervision: bool,
        position: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.bridge = _convolution(embed_dim, bridge_channels, norm)
        before = (bridge_channels, *channels[:-1])
        self.blocks = nn.ModuleList(
            nn.Sequential(_convolution(below + skip, own, norm), _convolution(own, own, norm))
            for below, skip, own in zip(before, skip_channels, channels, strict=True)
        )
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.seg_layers = nn.ModuleList(
            nn.Conv2d(own + int(position), num_classes, 3, padding=1) for own in reversed(channels)
        )

    def forward(
        self, coarsest: Tensor, skips: Sequence[Tensor], position: Tensor | None = None
    ) -> Tensor | list[Tensor]:
        """Return logits.

        Args:
            coarsest: ``(B, E, H/16, W/16)``.
            skips: At 1/8, 1/4 and 1/2.
            position: ``(B, 1)``, where the heads take it.
        """
        features, maps = self.bridge(coarsest), []
        for number, block in enumerate(self.blocks):
            features = self.upsample(features)
            if number < len(skips):
                features = torch.cat([features, skips[number]], 1)
            features = block(features)
            maps.append(features)
        if not self.deep_supervision:
            result: Tensor = self.seg_layers[0](with_position(features, position))
            return result
        return [head(with_position(own, position)) for head, own in zip(self.seg_layers, reversed(maps), strict=True)]


def _convolution(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), NORMS[norm](outputs), nn.ReLU(inplace=True)
    )


def _check_patch(patch_size: tuple[int, ...], norm: str) -> None:
    if len(patch_size) != 2:
        raise ValueError(f"patch_size must have two axes, as TransUNet is a 2D network, got {list(patch_size)}")
    if any(size < STRIDE or size % STRIDE for size in patch_size):
        fitting = [max(1, -(-size // STRIDE)) * STRIDE for size in patch_size]
        raise ValueError(f"patch_size must be multiples of {STRIDE}, got {list(patch_size)}; the next are {fitting}")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if norm == "instance" and patch_size == (STRIDE, STRIDE):
        raise ValueError(
            f"norm 'instance' needs more than one voxel at 1/{STRIDE}, of which a patch of {list(patch_size)} has one; "
            "take a larger patch, or norm 'batch'"
        )


def _check_widths(
    channels: Sequence[int],
    blocks: Sequence[int],
    groups: int,
    embed_dim: int,
    num_heads: int,
    decoder_channels: Sequence[int],
) -> None:
    lengths = {"channels": (channels, 3), "blocks": (blocks, 3), "decoder_channels": (decoder_channels, 4)}
    for name, (values, length) in lengths.items():
        if len(values) != length:
            raise ValueError(f"{name} must have {length} entries, got {list(values)}")
    if any(value % (4 * groups) for value in channels):
        raise ValueError(f"channels must be multiples of 4 x {groups} groups, got {list(channels)}")
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim must be a multiple of the {num_heads} heads, got {embed_dim}")
