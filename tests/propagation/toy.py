"""A network without use of weights, of which one knows what it finds, and volumes for it."""

import torch
from torch import nn

from nnunet_ext.networks.space_time import SliceFeatures


class Toy(nn.Module):
    """Reads each place of the slice that is nearest in the memory, and finds there what the masks say.

    Images hold the index of their slice; keys are this and the place; values are the masks. The logit of an object is
    ``gain`` times what was read, -0.5 to 0.5, so that probabilities move away from 0 and 1 with each slice.

    Args:
        gain: Steepness; 0 finds nothing.
        channels: Of images.

    Attributes:
        asked: Slices whose keys were made, in order.
        encoded: Slices whose values were made, and the masks and sums of the others that were given.
    """

    divisors = (16, 16)

    def __init__(self, gain=6.0, channels=1):
        super().__init__()
        self.gain, self.input_channels = gain, channels
        self.weight = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout()
        self.asked, self.encoded = [], []

    def encode_key(self, image):
        assert not self.training
        assert not self.dropout.training
        assert torch.is_inference_mode_enabled()
        self.asked.append(round(float(image.max())))
        self.shape = tuple(image.shape)
        small = torch.full_like(image[:, :1, ::16, ::16], image.max())
        rows, columns = (torch.arange(n, dtype=torch.float32) * 1e3 for n in small.shape[2:])
        place = [rows[:, None].expand(small.shape), columns.expand(small.shape)]
        return SliceFeatures(image, torch.cat([small, *place], 1), small, small, small, small)

    def encode_value(self, features, masks):
        assert masks.ndim == 5
        self.encoded.append((round(float(features.image.max())), masks.clone()))
        return masks[:, :, 0].unflatten(3, (-1, 16)).unflatten(2, (-1, 16)).permute(0, 1, 3, 5, 2, 4).flatten(2, 3)

    def decode(self, features, readout):
        batch, objects, _, height, width = readout.shape
        whole = readout.view(batch, objects, 16, 16, height, width).permute(0, 1, 4, 2, 5, 3)
        return self.gain * (whole.reshape(batch, objects, 16 * height, 16 * width) - 0.5)


def volume(slices, size=(20, 24), channels=1):
    """Each slice holds its index."""
    return torch.arange(slices, dtype=torch.float32)[None, :, None, None].repeat(channels, 1, *size)


def square(label, top=2, left=3, side=8, size=(20, 24)):
    labels = torch.zeros(size, dtype=torch.int16)
    labels[top : top + side, left : left + side] = label
    return labels
