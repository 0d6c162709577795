"""Masks of a few slices carried through a volume on the grid of a propagation model, and brought back to the image."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from torch import Tensor, nn

from nnunet_ext.inference.case import CaseConfiguration, ExportedBy, Model, Prepared
from nnunet_ext.propagation.driver import Propagated, PropagationSettings, propagate

_LEAST = 1e-6  # probability that stands for none; its logarithm and the resampled ones fit into float16


@dataclass(frozen=True)
class GivenSlices:
    """Label slices of an image, as they were given: on the image's own grid.

    Attributes:
        axis: Array axis of the image along which the slices lie.
        indices: Their indices along it.
        labels: ``(*S)`` of the image, but for ``axis``, which has as many slices as there are indices.
    """

    axis: int
    indices: tuple[int, ...]
    labels: np.ndarray

    def chosen(self, indices: Sequence[int]) -> GivenSlices:
        """Return the slices of some of the indices."""
        places = [self.indices.index(index) for index in indices]
        return GivenSlices(self.axis, tuple(indices), self.labels.take(places, self.axis))


@dataclass(frozen=True)
class Finish:
    """Makes the label map that is written: classes in the place of channels, and what was given as it was given.

    Attributes:
        classes: Label of each channel of the logits, None where channels are labels.
        slices: Slices that are put back unchanged.
        voxels: Index of each further voxel in the flattened image, and its label; None for none.
    """

    classes: tuple[int, ...] | None
    slices: GivenSlices
    voxels: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, segmentation: np.ndarray) -> np.ndarray:
        """Finish a label map ``(*S)`` of the image."""
        given = [self.slices.labels, *(() if self.voxels is None else (self.voxels[1],))]
        largest = max(0, *(self.classes or ()), int(segmentation.max()), *(int(one.max(initial=0)) for one in given))
        kind = np.uint8 if largest < 256 else np.uint16
        result = segmentation.astype(kind) if self.classes is None else np.asarray(self.classes, kind)[segmentation]
        along = np.moveaxis(result, self.slices.axis, 0)
        along[list(self.slices.indices)] = np.moveaxis(self.slices.labels, self.slices.axis, 0)
        if self.voxels is not None:
            result.flat[self.voxels[0]] = self.voxels[1]
        return result


def slices_of_crop(prepared: Prepared) -> range:
    """Return the indices, along the axis of the slices, of those that nnU-Net's crop to non-zero has left."""
    return range(*prepared.properties["bbox_used_for_cropping"][0])


def to_grid(given: GivenSlices, prepared: Prepared, model: Model) -> dict[int, np.ndarray]:
    """Bring label slices to the grid of a prepared case, as nnU-Net brings label maps there.

    Args:
        given: Slices along the axis that the model's 2d plans keep.
        prepared: Case that was prepared for the model.
        model: Propagation model.

    Returns:
        Index of the slice in ``prepared.data`` -> labels ``(H, W)``; slices outside nnU-Net's crop are left out.
    """
    inside = [index for index in given.indices if index in slices_of_crop(prepared)]
    if not inside:
        return {}
    forward, properties = model.plans.transpose_forward, prepared.properties
    labels = given.chosen(inside).labels.transpose(forward)
    box = [[0, len(inside)], *properties["bbox_used_for_cropping"][1:]]
    labels = labels[bounding_box_to_slice(box)]
    spacing = [properties["spacing"][axis] for axis in forward]
    configuration = CaseConfiguration(model.configuration, prepared.target, image_only=False)
    resampled = configuration.resampling_fn_seg(
        labels[None].astype(np.int16),
        (len(inside), *prepared.data.shape[2:]),
        spacing,
        [spacing[0], *prepared.target],
    )
    resampled = np.asarray(resampled)[0].astype(np.int16)
    first = slices_of_crop(prepared).start
    return {index - first: slice_ for index, slice_ in zip(inside, resampled, strict=True)}


@dataclass
class Carried:
    """What became of the references of a case.

    Attributes:
        result: What the driver returns; its probabilities hold logarithms now.
        logits: These logarithms, for :attr:`exported`, ``(K, T, H, W)`` float16.
        exported: How they are exported.
        seconds: Time that it took.
    """

    result: Propagated
    logits: Tensor
    exported: ExportedBy
    seconds: float


@dataclass
class Carrier:
    """Networks of a propagation model on a device, and how they are used.

    Attributes:
        networks: One a fold.
        model: Plans of the model.
        device: Device of the networks.
        settings: Settings of the driver.
        progress: Whether a bar shows the slices.
    """

    networks: list[nn.Module]
    model: Model
    device: torch.device
    settings: PropagationSettings
    progress: bool = False

    def carry(
        self,
        prepared: Prepared,
        given: GivenSlices,
        voxels: tuple[np.ndarray, np.ndarray] | None = None,
        all_heads: bool = False,
        on_grid: Mapping[int, np.ndarray] | None = None,
    ) -> Carried:
        """Carry label slices through a case.

        Args:
            prepared: Case, prepared for the propagation model.
            given: Label slices; they are in the result as they are.
            voxels: Further voxels of the result, as :class:`Finish` takes them.
            all_heads: Whether the logits have a channel for each class of the model, not only for those that are
                there; for probabilities of classes.
            on_grid: What :func:`to_grid` returns of these slices, where that is known.

        Raises:
            NoReferenceError: If no slice has a class on the grid of the model.
        """
        start = time.perf_counter()
        references = to_grid(given, prepared, self.model) if on_grid is None else on_grid
        result = propagate(self.networks, prepared.data, references, self.device, self.settings, progress=self.progress)
        classes = [int(label) for label in result.classes]
        logits = _logarithms(result.probabilities)
        model = self.model
        if all_heads:
            heads = model.plans.get_label_manager(model.dataset_json).num_segmentation_heads
            logits = _all_channels(logits, classes, heads)
        else:
            model = _of_classes(model, len(classes))
        finish = Finish(None if all_heads else (0, *classes), given, voxels)
        return Carried(result, logits, ExportedBy(model, finish), time.perf_counter() - start)


def nothing(prepared: Prepared, model: Model, given: GivenSlices, all_heads: bool = False) -> tuple[Tensor, ExportedBy]:
    """Return logits of background, and how they are exported, for a case in which there is nothing to carry."""
    heads = model.plans.get_label_manager(model.dataset_json).num_segmentation_heads if all_heads else 2
    logits = torch.full((heads, *prepared.data.shape[1:]), float(np.log(_LEAST)), dtype=torch.float16)
    logits[0] = 0
    finish = Finish(None, given)
    return logits, ExportedBy(model if all_heads else _of_classes(model, 1), finish)


def _logarithms(probabilities: Tensor) -> Tensor:
    """Take logarithms in the place of probabilities, one class at a time."""
    for channel in probabilities:
        channel.copy_(channel.float().clamp_(min=_LEAST).log_())
    return probabilities


def _all_channels(logits: Tensor, classes: Sequence[int], heads: int) -> Tensor:
    every = torch.full((heads, *logits.shape[1:]), float(np.log(_LEAST)), dtype=logits.dtype)
    for channel, values in zip((0, *classes), logits, strict=True):
        every[channel] = values
    return every


def _of_classes(model: Model, number: int) -> Model:
    """Return a model whose channels are background and a number of classes, whatever the labels are."""
    content: Mapping[str, Any] = model.dataset_json
    kept = {key: value for key, value in content.items() if key not in ("labels", "regions_class_order")}
    labels = {"background": 0} | {f"class {n}": n for n in range(1, number + 1)}
    return replace(model, dataset_json=kept | {"labels": labels})
