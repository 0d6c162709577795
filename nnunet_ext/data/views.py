"""Weak and strong views of unlabelled patches: one draw of the geometry, and of the intensities one a strong view."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, SegOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import OneOfTransform, RandomTransform

from nnunet_ext.data.transforms import removal_place

_LIBRARY = "batchgeneratorsv2.transforms."  # of nnU-Net's own transforms
_BASE = "base."  # of everybody's
_INTENSITIES = ("intensity.", "noise.", "local.", "spatial.low_resolution")


@dataclass(frozen=True)
class StrongTable:
    """Probabilities and ranges of the strong intensities.

    ======================  ============================  ============================
    step                    nnU-Net                       here
    ======================  ============================  ============================
    Gaussian noise          p 0.1, variance U(0, 0.1)     p 0.5, the same
    Gaussian blur           p 0.2, then 0.5 a channel     p 0.5 a channel
                            sigma U(0.5, 1) voxels        the same
    brightness              p 0.15, factor 0.75 to 1.25   p 0.5, factor 0.5 to 1.5
    contrast                p 0.15, factor 0.75 to 1.25   p 0.5, factor 0.5 to 1.5
    low resolution          p 0.25, then 0.5 a channel    p 0.25 a channel
                            scale U(0.5, 1)               the same
    inverted gamma          p 0.1, 0.7 to 1.5             p 0.1, the same
    gamma                   p 0.3, 0.7 to 1.5             p 0.5, the same
    no step at all          0.323 of one-channel patches  0.021
    ======================  ============================  ============================

    What is drawn for each channel and what for all of them is as in nnU-Net.

    Attributes:
        noise: Probability of noise, the same in all channels.
        noise_variance: Range of nnU-Net's ``noise_variance``.
        blur: Probability of blur for each channel.
        blur_sigma: Range of its width in voxels, for each channel and axis.
        brightness: Probability of a change of brightness.
        brightness_factor: Range of the factor, for each channel.
        contrast: Probability of a change of contrast.
        contrast_factor: Range of the factor, for each channel.
        low_resolution: Probability of low resolution for each channel.
        scale: Range of the size at low resolution by that of the patch, for each channel.
        inverted_gamma: Probability of a gamma of the negative.
        gamma: Probability of a gamma.
        exponent: Range of both gammas, for each channel.
    """

    noise: float = 0.5
    noise_variance: tuple[float, float] = (0.0, 0.1)
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    brightness: float = 0.5
    brightness_factor: tuple[float, float] = (0.5, 1.5)
    contrast: float = 0.5
    contrast_factor: tuple[float, float] = (0.5, 1.5)
    low_resolution: float = 0.25
    scale: tuple[float, float] = (0.5, 1.0)
    inverted_gamma: float = 0.1
    gamma: float = 0.5
    exponent: tuple[float, float] = (0.7, 1.5)


STRONG = StrongTable()


def strong_intensities(table: StrongTable = STRONG, in_slices: bool = False) -> list[BasicTransform]:
    """Return the transforms of a table, in nnU-Net's order.

    Args:
        table: Probabilities and ranges.
        in_slices: Keep the resolution along the first axis, as nnU-Net does where it augments slices in 2D.
    """

    def gamma(probability: float, inverted: float) -> RandomTransform:
        transform = GammaTransform(BGContrast(table.exponent), inverted, False, p_per_channel=1, p_retain_stats=1)
        return RandomTransform(transform, probability)

    noise = GaussianNoiseTransform(table.noise_variance, p_per_channel=1, synchronize_channels=True)
    # Without nnU-Net's benchmark: that takes the faster of two ways, which differ in the last bits, so that runs of the
    # same seed would too; at these widths the way without it is the faster one.
    blur = GaussianBlurTransform(table.blur_sigma, False, False, p_per_channel=table.blur)
    brightness = MultiplicativeBrightnessTransform(BGContrast(table.brightness_factor), False, p_per_channel=1)
    contrast = ContrastTransform(BGContrast(table.contrast_factor), True, False, p_per_channel=1)
    low_resolution = SimulateLowResolutionTransform(
        table.scale,
        synchronize_channels=False,
        synchronize_axes=True,
        ignore_axes=(0,) if in_slices else None,
        p_per_channel=table.low_resolution,
    )
    return [
        RandomTransform(noise, table.noise),
        blur,
        RandomTransform(brightness, table.brightness),
        RandomTransform(contrast, table.contrast),
        low_resolution,
        gamma(table.inverted_gamma, 1),
        gamma(table.gamma, 0),
    ]


class MakeStrongViews(BasicTransform):
    """Makes strong views of the image, which stays as it is: the weak view.

    Args:
        intensities: What is done to a strong view, drawn anew for each.
        number: How many there are.
    """

    def __init__(self, intensities: Sequence[BasicTransform], number: int) -> None:
        super().__init__()
        self.intensities = ComposeTransforms(list(intensities))
        self.number = number

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Add ``strong``, a list of ``(C, *S)``."""
        weak = data_dict["image"]  # cloned, as nnU-Net's intensity transforms write into what they are given
        data_dict["strong"] = [self.intensities(image=weak.clone())["image"] for _ in range(self.number)]
        return data_dict


class MaskStrongViews(BasicTransform):
    """Does to the strong views what nnU-Net's mask normalisation does to the weak one.

    Args:
        mask: nnU-Net's transform, which follows the intensities.
    """

    def __init__(self, mask: MaskImageTransform) -> None:
        super().__init__()
        self.mask = mask

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Mask every tensor of ``strong``."""
        segmentation = data_dict["segmentation"]
        data_dict["strong"] = [
            self.mask(image=view, segmentation=segmentation)["image"] for view in data_dict["strong"]
        ]
        return data_dict


class AppendStrongViews(BasicTransform):
    """Hands the strong views on as targets, each a tensor of its own: nnU-Net's loader passes no other keys.

    As channels of the image they would be copied twice more, to join them and to part them.
    """

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Replace ``segmentation`` by a list that ends with the strong views."""
        segmentation = data_dict["segmentation"]
        targets = list(segmentation) if isinstance(segmentation, (list, tuple)) else [segmentation]
        data_dict["segmentation"] = [*targets, *data_dict.pop("strong")]
        return data_dict


def with_strong_views(transforms: ComposeTransforms, number: int, table: StrongTable = STRONG) -> ComposeTransforms:
    """Return training transforms whose image is a weak view, with strong views of the same geometry at the end.

    nnU-Net's intensity transforms are left out. All others keep their order and are done once, before the strong views
    are made; only what concerns the mask or the segmentation alone, from the first step that looks at what is outside
    the mask, comes after.

    Args:
        transforms: What the trainer's ``get_training_transforms`` returns; not changed.
        number: How many strong views.
        table: Probabilities and ranges of their intensities.

    Returns:
        Transforms whose ``segmentation`` is the list of nnU-Net's targets followed by the strong views.

    Raises:
        RuntimeError: If the transforms never turn -1 into background.
    """
    steps = [step for step in transforms.transforms if not is_intensity(step)]
    first = min([removal_place(steps), *(i for i, step in enumerate(steps) if isinstance(step, MaskImageTransform))])
    shared, after = steps[:first], []
    for step in steps[first:]:
        if isinstance(step, MaskImageTransform):
            after += [step, MaskStrongViews(step)]
        elif isinstance(step, SegOnlyTransform):
            after.append(step)
        else:
            shared.append(step)
    views = MakeStrongViews(strong_intensities(table, _in_slices(steps)), number)
    return ComposeTransforms([*shared, views, *after, AppendStrongViews()])


def strong_training_transforms(
    owner: Any, *arguments: Any, table: StrongTable = STRONG, **options: Any
) -> ComposeTransforms:
    """Return a trainer's training transforms with the strong intensities in place of nnU-Net's; for labelled patches.

    Args:
        owner: Trainer or class of trainers whose ``get_training_transforms`` is asked.
        *arguments: Its arguments.
        table: Probabilities and ranges of the intensities.
        **options: Its named arguments.

    Example:
        >>> from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
        >>> class StrongTrainer(nnUNetTrainer):
        ...     @staticmethod
        ...     def get_training_transforms(*arguments, **options):
        ...         return strong_training_transforms(nnUNetTrainer, *arguments, **options)
    """
    steps = list(owner.get_training_transforms(*arguments, **options).transforms)
    kept = [step for step in steps if not is_intensity(step)]
    first = next((i for i, step in enumerate(steps) if is_intensity(step)), None)
    if first is None:
        first = next((i for i, step in enumerate(kept) if isinstance(step, (MaskImageTransform, SegOnlyTransform))), 0)
    return ComposeTransforms([*kept[:first], *strong_intensities(table, _in_slices(steps)), *kept[first:]])


def is_intensity(step: BasicTransform) -> bool:
    """Whether a step is one of nnU-Net's that change intensities and nothing else, or a subclass of one."""
    return all(_origin(leaf).startswith(_INTENSITIES) for leaf in _leaves(step))


def foreign_steps(transforms: ComposeTransforms) -> list[str]:
    """Return names of the steps that both views share although they may change intensities: those not of nnU-Net."""

    def foreign(leaf: BasicTransform) -> bool:
        return not isinstance(leaf, SegOnlyTransform) and (not _origin(leaf) or is_intensity(leaf))

    shared = [step for step in transforms.transforms if not is_intensity(step)]
    return [type(leaf).__name__ for step in shared for leaf in _leaves(step) if foreign(leaf)]


def _leaves(step: BasicTransform) -> Iterator[BasicTransform]:
    """Yield what a step draws among or wraps."""
    if isinstance(step, RandomTransform):
        yield from _leaves(step.transform)
    elif isinstance(step, (OneOfTransform, ComposeTransforms)):
        inner = step.list_of_transforms if isinstance(step, OneOfTransform) else step.transforms
        for one in inner:
            yield from _leaves(one)
    else:
        yield step


def _origin(leaf: BasicTransform) -> str:
    """Return the module of nnU-Net's own transforms that a transform comes from, or an empty text."""
    for kind in type(leaf).__mro__:
        name = kind.__module__.removeprefix(_LIBRARY)
        if name != kind.__module__ and not name.startswith(_BASE):
            return name
    return ""


def _in_slices(steps: Sequence[BasicTransform]) -> bool:
    return any(isinstance(leaf, Convert3DTo2DTransform) for step in steps for leaf in _leaves(step))


def strong_key(number: int) -> str:
    """Return the key in a batch of a strong view, numbered from 1."""
    return "unlabeled_strong" if number == 1 else f"unlabeled_strong_{number}"


@dataclass(frozen=True)
class Turn:
    """A second geometry of a patch: mirroring, then turns by 90 degrees, which are exact permutations of voxels.

    Attributes:
        mirrored: Spatial axes that are mirrored.
        quarters: Plane of two spatial axes and number of turns in it, one after the other.
        dimensions: Number of spatial axes.
    """

    mirrored: tuple[int, ...] = ()
    quarters: tuple[tuple[tuple[int, int], int], ...] = ()
    dimensions: int = 3


def turnable_planes(patch_size: Sequence[int], spacing: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """Return the planes in which a turn by 90 degrees keeps shape and spacing of a patch.

    Args:
        patch_size: Voxels of each axis.
        spacing: Spacing of each axis in mm; equal is what differs by less than a thousandth.
    """
    return tuple(
        (a, b)
        for a, b in combinations(range(len(patch_size)), 2)
        if patch_size[a] == patch_size[b] and math.isclose(spacing[a], spacing[b], rel_tol=1e-3)
    )


def draw_turn(
    dimensions: int,
    mirror_axes: Sequence[int] | None,
    planes: Sequence[tuple[int, int]],
    generator: torch.Generator | None = None,
) -> Turn:
    """Draw mirrorings with probability 0.5 an axis, and none to three turns in each plane, all equally likely.

    A turn keeps left and right apart, as the rotations of nnU-Net do, so that planes need no axis that may be mirrored.

    Args:
        dimensions: Number of spatial axes.
        mirror_axes: Axes that may be mirrored: the trainer's ``inference_allowed_mirroring_axes``.
        planes: Planes that may be turned, of :func:`turnable_planes`.
        generator: Generator to draw from; None for torch's global one.
    """
    mirrored = tuple(axis for axis in mirror_axes or () if float(torch.rand(1, generator=generator)) < 0.5)
    turns = [int(torch.randint(4, (1,), generator=generator)) for _ in planes]
    quarters = tuple(((a, b), number) for (a, b), number in zip(planes, turns, strict=True) if number)
    return Turn(mirrored, quarters, dimensions)


def apply_turn(turn: Turn, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Turn image, labels, confidence and masks alike.

    Args:
        turn: What is done.
        *tensors: ``(..., *S)`` of any types; None stays None.
    """
    return tuple(None if tensor is None else _turned(tensor, turn) for tensor in tensors)


def apply_turns(turns: Sequence[Turn], *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Turn every patch of a batch by a turn of its own, image, labels, confidence and masks alike.

    Args:
        turns: One for each patch, of :func:`turnable_planes` of the patch, so that shapes stay.
        *tensors: ``(B, C, *S)`` of any types; None stays None.
    """
    return tuple(
        None if tensor is None else torch.stack([_turned(one, turn) for one, turn in zip(tensor, turns, strict=True)])
        for tensor in tensors
    )


def undo_turn(turn: Turn, *tensors: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Turn back what :func:`apply_turn` has turned."""
    return tuple(None if tensor is None else _turned_back(tensor, turn) for tensor in tensors)


def _turned(tensor: torch.Tensor, turn: Turn) -> torch.Tensor:
    first = tensor.ndim - turn.dimensions
    tensor = tensor.flip([first + axis for axis in turn.mirrored])
    for (a, b), number in turn.quarters:
        tensor = torch.rot90(tensor, number, (first + a, first + b))
    return tensor


def _turned_back(tensor: torch.Tensor, turn: Turn) -> torch.Tensor:
    first = tensor.ndim - turn.dimensions
    for (a, b), number in reversed(turn.quarters):
        tensor = torch.rot90(tensor, -number, (first + a, first + b))
    return tensor.flip([first + axis for axis in turn.mirrored])
