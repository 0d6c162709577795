"""What data of the reference module change in augmentation: no step touches the position, few the intensities of CT."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from nnunet_ext.data.host import Trainer
from nnunet_ext.data.hounsfield import hounsfield_channels
from nnunet_ext.data.position import has_position
from nnunet_ext.data.views import AppendStrongViews, MakeStrongViews

# In nnU-Net a voxel has a z-score, whose standard deviation is 1; 100 HU is about that of organs and fat in CT.
HOUNSFIELD_DEVIATION = 0.1
_SENSELESS = (MultiplicativeBrightnessTransform, ContrastTransform, GammaTransform)
_SENSELESS_NAMES = "multiplicative brightness, contrast, gamma and inverted gamma"


class SetPositionApart(BasicTransform):
    """Takes the last channel off the image, so that no step sees it."""

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Replace ``image`` ``(C + 1, *S)`` and add ``position``, a scalar: the largest value, as padding is 0."""
        image = data_dict["image"]
        data_dict["image"], data_dict["position"] = image[:-1].contiguous(), image[-1].amax()
        return data_dict


class AppendPosition(BasicTransform):
    """Appends the position to the image again, and to its strong views, the same everywhere."""

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Replace ``image``, and each tensor of ``strong`` where there are some."""
        position = data_dict.pop("position")
        data_dict["image"] = _appended(data_dict["image"], position)
        if "strong" in data_dict:
            data_dict["strong"] = [_appended(view, position) for view in data_dict["strong"]]
        return data_dict


def _appended(image: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return torch.cat([image, position.to(image.dtype).expand(1, *image.shape[1:])])


class OnOtherChannels(BasicTransform):
    """Does a step to some channels alone.

    Args:
        step: A step that changes intensities and nothing else.
        channels: Image channels that stay as they are.
    """

    def __init__(self, step: BasicTransform, channels: Collection[int]) -> None:
        super().__init__()
        self.step, self.channels = step, frozenset(channels)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Replace the other channels of ``image``."""
        image = data_dict["image"]
        others = [number for number in range(len(image)) if number not in self.channels]
        if others:
            image[others] = self.step(image=image[others])["image"]
        return data_dict


class LessNoise(BasicTransform):
    """Scales what a step adds to some channels.

    Args:
        step: A step that adds noise.
        channels: Image channels that get less of it.
        factor: Factor of the noise there.
    """

    def __init__(self, step: BasicTransform, channels: Collection[int], factor: float) -> None:
        super().__init__()
        self.step, self.channels, self.factor = step, sorted(channels), factor

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Replace ``image``."""
        before = data_dict["image"][self.channels].clone()  # steps write into what they are given
        image = self.step(image=data_dict["image"])["image"]
        image[self.channels] = before + self.factor * (image[self.channels] - before)
        data_dict["image"] = image
        return data_dict


def with_hounsfield(transforms: ComposeTransforms, channels: Sequence[int]) -> ComposeTransforms:
    """Return training transforms that leave out, for channels of CT, what makes no sense in Hounsfield units.

    Gamma, brightness and contrast are left out: they move tissue by hundreds of units, out of its window, while a unit
    means the same in every scanner. Noise is scaled from z-scores to units. Blur and low resolution stay.

    Args:
        transforms: Transforms of a trainer, of strong views too; not changed.
        channels: Channels of CT in Hounsfield units / 1000; without any nothing is changed.
    """
    if not channels:
        return transforms
    return ComposeTransforms([_in_hounsfield(step, channels) for step in transforms.transforms])


def _in_hounsfield(step: BasicTransform, channels: Sequence[int]) -> BasicTransform:
    if isinstance(step, MakeStrongViews):
        return MakeStrongViews(with_hounsfield(step.intensities, channels).transforms, step.number)
    inner = step.transform if isinstance(step, RandomTransform) else step
    if isinstance(inner, _SENSELESS):
        return OnOtherChannels(step, channels)
    if isinstance(inner, GaussianNoiseTransform):
        return LessNoise(step, channels, HOUNSFIELD_DEVIATION)
    return step


def with_position_apart(transforms: ComposeTransforms) -> ComposeTransforms:
    """Return transforms that keep their steps from the last channel of the image, the position of the slice.

    Args:
        transforms: Transforms of a trainer, with strong views or without; not changed.
    """
    steps = list(transforms.transforms)
    place = next((i for i, step in enumerate(steps) if isinstance(step, AppendStrongViews)), len(steps))
    return ComposeTransforms([SetPositionApart(), *steps[:place], AppendPosition(), *steps[place:]])


def for_data_of(trainer: Trainer, transforms: ComposeTransforms) -> ComposeTransforms:
    """Return transforms that suit the data of a trainer's plans; for plans of others they are the same.

    Args:
        trainer: Trainer with a configuration.
        transforms: Its training or validation transforms, with strong views or without.
    """
    configuration = trainer.configuration_manager
    transforms = with_hounsfield(transforms, hounsfield_channels(configuration))
    return with_position_apart(transforms) if has_position(configuration) else transforms


def say_what_is_left_out(trainer: Trainer) -> None:
    """Say in the log which intensity augmentations channels of CT in Hounsfield units do not get."""
    channels = hounsfield_channels(trainer.configuration_manager)
    if channels:
        trainer.print_to_log_file(
            f"CT in Hounsfield units (channel {', '.join(map(str, channels))}): {_SENSELESS_NAMES} are left out of "
            f"augmentation, and noise of z-scores is scaled by {1000 * HOUNSFIELD_DEVIATION:g} HU"
        )
