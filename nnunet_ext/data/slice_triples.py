"""Triples of slices with growing gaps, drawn from nnU-Net's preprocessed volumes: what mask propagation learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from threadpoolctl import threadpool_limits
from torch import Tensor

from nnunet_ext.data.host import Trainer
from nnunet_ext.data.loaders import NamingLoader, loader_processes, look_at_reference_data
from nnunet_ext.data.reference_transforms import for_data_of
from nnunet_ext.data.training_cases import labelled_command
from nnunet_ext.plugin import compat

FRAMES, OBJECTS = 3, 2
IGNORED = -1  # label of pixels that do not count
STRIDE = 16  # of the network's coarsest map; sides of patches are rounded up to multiples of it
_MOST_DRAWS = 200  # for a triple that has an object


@dataclass(frozen=True)
class GapSchedule:
    """How many slices at most are left out between two frames, by the progress of the training.

    Attributes:
        steps: ``(progress, slices)``: from that share of the training on; the first one from 0.
        total: Number of steps of the training; None keeps the last number throughout.
    """

    steps: Sequence[Sequence[float]]
    total: int | None = None

    def at(self, step: int) -> int:
        """Return the number at a step, counted from 0.

        Example:
            >>> from nnunet_ext.data.slice_triples import GapSchedule
            >>> schedule = GapSchedule(((0, 25), (0.1, 3), (0.9, 5)), 100)
            >>> [schedule.at(step) for step in (0, 9, 10, 89, 90)]
            [25, 25, 3, 3, 5]
        """
        done = 1.0 if self.total is None else max(0, step) / self.total
        return int([number for progress, number in self.steps if progress <= done][-1])


def draw_slices(number: int, first: int, most_left_out: int, rng: np.random.Generator) -> tuple[int, int, int] | None:
    """Draw three slices of a volume, of which the first is given, in either direction.

    Pham et al. (MPR, 2022): ``t1 = t0 + 1 + U{0..J}``, ``t2 = t1 + 1 + U{0..J}``, reversed with probability 0.5. Here
    both gaps are drawn from those that lie in the volume, so that slices at its ends, the last one too, are drawn as
    others are, and no two frames are the same slice.

    Args:
        number: Number of slices of the volume.
        first: Index of the first slice.
        most_left_out: J, the most slices that are left out between two frames; it is capped by the volume.
        rng: Where random numbers come from.

    Returns:
        Three indices that rise or fall, or None where two more slices lie on neither side.
    """
    rooms = {1: number - 1 - first, -1: first}
    directions = [direction for direction, room in rooms.items() if room >= FRAMES - 1]
    if not directions:
        return None
    direction = int(rng.choice(directions))
    room = rooms[direction]
    most = min(most_left_out + 1, room - 1)
    while True:
        one, two = (int(gap) for gap in rng.integers(1, most + 1, 2))
        if one + two <= room:
            return first, first + direction * one, first + direction * (one + two)


def draw_objects(labels: Tensor, classes: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Draw up to two of the classes that a slice has, in random order.

    Args:
        labels: ``(H, W)``.
        classes: Labels that can be objects.
        rng: Where random numbers come from.
    """
    there = sorted(set(classes) & set(torch.unique(labels).tolist()))
    return [int(label) for label in rng.permutation(there)[:OBJECTS]]


def as_objects(labels: Tensor, objects: Sequence[int], ignored: int | None) -> dict[str, Tensor]:
    """Return what the network is given of the first slice's labels, and what it is to find in the others.

    Args:
        labels: ``(3, H, W)`` integers.
        objects: One or two labels.
        ignored: Label of pixels that do not count, or None.

    Returns:
        ``masks`` ``(2, H, W)`` uint8 of the first slice; ``target`` ``(2, H, W)`` int16 of the other slices, 0, 1 or 2
        and -1 where a pixel does not count; ``present`` ``(2,)`` bool and ``classes`` ``(2,)`` int64, 0 for none.
    """
    masks = torch.zeros((OBJECTS, *labels.shape[1:]), dtype=torch.uint8)
    target = torch.zeros((FRAMES - 1, *labels.shape[1:]), dtype=torch.int16)
    for number, label in enumerate(objects):
        masks[number] = labels[0] == label
        target[labels[1:] == label] = number + 1
    if ignored is not None:
        target[labels[1:] == ignored] = IGNORED
    present = torch.arange(OBJECTS) < len(objects)
    classes = torch.tensor([*objects, *[0] * (OBJECTS - len(objects))])
    return {"masks": masks, "target": target, "present": present, "classes": classes}


class InEachSlice(BasicTransform):
    """Does a step that mixes neighbouring pixels within slices alone, to all slices with the same parameters.

    Args:
        step: A step on images that can be 2D.
    """

    def __init__(self, step: BasicTransform) -> None:
        super().__init__()
        self.step = step

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Replace ``image`` ``(C, D, H, W)``."""
        image = data_dict["image"]
        drawn = self.step.get_parameters(image=image[:, 0])
        slices = [self.step.apply({"image": one.clone()}, **drawn)["image"] for one in image.unbind(1)]
        data_dict["image"] = torch.stack(slices, 1)
        return data_dict


def within_slices(transforms: ComposeTransforms) -> ComposeTransforms:
    """Return transforms of 3D patches that blur within slices alone; all others of nnU-Net's do not mix slices.

    Args:
        transforms: What ``get_training_transforms`` returns for slices that are augmented in 2D; not changed.
    """
    steps: list[BasicTransform] = []
    for step in transforms.transforms:
        inner = step.transform if isinstance(step, RandomTransform) else step
        if isinstance(inner, GaussianBlurTransform):
            apart = InEachSlice(inner)
            step = RandomTransform(apart, step.apply_probability) if isinstance(step, RandomTransform) else apart
        steps.append(step)
    return ComposeTransforms(steps)


@contextmanager
def _drawn_from(sequence: np.random.SeedSequence) -> Iterator[np.random.Generator]:
    """Give random numbers from a seed, also to augmentation, and leave the global streams as they were."""
    states = np.random.get_state(), torch.get_rng_state()
    numbers = sequence.generate_state(2)
    np.random.seed(numbers[0])
    torch.default_generator.manual_seed(int(numbers[1]))
    try:
        yield np.random.default_rng(sequence)
    finally:
        np.random.set_state(states[0])
        torch.set_rng_state(states[1])


class SliceTripleLoader(NamingLoader):
    """Draws triples of slices with objects. What a step gets follows from the seed and its number alone.

    The case is drawn at random. The first slice, and where in it the patch lies, are those of a random voxel of a
    random class, as nnU-Net draws patches that must hold foreground. What is an object is seen once the patch is
    augmented; a triple without one, also for want of slices, is drawn anew.

    Attributes:
        gaps: How many slices are left out between frames.
        classes: Labels that can be objects.
        ignored: Label of pixels that do not count, or None.
        seed: Of all batches.
        first: Number of the first step.
        processes: How many loader processes share the steps.
    """

    gaps: GapSchedule
    classes: Sequence[int]
    ignored: int | None
    seed = 0
    first = 0
    processes = 1
    _made = 0

    def make_batch(self) -> dict[str, Any]:
        """Return the batch of the next step of this process.

        Returns:
            ``data`` ``(B, 3, C, H, W)`` float32, what :func:`as_objects` returns with the batch as first axis, and
            ``keys``, the cases.
        """
        step = self.first + self.thread_id + self._made * self.processes
        self._made += 1
        sequence = np.random.SeedSequence([self.seed, step + 1])
        self._keys = []
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None), _drawn_from(sequence) as rng:
            samples = [self._draw(self.gaps.at(step), rng) for _ in range(self.batch_size)]
        return {key: torch.stack([one[key] for one in samples]) for key in samples[0]} | {"keys": list(self._keys)}

    def _draw(self, most_left_out: int, rng: np.random.Generator) -> dict[str, Tensor]:
        names = compat.dataset_of(self).identifiers
        for _ in range(_MOST_DRAWS):
            self._keys.append(str(rng.choice(names)))
            sample = self._triple(self._keys[-1], most_left_out, rng)
            if sample is not None:
                return sample
            self._keys.pop()
        raise RuntimeError(
            f"{_MOST_DRAWS} times in a row no three slices were found of which the first has a label, in "
            f"{compat.dataset_of(self).source_folder}: propagation learns from volumes of at least {FRAMES} slices "
            "with labels; look at labelsTr"
        )

    def _triple(self, name: str, most_left_out: int, rng: np.random.Generator) -> dict[str, Tensor] | None:
        """Return a sample of a case, or None where three slices, or an object in the first one, were not found."""
        data, labels, _, properties = compat.dataset_of(self).load_case(name)
        lower, upper = self.get_bbox(data.shape[1:], True, properties["class_locations"])
        slices = draw_slices(data.shape[1], int(lower[0]), most_left_out, rng)
        if slices is None:
            return None
        plane = [[int(start), int(end)] for start, end in zip(lower[1:], upper[1:], strict=True)]
        boxes = [[[index, index + 1], *plane] for index in slices]
        image = np.concatenate([crop_and_pad_nd(data, box, 0) for box in boxes], 1)
        drawn = np.concatenate([crop_and_pad_nd(labels, box, -1, cast_cropped_to=np.int16) for box in boxes], 1)
        patch = {"image": torch.from_numpy(image).float(), "segmentation": torch.from_numpy(drawn).to(torch.int16)}
        patch = self.transforms(**patch)
        frames, augmented = patch["image"].transpose(0, 1), patch["segmentation"][0]
        objects = draw_objects(augmented[0], self.classes, rng)
        if not objects:
            return None
        return {"data": frames.contiguous(), **as_objects(augmented, objects, self.ignored)}


def rounded_up(patch_size: Sequence[int]) -> tuple[int, ...]:
    """Return the size of a patch with sides rounded up to multiples of 16."""
    return tuple(-(-int(size) // STRIDE) * STRIDE for size in patch_size)


def slice_triple_loader(
    trainer: Trainer, dataset: Any, train: bool, gaps: GapSchedule, seed: int, first: int
) -> SliceTripleLoader:
    """Build the loader of a trainer's triples from its own transforms.

    The three slices are augmented as a patch of three dimensions whose slices nnU-Net augments in 2D: all of them turn,
    scale and mirror alike.

    Args:
        trainer: An initialised trainer of a 2D configuration.
        dataset: Cases to draw from.
        train: Whether patches are augmented.
        gaps: How many slices are left out between frames.
        seed: Of all batches.
        first: Number of the first step.
    """
    look_at_reference_data(trainer)
    labels, configuration = trainer.label_manager, trainer.configuration_manager
    patch_size = drawn_size = rounded_up(configuration.patch_size)
    if train:
        rotation, _, initial, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        margin = np.asarray(initial) - np.asarray(configuration.patch_size)
        drawn_size = tuple(int(size) for size in np.asarray(patch_size) + margin)
        transforms = within_slices(
            trainer.get_training_transforms(
                (FRAMES, *patch_size),
                rotation,
                None,
                tuple(axis + 1 for axis in mirror_axes or ()),
                True,
                use_mask_for_norm=configuration.use_mask_for_norm,
                is_cascaded=False,
                foreground_labels=labels.foreground_labels,
                regions=None,
                ignore_label=labels.ignore_label,
            )
        )
    else:
        transforms = trainer.get_validation_transforms(
            None,
            is_cascaded=False,
            foreground_labels=labels.foreground_labels,
            regions=None,
            ignore_label=labels.ignore_label,
        )
    loader = SliceTripleLoader(
        dataset,
        trainer.batch_size,
        drawn_size,
        patch_size,
        labels,
        oversample_foreground_percent=1.0,
        transforms=for_data_of(trainer, transforms),
    )
    loader.remedy = f"run: {labelled_command(trainer)}"
    loader.gaps, loader.seed, loader.first = gaps, seed, first
    loader.classes, loader.ignored = labels.foreground_labels, labels.ignore_label
    loader.processes = max(1, loader_processes(train))
    return loader
