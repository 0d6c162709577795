"""What the networks of the reference module do to their input: windows of CT, and the position of the slice apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

HOUNSFIELD_PER_UNIT = 1000.0  # what preprocessed CT without clipping is divided by


class ReferenceInput(nn.Module):
    """Maps channels of CT to windows, and takes off the channel that holds the position of the slice.

    Pham et al., section on the reference module: each window is one channel, 0 at its lower and 1 at its upper bound.
    As a layer of the network it is rebuilt from plans wherever the network is, and data stay in Hounsfield units.

    Args:
        input_channels: Number of image channels of the data, the position not counted.
        windows: ``(lower, upper)`` in Hounsfield units of each window; ``None`` or none leaves all channels be.
        hounsfield_channels: Which image channels are CT in Hounsfield units / 1000; each becomes as many channels as
            there are windows, in its place.
        position: Whether the data have one more channel, the last one: the position of the slice in its scan, 0 to 1,
            the same everywhere but 0 in padding.

    Attributes:
        input_channels: Channels that :meth:`forward` takes, the position counted.
        output_channels: Channels of the image that it returns.

    Raises:
        ValueError: If a window is empty, or a channel is not there.

    Example:
        >>> import torch
        >>> from nnunet_ext.networks import ReferenceInput
        >>> layer = ReferenceInput(1, [(-150, 250), (-1350, 225), (-500, 1300)], [0])
        >>> image, position = layer(torch.full((1, 1, 1, 1), 0.05))  # 50 HU
        >>> [int(255 * value) for value in image.flatten()], position
        ([127, 226, 77], None)
    """

    lower: Tensor
    width: Tensor

    def __init__(
        self,
        input_channels: int,
        windows: Sequence[Sequence[float]] | None = None,
        hounsfield_channels: Sequence[int] = (),
        position: bool = False,
    ) -> None:
        super().__init__()
        windows = [tuple(window) for window in windows or ()]
        for window in windows:
            if len(window) != 2 or not window[0] < window[1]:
                raise ValueError(f"a window must be (lower, upper) in Hounsfield units, got {list(window)}")
        if windows and any(not 0 <= channel < input_channels for channel in hounsfield_channels):
            raise ValueError(
                f"hounsfield_channels must be among the {input_channels} image channels, counted from 0, got "
                f"{list(hounsfield_channels)}"
            )
        self.position = position
        self.hounsfield_channels = frozenset(hounsfield_channels) if windows else frozenset()
        self.image_channels = input_channels
        self.input_channels = input_channels + int(position)
        self.output_channels = input_channels + len(self.hounsfield_channels) * (len(windows) - 1)
        # not saved: they are settings, which plans hold, and weights stay those of the network alone
        self.register_buffer("lower", torch.tensor([float(low) for low, _ in windows]), persistent=False)
        self.register_buffer("width", torch.tensor([float(high - low) for low, high in windows]), persistent=False)

    def forward(self, data: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return image and position.

        Args:
            data: ``(B, C, *S)``, C as ``input_channels`` of the layer.

        Returns:
            The image ``(B, output_channels, *S)``, and the position of each slice ``(B, 1)`` or None.
        """
        image, position = data, None
        if self.position:
            # padding is 0 and no position is negative, so the largest value is that of the slice
            image, position = data[:, :-1], data[:, -1:].flatten(2).amax(2)
        if self.hounsfield_channels:
            shape = (1, -1, *([1] * (data.ndim - 2)))
            lower, width = self.lower.view(shape), self.width.view(shape)
            channels = [
                ((one * HOUNSFIELD_PER_UNIT - lower) / width).clamp(0, 1) if number in self.hounsfield_channels else one
                for number, one in enumerate(image.split(1, 1))
            ]
            image = torch.cat(channels, 1)
        return image, position


def with_position(features: Tensor, position: Tensor | None) -> Tensor:
    """Append the position of the slice to a feature map as one constant channel.

    Args:
        features: ``(B, C, *S)``.
        position: ``(B, 1)``, or None to append nothing.
    """
    if position is None:
        return features
    constant = position.view(-1, 1, *([1] * (features.ndim - 2))).to(features.dtype)
    return torch.cat([features, constant.expand(-1, -1, *features.shape[2:])], 1)
