"""What several networks together say of one scan, and where they disagree.

The consensus is the largest of the mean probabilities at the size of the scan, as nnU-Net's ensembles are: each
network's logits are interpolated, then made probabilities. For regions it is the last one whose mean probability is
above 0.5, in nnU-Net's order. Logits lie in files, and the scan is gone through slice by slice for all networks at
once; where all corners of a block of every grid have the same winner, all networks and their mean have it as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from nnunet_ext.data.classes import Region
from nnunet_ext.inference.agreement_scores import Agreement
from nnunet_ext.inference.case import CaseConfiguration, Model, Prepared
from nnunet_ext.inference.fast_export import SAME, Interpolation, Slices, chunks, open_voxels, winners
from nnunet_ext.inference.logits_file import LogitsFile
from nnunet_ext.inference.writing import interpolation_of

MOST_REGIONS = 62  # that fit as bits of one integer


@dataclass(frozen=True)
class WorstSlice:
    """The slice of a scan that the networks disagree about most.

    Attributes:
        index: Number of the slice along the first axis.
        consensus: Labels ``(Y, X)``.
        members: Labels of each network, ``(M, Y, X)``.
    """

    index: int
    consensus: np.ndarray
    members: np.ndarray


@dataclass(frozen=True)
class Frame:
    """Where on a scan the networks looked, in the scan's own order of axes.

    Attributes:
        shape: Size of the scan, ``*S``.
        box: First and last voxel, exclusive, of the part that they saw, along each axis.
    """

    shape: list[int]
    box: list[list[int]]


@dataclass(frozen=True)
class Grid:
    """Logits of one network, and how they come to the size of the scan; all in the scan's own order of axes."""

    logits: LogitsFile
    interpolation: Interpolation


def frame_of(prepared: Prepared, model: Model) -> Frame:
    """Return where on a scan a network looks that is given the prepared case."""
    order, properties = model.plans.transpose_backward, prepared.properties
    box = [[int(edge) for edge in properties["bbox_used_for_cropping"][axis]] for axis in order]
    return Frame([int(properties["shape_before_cropping"][axis]) for axis in order], box)


def keep_logits(logits: Tensor, prepared: Prepared, model: Model, folder: Path, stack: contextlib.ExitStack) -> Grid:
    """Write the logits of one network to a file.

    Args:
        logits: ``(K, *S)`` on the network's grid, on the CPU.
        prepared: Case that they belong to; its data is not used.
        model: Plans by which it was prepared.
        folder: On whose disk the file lies.
        stack: Closes the file.
    """
    order = [int(axis) for axis in model.plans.transpose_backward]
    interpolation = interpolation_of(model, prepared, logits.shape[1:])
    if interpolation is None:  # only nnU-Net's own function knows how
        shape = [int(size) for size in prepared.properties["shape_after_cropping_and_before_resampling"]]
        full = LogitsFile((len(logits), *(shape[axis] for axis in order)), logits.dtype, folder)
        stack.callback(full.close)
        full.write_resampled(logits.numpy(), _resampling(model, prepared))
        return Grid(full, Interpolation((SAME, SAME, SAME), rounded=False))
    turned = logits.permute(0, *(1 + axis for axis in order))
    kept = LogitsFile(turned.shape, turned.dtype, folder)
    stack.callback(kept.close)
    kept.write(turned)
    first, second, third = (interpolation.modes[axis] for axis in order)
    return Grid(kept, Interpolation((first, second, third), interpolation.rounded))


def _resampling(model: Model, prepared: Prepared) -> Callable[[np.ndarray], np.ndarray]:
    """Return what resamples ``(1, *S)`` logits as nnU-Net's export does, turned to the scan's order of axes."""
    properties, plans = prepared.properties, model.plans
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    current = prepared.target if len(prepared.target) == len(shape) else [spacing[0], *prepared.target]
    configuration = CaseConfiguration(model.configuration, prepared.target, image_only=True)

    def function(volume: np.ndarray) -> np.ndarray:
        result = np.asarray(configuration.resampling_fn_probabilities(volume, shape, current, spacing))
        return result.transpose(0, *(1 + axis for axis in plans.transpose_backward))

    return function


def decide(probabilities: Tensor, regions: bool, min_probability: float = 0.0) -> Tensor:
    """Return what probabilities come to.

    Args:
        probabilities: ``(K, *S)``, one channel a class or region.
        regions: Whether the channels are regions, each there or not.
        min_probability: Below it the result is uncertain: the probability of the class, or of what is said of the
            region that is least sure.

    Returns:
        ``(*S)``: the class, the first of equal ones, or for regions a number whose bits they are; minus this minus 1
        where it is uncertain.
    """
    if regions:
        code = torch.zeros(probabilities.shape[1:], dtype=torch.int64, device=probabilities.device)
        for channel, values in enumerate(probabilities):
            code |= (values > 0.5).long() << channel
    else:
        code = winners(probabilities, regions=False)
    if min_probability <= 0:
        return code
    surest = torch.maximum(probabilities, 1 - probabilities).amin(0) if regions else probabilities.amax(0)
    return torch.where(surest >= min_probability, code, -1 - code)


class Comparison:
    """Consensus and agreement of networks about a scan.

    Args:
        labels: nnU-Net's label manager of the networks.
        classes: Name of each class, or region, and its label or labels, without background.
        grids: What each network said.
        frame: Where on the scan they looked.
        min_probability: Mean probability below which a voxel is uncertain; 0 asks for agreement alone.
        device: Device to compute on.

    Attributes:
        labels: Label map ``(*S)`` of the consensus, once the scan is gone through.
        uncertain: Where a network disagrees with it, or its probability is below the threshold, ``(*S)`` bool.
        agreement: Counts, of which the scores are made.
        worst: The slice that they disagree about most.
    """

    worst: WorstSlice

    def __init__(
        self,
        labels: LabelManager,
        classes: Mapping[str, Region],
        grids: Sequence[Grid],
        frame: Frame,
        min_probability: float,
        device: torch.device,
    ) -> None:
        self.regions, self.members = labels.has_regions, len(grids)
        self.order = [int(label) for label in labels.regions_class_order] if self.regions else []
        self.nonlin, self.min_probability = labels.apply_inference_nonlin, min_probability
        self.inside = bounding_box_to_slice(frame.box)
        self.labels = np.zeros(frame.shape, np.uint8 if len(labels.foreground_labels) < 255 else np.uint16)
        self.uncertain = np.zeros(frame.shape, bool)
        self.agreement = Agreement(classes, self.members, self.labels.shape[0])
        self._most = -1, -1  # disagreeing voxels, and foreground, of the worst slice so far
        new_shape = self.labels[self.inside].shape
        decision = partial(decide_logits, nonlin=self.nonlin, regions=self.regions, min_probability=min_probability)
        self.parts = [Slices(grid.logits, new_shape, grid.interpolation, decision, device) for grid in grids]
        self.channels = grids[0].logits.shape[0]

    @torch.inference_mode()
    def go_through(self) -> None:
        """Go through the scan, slice by slice."""
        first = self.inside[0].start
        empty = np.zeros((self.members, *self.labels.shape[1:]), self.labels.dtype)
        for index in (*range(first), *range(self.inside[0].stop, len(self.labels))):  # which no network saw
            self._take(index, empty)
        seen = (slice(None), *self.inside[1:])
        for index, code, own in self._slices():
            members = empty.copy()
            members[seen] = own
            self.labels[first + index][self.inside[1:]] = self._label(np.where(code < 0, -1 - code, code))
            self.uncertain[first + index][self.inside[1:]] = code < 0
            self._take(first + index, members)

    def _slices(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield number, decision ``(Y, X)`` and labels of the members ``(M, Y, X)`` of each slice that they saw."""
        for index, filled, open_y, open_x in open_voxels(self.parts):
            code = filled.to(torch.int64, copy=True)
            # of voxels that are open, nothing is known yet
            settled = self._label(code.clamp(min=0).cpu().numpy())
            own = np.repeat(settled[None], self.members, 0)
            for y, x in chunks(open_y, open_x, self.channels):
                total: Tensor | None = None
                place = y.cpu().numpy(), x.cpu().numpy()
                for member, part in enumerate(self.parts):
                    logits = part.interpolate(index, y, x)
                    winner = winners(logits, self.regions).cpu().numpy()
                    own[member][place] = np.array([0, *self.order])[winner] if self.regions else winner
                    values = self.nonlin(logits)
                    total = values if total is None else total.add_(values)
                if total is not None:
                    mean = total.div_(self.members)
                    code[y, x] = decide(mean, self.regions, self.min_probability).to(torch.int64)
            yield index, code.cpu().numpy(), own

    def _label(self, code: np.ndarray) -> np.ndarray:
        """Return the label of each decision; the last region that is there decides, as in nnU-Net."""
        if not self.regions:
            return code.astype(self.labels.dtype)
        labels = np.zeros(code.shape, self.labels.dtype)
        for channel, label in enumerate(self.order):
            labels[(code >> channel) & 1 == 1] = label
        return labels

    def _take(self, index: int, members: np.ndarray) -> None:
        """Count a slice of which the consensus is there."""
        agreed = self.labels[index]
        self.agreement.add(agreed[None], [one[None] for one in members], index)
        differs = (members != agreed).any(0)
        self.uncertain[index] |= differs
        much = int(np.count_nonzero(differs)), int(np.count_nonzero(agreed))
        if much > self._most:
            self._most = much
            self.worst = WorstSlice(index, agreed.copy(), members.copy())


def decide_logits(logits: Tensor, nonlin: Callable[[Tensor], Tensor], regions: bool, min_probability: float) -> Tensor:
    """Return what logits come to, as :func:`decide` does of probabilities, without these where they are not needed."""
    if regions or min_probability > 0:
        return decide(nonlin(logits), regions, min_probability)
    return winners(logits, regions=False)


def compare(
    labels: LabelManager,
    classes: Mapping[str, Region],
    grids: Sequence[Grid],
    frame: Frame,
    device: torch.device,
    min_probability: float = 0.0,
) -> Comparison:
    """Compare what networks said of a scan; on the CPU where the GPU has no memory left.

    Args:
        labels: nnU-Net's label manager of the networks.
        classes: Name of each class, or region, and its label or labels, without background.
        grids: What each network said.
        frame: Where on the scan they looked.
        device: Device to compute on.
        min_probability: Mean probability below which a voxel is uncertain; 0 asks for agreement alone.
    """
    cpu = torch.device("cpu")
    if device.type != "cpu":
        with contextlib.suppress(torch.cuda.OutOfMemoryError):  # the networks' memory may be all that the GPU has
            return _gone_through(Comparison(labels, classes, grids, frame, min_probability, device))
    return _gone_through(Comparison(labels, classes, grids, frame, min_probability, cpu))


def _gone_through(comparison: Comparison) -> Comparison:
    comparison.go_through()
    return comparison


def why_not_compared(labels: LabelManager) -> str | None:
    """Return why no consensus is defined for the labels of a model, None where one is."""
    if type(labels) is not LabelManager:
        return f"the plans have a label manager of their own ({type(labels).__name__})"
    if labels.has_regions and labels.num_segmentation_heads > MOST_REGIONS:
        return f"there are {labels.num_segmentation_heads} regions, expected {MOST_REGIONS} at most"
    return None
