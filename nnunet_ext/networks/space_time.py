"""A space-time memory network, which carries masks of slices to other slices by comparing them, in 2D."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.networks._checks import becomes_graph, check_image
from nnunet_ext.networks._shapes import built, conv_feature_map_size
from nnunet_ext.networks.memory_reading import aggregate, read
from nnunet_ext.networks.reference_input import ReferenceInput
from nnunet_ext.networks.transunet import NORMS

STRIDE = 16  # of keys and values
FRAMES = 3  # of a sample in training
_OBJECTS = 2  # of a sample in training, by which the planners' count goes


class SliceFeatures(NamedTuple):
    """What a network makes of images alone, whatever objects are sought in them.

    Attributes:
        image: ``(B, C, H, W)``, as the encoders see it.
        key: ``(B, CK, h, w)`` at 1/16, to be compared with keys in the memory, and to be one of them.
        value: ``(B, V, h, w)`` at 1/16, for the decoder.
        f16: ``(B, ., h, w)``, the encoder's map at 1/16.
        f8: The one at 1/8.
        f4: The one at 1/4.
    """

    image: Tensor
    key: Tensor
    value: Tensor
    f16: Tensor
    f8: Tensor
    f4: Tensor


class SpaceTimeNetwork(nn.Module):
    """A key encoder, a value encoder of image and masks, and a decoder of what was read from the memory between them.

    Pham et al., "Semi-supervised organ segmentation with mask propagation refinement and uncertainty estimation for CT
    volume labeling", 2022, section on the propagation module, which is the network of Cheng et al. (as in
    :func:`~nnunet_ext.networks.memory_reading.similarity`). Encoders are timm's ResNet-50 and ResNet-18 without their
    last stage, of random weights. Keys know nothing of objects, so that one comparison serves all; values are those of
    one object each. At full width and with three image channels it has 54,398,529 parameters, the paper's 54,416,065
    less the biases of convolutions before norms, 15,296 of the key encoder and 2,240 of the value encoder.

    Args:
        input_channels: Number of image channels, the position of the slice not counted.
        num_classes: Taken as nnU-Net gives it; objects are found by their masks, any number of them.
        deep_supervision: Taken as nnU-Net gives it; there is one output all the same.
        windows: As :class:`ReferenceInput` takes them.
        hounsfield_channels: As :class:`ReferenceInput` takes them.
        position: Whether images have one more channel, the position of the slice, which is not looked at.
        key_stages: Widths of the key encoder's stages at 1/4, 1/8 and 1/16; their maps have four times the channels.
        key_blocks: Number of residual blocks of each.
        value_stages: Channels of the value encoder's stages at 1/4, 1/8 and 1/16.
        value_blocks: Number of residual blocks of each.
        key_dim: Channels of keys, CK.
        value_dim: Channels of values, CV.
        decoder_channels: Channels of the decoder's blocks at 1/16, 1/8 and 1/4.
        norm: Of the encoders: ``"batch"`` as in the paper, or ``"instance"``.

    Attributes:
        input_channels: Channels of what the network is given, the position counted.
        divisors: What each axis of an image must be a multiple of.
        encoder: The key encoder.
        value_encoder: The value encoder, whose last two channels are the object's mask and those of all others.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_ext.networks import SpaceTimeNetwork
        >>> narrow = {"key_stages": (4, 4, 8), "key_blocks": (1, 1, 1), "value_stages": (4, 4, 8)}
        >>> narrow |= {"value_blocks": (1, 1, 1), "key_dim": 8, "value_dim": 16, "decoder_channels": (16, 8, 8)}
        >>> network = SpaceTimeNetwork(1, 3, **narrow)
        >>> masks, present = torch.zeros(2, 2, 32, 48), torch.ones(2, 2, dtype=torch.bool)
        >>> tuple(network(torch.randn(2, 3, 1, 32, 48), masks, present).shape)
        (2, 2, 3, 32, 48)
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        deep_supervision: bool = False,
        windows: Sequence[Sequence[float]] | None = None,
        hounsfield_channels: Sequence[int] = (),
        position: bool = False,
        key_stages: Sequence[int] = (64, 128, 256),
        key_blocks: Sequence[int] = (3, 4, 6),
        value_stages: Sequence[int] = (64, 128, 256),
        value_blocks: Sequence[int] = (2, 2, 2),
        key_dim: int = 64,
        value_dim: int = 512,
        decoder_channels: Sequence[int] = (512, 256, 256),
        norm: str = "batch",
    ) -> None:
        super().__init__()
        three = {"key_stages": key_stages, "key_blocks": key_blocks, "value_stages": value_stages}
        three |= {"value_blocks": value_blocks, "decoder_channels": decoder_channels}
        _check_widths(three, {"key_dim": key_dim, "value_dim": value_dim}, norm)
        self.reference_input = ReferenceInput(input_channels, windows, hounsfield_channels, position)
        self.input_channels, self.divisors = self.reference_input.input_channels, (STRIDE, STRIDE)
        channels = self.reference_input.output_channels
        f4, f8, f16 = (Bottleneck.expansion * width for width in key_stages)
        self.encoder = built(lambda: _resnet(Bottleneck, channels, key_stages, key_blocks, norm))
        self.value_encoder = built(lambda: _resnet(BasicBlock, channels + 2, value_stages, value_blocks, norm))
        self.key_projection = nn.Conv2d(f16, key_dim, 3, padding=1)
        nn.init.orthogonal_(self.key_projection.weight)  # as Cheng et al. begin
        nn.init.zeros_(_bias(self.key_projection))
        self.query_value = nn.Conv2d(f16, value_dim, 3, padding=1)
        self.value_fusion = nn.ModuleList(
            [ResidualBlock(value_stages[-1], value_dim, f16), ResidualBlock(value_dim, value_dim)]
        )
        self.decoder = SpaceTimeDecoder(value_dim, (f8, f4), decoder_channels, deep_supervision)

    def forward(self, frames: Tensor, masks: Tensor | None = None, present: Tensor | None = None) -> Tensor:
        """Return log-odds of the second and third slice of each sample, all elements of the memory read.

        The second is found from the first; the third from the first, and from the second with what was found there.

        Args:
            frames: ``(B, 3, C, H, W)``, H and W multiples of 16, C as ``input_channels`` of the network.
            masks: ``(B, K, H, W)`` of K objects in the first slices, 0 to 1.
            present: ``(B, K)`` bool; the others are no objects, so that samples may have fewer than K.

        Returns:
            ``(B, 2, K + 1, H, W)``, background first, whose softmax over K + 1 are the probabilities; that of what is
            no object is about 1e-7.

        Raises:
            TypeError: If the frames are not of a floating-point type.
            ValueError: If shapes do not fit, or a single image is given, as to networks that segment.
        """
        if masks is None or present is None or frames.ndim != 5:
            raise ValueError(
                f"a propagation model segments nothing alone, but was given images of shape {tuple(frames.shape)}; it "
                "carries masks to other slices: use nnUNetv2_predict ... --propagate MODEL, with -d and -tr of a model "
                "that segments, or nnUNetv2_ext propagate"
            )
        check_image(frames.flatten(0, 1), self.input_channels, self.divisors)
        _check_objects(frames, masks, present)
        batch = frames.shape[0]
        features = self.encode_key(frames.flatten(0, 1))
        first, second, third = (
            SliceFeatures(*(part.unflatten(0, (batch, FRAMES))[:, number] for part in features))
            for number in range(FRAMES)
        )
        objects = present[:, :, None, None].float()
        keys, values = first.key[:, :, None], self.encode_value(first, masks * objects)[:, :, :, None]
        log_odds = [self._found(second, keys, values, objects)]
        found = log_odds[0].softmax(1)[:, 1:] * objects
        keys = torch.cat([keys, second.key[:, :, None]], 2)
        values = torch.cat([values, self.encode_value(second, found)[:, :, :, None]], 3)
        log_odds.append(self._found(third, keys, values, objects))
        return torch.stack(log_odds, 1)

    def _found(self, features: SliceFeatures, keys: Tensor, values: Tensor, objects: Tensor) -> Tensor:
        """Return aggregated log-odds, read from keys ``(B, CK, T, h, w)`` and values ``(B, K, CV, T, h, w)``."""
        readout = read(keys.flatten(2), values.flatten(3), features.key.flatten(2))
        logits = self.decode(features, readout.unflatten(3, features.key.shape[2:]))
        return aggregate(logits.float().sigmoid() * objects)

    def encode_key(self, image: Tensor) -> SliceFeatures:
        """Return what is needed of slices to search the memory for them, and to add them to it.

        Args:
            image: ``(B, C, H, W)``, H and W multiples of 16, C as ``input_channels`` of the network.

        Raises:
            TypeError: If the image is not of a floating-point type.
            ValueError: If it does not fit.
        """
        check_image(image, self.input_channels, self.divisors)
        image, _ = self.reference_input(image)
        f4, f8, f16 = _maps(self.encoder, image)
        return SliceFeatures(image, self.key_projection(f16), self.query_value(f16), f16, f8, f4)

    def encode_value(self, features: SliceFeatures, masks: Tensor) -> Tensor:
        """Return values of objects for the memory, ``(B, K, CV, h, w)``.

        Args:
            features: Of slices.
            masks: ``(B, K, H, W)`` of all objects or, with one more axis for the sum of all others,
                ``(B, K, 2, H, W)`` of some.
        """
        if masks.ndim == 4:
            masks = torch.stack([masks, masks.sum(1, keepdim=True) - masks], 2)
        batch, count = masks.shape[:2]
        image = features.image[:, None].expand(-1, count, -1, -1, -1)
        given = torch.cat([image, masks.to(image.dtype)], 2).flatten(0, 1)
        values = self.value_fusion[0](_maps(self.value_encoder, given)[-1], features.f16)
        result: Tensor = self.value_fusion[1](values)
        return result.unflatten(0, (batch, count))

    def decode(self, features: SliceFeatures, readout: Tensor) -> Tensor:
        """Return logits of objects, ``(B, K, H, W)``.

        Args:
            features: Of slices.
            readout: ``(B, K, CV, h, w)``, what was read from the memory for them.
        """
        logits: Tensor = self.decoder(readout, features)
        return logits

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Return the values that convolutions make of one sample, as nnU-Net's planners count.

        Args:
            input_size: ``(H, W)`` of a sample of training: three slices, and two objects in them.
        """
        sample = (
            torch.empty((1, FRAMES, self.input_channels, *input_size), device="meta"),
            torch.empty((1, _OBJECTS, *input_size), device="meta"),
            torch.empty((1, _OBJECTS), device="meta", dtype=torch.bool),
        )
        return conv_feature_map_size(self, self.input_channels, input_size, sample)


class SpaceTimeDecoder(nn.Module):
    """Upsamples what was read from the memory by 2 twice, joins the key encoder's maps, and makes logits at 1/4.

    What is computed of the slice alone is computed once for all of its objects.

    Args:
        value_dim: Channels of values, and of the query's.
        skip_channels: Of the maps at 1/8 and 1/4.
        channels: Of the blocks at 1/16, 1/8 and 1/4.
        deep_supervision: As nnU-Net switches it, without effect.

    Attributes:
        seg_layers: The head alone, where nnU-Net looks for heads.
    """

    def __init__(
        self, value_dim: int, skip_channels: Sequence[int], channels: Sequence[int], deep_supervision: bool
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.compress = ResidualBlock(value_dim, channels[0], value_dim)
        self.skips = nn.ModuleList(
            nn.Conv2d(skip, below, 3, padding=1) for skip, below in zip(skip_channels, channels[:-1], strict=True)
        )
        self.blocks = nn.ModuleList(ResidualBlock(below, own) for below, own in pairwise(channels))
        self.seg_layers = nn.ModuleList([nn.Conv2d(channels[-1], 1, 3, padding=1)])

    def forward(self, readout: Tensor, features: SliceFeatures) -> Tensor:
        """Return logits ``(B, K, H, W)``.

        Args:
            readout: ``(B, K, CV, h, w)``.
            features: Of the slices.
        """
        objects = readout.shape[:2]
        x = self.compress(readout.flatten(0, 1), features.value)
        for skip, block, below in zip(self.skips, self.blocks, (features.f8, features.f4), strict=True):
            x = block(_add_shared(_upsampled(x, 2), skip(below)))
        logits = self.seg_layers[0](functional.relu(x))
        return _upsampled(logits, 4)[:, 0].unflatten(0, objects)


class ResidualBlock(nn.Module):
    """Two convolutions after their activations, without norms, and a third one beside them where channels change.

    A convolution of joined maps is the sum of convolutions of each, so that maps that several samples share are
    convolved once.

    Args:
        inputs: Channels of the samples' own maps.
        outputs: Channels of the result.
        shared: Channels of the maps that samples share; 0 for none.
    """

    def __init__(self, inputs: int, outputs: int, shared: int = 0) -> None:
        super().__init__()
        self.conv1 = _Joined(inputs, outputs, shared)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = _Joined(inputs, outputs, shared) if inputs + shared != outputs else None

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """Return ``(B * K, outputs, *S)``.

        Args:
            x: ``(B * K, inputs, *S)``, those of one sample one after another.
            shared: ``(B, shared, *S)``.
        """
        inner = self.conv1(functional.relu(x), None if shared is None else functional.relu(shared))
        residual: Tensor = self.conv2(functional.relu(inner))
        return residual + (x if self.shortcut is None else self.shortcut(x, shared))


class _Joined(nn.Module):
    """A 3x3 convolution of each sample's own map and one that several share."""

    def __init__(self, inputs: int, outputs: int, shared: int) -> None:
        super().__init__()
        self.own = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.shared = nn.Conv2d(shared, outputs, 3, padding=1, bias=False) if shared else None
        if self.shared is not None:
            for part in (self.own, self.shared):  # as torch begins one convolution of all channels
                part.weight.data *= (part.in_channels / (inputs + shared)) ** 0.5

    def forward(self, x: Tensor, shared: Tensor | None) -> Tensor:
        own: Tensor = self.own(x)
        return own if self.shared is None or shared is None else _add_shared(own, self.shared(shared))


def _add_shared(own: Tensor, shared: Tensor) -> Tensor:
    """Add ``(B, C, *S)`` to each of the samples ``(B * K, C, *S)`` that it belongs to."""
    batch = shared.shape[0]
    return (own.unflatten(0, (batch, own.shape[0] // batch)) + shared[:, None]).flatten(0, 1)


def _upsampled(x: Tensor, factor: int) -> Tensor:
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def _resnet(
    block: type[BasicBlock | Bottleneck], channels: int, stages: Sequence[int], blocks: Sequence[int], norm: str
) -> nn.Module:
    norm_layer: Callable[[int], nn.Module] = NORMS[norm]
    return ResNet(
        cast(Any, block),  # timm's annotation names instances where it takes classes
        tuple(blocks),
        num_classes=0,
        in_chans=channels,
        global_pool="",
        channels=tuple(stages),
        norm_layer=norm_layer,
    )


def _maps(resnet: Any, image: Tensor) -> list[Tensor]:
    """Return the maps at 1/4, 1/8 and 1/16."""
    x, maps = resnet.maxpool(resnet.act1(resnet.bn1(resnet.conv1(image)))), []
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3):
        x = stage(x)
        maps.append(x)
    return maps


def _bias(convolution: nn.Conv2d) -> Tensor:
    if convolution.bias is None:
        raise TypeError("the convolution must have a bias, got one without")
    return convolution.bias


def _check_widths(three: dict[str, Sequence[int]], single: dict[str, int], norm: str) -> None:
    for name, values in three.items():
        if len(values) != 3 or any(value < 1 for value in values):
            raise ValueError(f"{name} must have 3 entries of at least 1, got {list(values)}")
    for name, value in single.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")


def _check_objects(frames: Tensor, masks: Tensor, present: Tensor) -> None:
    if becomes_graph():
        return
    shape = tuple(frames.shape)
    if shape[1] != FRAMES:
        raise ValueError(f"frames must have shape (B, {FRAMES}, C, H, W), got {shape}")
    fits = masks.ndim == 4 and masks.shape[0] == shape[0] and masks.shape[2:] == frames.shape[3:] and masks.shape[1]
    if not fits or present.shape != masks.shape[:2]:
        raise ValueError(
            f"masks and present must have shapes ({shape[0]}, K, {shape[3]}, {shape[4]}) and ({shape[0]}, K), at least "
            f"one object, got {tuple(masks.shape)} and {tuple(present.shape)}"
        )
