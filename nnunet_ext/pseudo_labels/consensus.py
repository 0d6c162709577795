"""What several networks together say of one scan, and where they disagree.

The consensus is the largest of the mean probabilities at the size of the scan, as nnU-Net's ensembles are: each
network's logits are interpolated, then made probabilities. For regions it is the last one whose mean probability is
above 0.5, in nnU-Net's order. Logits lie in files, and the scan is gone through slice by slice for all networks at
once; where all corners of a block of every grid have the same winner, all networks and their mean have it as well.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from torch import Tensor

from nnunet_ext import files
from nnunet_ext.inference.case import CaseConfiguration, Model, Prepared
from nnunet_ext.inference.fast_export import SAME, Interpolation, Slices, chunks, open_voxels, winners
from nnunet_ext.inference.writing import interpolation_of
from nnunet_ext.pseudo_labels.agreement import Agreement
from nnunet_ext.pseudo_labels.logits_file import LogitsFile
from nnunet_ext.pseudo_labels.panel import Group, Panel, Seat


class MemberFailedError(RuntimeError):
    """A network could not predict a scan; the message names it."""


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
class Consensus:
    """What the networks say of a scan, at its own size and order of axes.

    Attributes:
        labels: Label map ``(*S)``.
        uncertain: Where a network disagrees with it, or its probability is below the threshold, ``(*S)`` bool.
        agreement: Counts, of which the scores are made.
        worst: The slice that they disagree about most.
        seconds: Stage -> seconds.
    """

    labels: np.ndarray
    uncertain: np.ndarray
    agreement: Agreement
    worst: WorstSlice
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Grid:
    """Logits of one network, and how they come to the size of the scan; all in the scan's own order of axes."""

    logits: LogitsFile
    interpolation: Interpolation


def find_consensus(panel: Panel, prepared: list[Prepared], folder: Path, min_probability: float = 0.0) -> Consensus:
    """Let all members predict a scan.

    Args:
        panel: The members.
        prepared: The scan as each group sees it; emptied, so that no image is held longer than needed.
        folder: On whose disk the logits lie meanwhile: two bytes a voxel of the networks' grid, class and network, in
            files without names.
        min_probability: Mean probability below which a voxel is uncertain; 0 asks for agreement alone.

    Raises:
        DiskFullError: If there is no room for the logits.
        MemberFailedError: If a network cannot predict the scan; names it.
        ValueError: If the models crop the scan differently.
    """
    clock = time.perf_counter()
    seconds = {"network": 0.0}
    grids: list[_Grid] = []
    shapes: list[tuple[list[int], list[list[int]]]] = []
    with contextlib.ExitStack() as stack, files.naming_full_disk(folder):
        for group in panel.groups:
            own = prepared.pop(0)
            for seat in group.seats:
                try:
                    grids.append(_predict(seat, group, own, folder, stack, seconds))
                except (files.DiskFullError, MemoryError):
                    raise
                except Exception as error:
                    reason = str(error).strip() or type(error).__name__
                    raise MemberFailedError(f"{seat.member.name} cannot predict it: {reason}") from error
            order, properties = group.model.plans.transpose_backward, own.properties
            box = [[int(edge) for edge in properties["bbox_used_for_cropping"][axis]] for axis in order]
            shapes.append(([int(properties["shape_before_cropping"][axis]) for axis in order], box))
            del own, properties
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                f"the models crop the scan differently (size and box {shapes}), expected the same box; leave out those "
                "with another preprocessor"
            )
        seconds["networks_and_files"] = time.perf_counter() - clock
        device = panel.groups[0].seats[0].predictor.export_device
        for candidate in dict.fromkeys((device, torch.device("cpu"))):
            try:
                found = _Comparison(panel, grids, *shapes[0], min_probability, candidate)
                found.go_through()
                break
            except torch.cuda.OutOfMemoryError:  # the networks' memory may be all that the GPU has
                if candidate.type == "cpu":
                    raise
    seconds["consensus"] = time.perf_counter() - clock - seconds["networks_and_files"]
    return Consensus(found.labels, found.uncertain, found.agreement, found.worst, seconds)


def _predict(
    seat: Seat, group: Group, prepared: Prepared, folder: Path, stack: contextlib.ExitStack, seconds: dict[str, float]
) -> _Grid:
    """Let one member predict, and write its logits to a file that ``stack`` closes."""
    own = replace(
        prepared, record=deepcopy(prepared.record)
    )  # which predict_logits completes, and empties of the image
    logits = seat.take().predict_logits(own)
    seconds["network"] += own.record["seconds"]["network"]
    model = group.model
    order = [int(axis) for axis in model.plans.transpose_backward]
    interpolation = interpolation_of(model, own, logits.shape[1:])
    if interpolation is None:  # only nnU-Net's own function knows how
        shape = [int(size) for size in own.properties["shape_after_cropping_and_before_resampling"]]
        full = LogitsFile((len(logits), *(shape[axis] for axis in order)), logits.dtype, folder)
        stack.callback(full.close)
        full.write_resampled(logits.numpy(), _resampling(model, own))
        return _Grid(full, Interpolation((SAME, SAME, SAME), rounded=False))
    turned = logits.permute(0, *(1 + axis for axis in order))
    kept = LogitsFile(turned.shape, turned.dtype, folder)
    stack.callback(kept.close)
    kept.write(turned)
    first, second, third = (interpolation.modes[axis] for axis in order)
    return _Grid(kept, Interpolation((first, second, third), interpolation.rounded))


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


class _Comparison:
    """Consensus and agreement of networks about a scan.

    Args:
        panel: The members.
        grids: What each said.
        shape: Size of the scan, ``*S``.
        box: Part of it that the networks saw.
        min_probability: Below it a voxel is uncertain.
        device: Device to compute on.
    """

    def __init__(
        self,
        panel: Panel,
        grids: Sequence[_Grid],
        shape: Sequence[int],
        box: Sequence[Sequence[int]],
        min_probability: float,
        device: torch.device,
    ) -> None:
        self.regions, self.members = panel.labels.has_regions, len(grids)
        self.order = [int(label) for label in panel.labels.regions_class_order] if self.regions else []
        self.nonlin, self.min_probability = panel.labels.apply_inference_nonlin, min_probability
        self.inside = bounding_box_to_slice(box)
        labels = panel.labels.foreground_labels
        self.labels = np.zeros(shape, np.uint8 if len(labels) < 255 else np.uint16)
        self.uncertain = np.zeros(shape, bool)
        self.agreement = Agreement(panel.classes.regions, self.members, self.labels.shape[0])
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


def features_of(prepared: Prepared, model: Model) -> dict[str, list[float]]:
    """Return what is like or unlike in two scans: spacing and size in mm, and percentiles of the network's input."""
    data = prepared.data.reshape(len(prepared.data), -1)
    step = max(1, data.shape[1] // 100_000)
    spacing = np.asarray(prepared.true_spacing, float)
    voxels = [prepared.properties["shape_before_cropping"][axis] for axis in model.plans.transpose_backward]
    return {
        "spacing_mm": spacing.tolist(),
        "size_mm": (spacing * voxels).tolist(),
        "percentiles": np.percentile(data[:, ::step], (5, 25, 50, 75, 95), axis=1).T.ravel().tolist(),
    }
