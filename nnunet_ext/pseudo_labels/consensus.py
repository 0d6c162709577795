"""What several networks together say of one scan, and where they disagree.

The consensus is the largest of the mean probabilities; for regions, the last one whose mean probability is above 0.5,
in nnU-Net's order. Probabilities are averaged at the grid of the networks and interpolated as nnU-Net does logits:
means are as linear. Networks with other plans have other grids, which are mixed a slice at a time.
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
from nnunet_ext.inference.case import Model, Prepared
from nnunet_ext.inference.fast_export import SAME, Interpolation, Slices, mixed_slices, winners
from nnunet_ext.inference.writing import export, interpolation_of
from nnunet_ext.pseudo_labels.agreement import Agreement
from nnunet_ext.pseudo_labels.panel import Group, Panel
from nnunet_ext.pseudo_labels.probabilities import LabelMaps, MeanProbabilities


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


def find_consensus(panel: Panel, prepared: list[Prepared], folder: Path, min_probability: float = 0.0) -> Consensus:
    """Let all members predict a scan.

    Args:
        panel: The members.
        prepared: The scan as each group sees it; emptied, so that no image is held longer than needed.
        folder: On whose disk intermediate files lie; they have no name and go with the process.
        min_probability: Mean probability below which a voxel is uncertain; 0 asks for agreement alone.

    Raises:
        DiskFullError: If there is no room for the intermediate files.
        MemberFailedError: If a network cannot predict the scan; names it.
    """
    clock = time.perf_counter()
    seconds = {"network": 0.0}
    with contextlib.ExitStack() as stack, files.naming_full_disk(folder):
        maps: list[LabelMaps] = []
        parts: list[tuple[Group, Prepared, MeanProbabilities]] = []
        for group in panel.groups:
            own = prepared.pop(0)
            means = _predict_group(panel, group, own, folder, maps, seconds)
            stack.callback(means.close)
            parts.append((group, replace(own, data=np.empty(0, np.float32)), means))
            del own
        stack.callback(maps[0].close)
        seconds["members"] = time.perf_counter() - clock
        labels, uncertain = _mix(panel, parts, maps[0], folder, min_probability)
        agreement, worst = _compare(panel, labels, uncertain, maps[0])
    seconds["consensus"] = time.perf_counter() - clock - seconds["members"]
    return Consensus(labels, uncertain, agreement, worst, seconds)


def decide(probabilities: Tensor, regions: bool, min_probability: float = 0.0) -> Tensor:
    """Return what mean probabilities come to.

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
    surest = (torch.maximum(probabilities, 1 - probabilities).amin(0)) if regions else probabilities.amax(0)
    return torch.where(surest >= min_probability, code, -1 - code)


def _predict_group(
    panel: Panel,
    group: Group,
    prepared: Prepared,
    folder: Path,
    maps: list[LabelMaps],
    seconds: dict[str, float],
) -> MeanProbabilities:
    """Let the members of a group predict; their label maps go to ``maps``, which gets its one entry here."""
    means: MeanProbabilities | None = None
    order = [int(axis) for axis in group.model.plans.transpose_backward]
    for seat in group.seats:
        own = replace(prepared, record=deepcopy(prepared.record))
        try:
            predictor = seat.take()
            logits = predictor.predict_logits(own)
            fast = predictor.exports_fast(own, logits, False)
            labels = export(logits, own, group.model, None, fast=fast, device=predictor.export_device).segmentation
        except files.DiskFullError:
            raise
        except Exception as error:
            reason = str(error).strip() or type(error).__name__
            raise MemberFailedError(f"{seat.member.name} cannot predict it: {reason}") from error
        seconds["network"] += own.record["seconds"]["network"]
        if labels is None:
            raise RuntimeError("the export gave no label map")
        if not maps:
            maps.append(LabelMaps(labels.shape, labels.dtype, folder))
        maps[0].add(labels)
        del labels
        turned = logits.permute(0, *(1 + axis for axis in order))  # into the scan's own order of axes
        if means is None:
            means = MeanProbabilities(turned.shape, len(group.seats), folder)
        means.add(turned, panel.labels.apply_inference_nonlin, predictor.export_device)
        del logits, turned
    if means is None:
        raise ValueError("a group has no member")
    return means


def _mix(
    panel: Panel,
    parts: Sequence[tuple[Group, Prepared, MeanProbabilities]],
    maps: LabelMaps,
    folder: Path,
    min_probability: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return label map and what is below the threshold, both ``(*S)`` of the scan."""
    labels, below = np.zeros(maps.shape, maps.dtype), np.zeros(maps.shape, bool)
    boxes = [_turned(own.properties["bbox_used_for_cropping"], group.model) for group, own, _ in parts]
    if any(box != boxes[0] for box in boxes):
        raise ValueError(f"the models crop the scan differently, to {boxes}; leave out those of other preprocessors")
    inside = bounding_box_to_slice(boxes[0])
    labels_inside, below_inside = labels[inside], below[inside]
    weights = [len(group.seats) / len(panel.members) for group, _, _ in parts]
    order = [int(label) for label in panel.labels.regions_class_order] if panel.labels.has_regions else None
    rule = partial(decide, regions=order is not None, min_probability=min_probability)
    device = parts[0][0].seats[0].predictor.export_device
    with contextlib.ExitStack() as stack:
        grids = [_grid(group.model, own, means, folder, stack) for group, own, means in parts]
        for candidate in dict.fromkeys((device, torch.device("cpu"))):
            slices = [Slices(means, labels_inside.shape, how, rule, candidate) for means, how in grids]
            try:
                for index, code in enumerate(mixed_slices(slices, weights)):
                    below_inside[index] = code < 0
                    labels_inside[index] = _label(np.where(code < 0, -1 - code, code), order)
                break
            except torch.cuda.OutOfMemoryError:  # the networks' memory may be all that the GPU has
                if candidate.type == "cpu":
                    raise
    return labels, below


def _label(code: np.ndarray, order: Sequence[int] | None) -> np.ndarray:
    """Return the label of each decision; the last region that is there decides, as in nnU-Net."""
    if order is None:
        return code
    labels = np.zeros(code.shape, np.int64)
    for channel, label in enumerate(order):
        labels[(code >> channel) & 1 == 1] = label
    return labels


def _grid(
    model: Model, prepared: Prepared, means: MeanProbabilities, folder: Path, stack: contextlib.ExitStack
) -> tuple[MeanProbabilities, Interpolation]:
    """Return probabilities and how they are interpolated, in the scan's order of axes."""
    order = [int(axis) for axis in model.plans.transpose_backward]
    forward = [int(axis) for axis in model.plans.transpose_forward]
    shape = [means.shape[1:][axis] for axis in forward]
    interpolation = interpolation_of(model, prepared, shape)
    if interpolation is not None:
        first, second, third = (interpolation.modes[axis] for axis in order)
        return means, Interpolation((first, second, third), rounded=False)
    full = means.resampled(_resampling(model, prepared), folder)  # only nnU-Net's own function knows how
    stack.callback(full.close)
    return full, Interpolation((SAME, SAME, SAME), rounded=False)


def _resampling(model: Model, prepared: Prepared) -> Callable[[np.ndarray], np.ndarray]:
    """Return what resamples ``(1, *S)`` to the size of the scan, in the scan's order of axes."""
    properties, plans = prepared.properties, model.plans
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    current = prepared.target if len(prepared.target) == len(shape) else [spacing[0], *prepared.target]
    resample = model.configuration.resampling_fn_probabilities

    def function(volume: np.ndarray) -> np.ndarray:
        turned = volume.transpose(0, *(1 + axis for axis in plans.transpose_forward))
        result = np.asarray(resample(np.ascontiguousarray(turned), shape, current, spacing))
        return result.transpose(0, *(1 + axis for axis in plans.transpose_backward))

    return function


def _turned(box: Sequence[Sequence[int]], model: Model) -> list[list[int]]:
    return [[int(edge) for edge in box[axis]] for axis in model.plans.transpose_backward]


def _compare(panel: Panel, labels: np.ndarray, uncertain: np.ndarray, maps: LabelMaps) -> tuple[Agreement, WorstSlice]:
    """Count how much the members agree, and mark where they do not, in ``uncertain``."""
    agreement = Agreement(panel.classes.regions, len(panel.members), len(labels))
    disagreeing, inside = np.zeros(len(labels), np.int64), np.zeros(len(labels), np.int64)
    for index, (agreed, own) in enumerate(_slices(labels, maps)):
        agreement.add(agreed[None], [one[None] for one in own], index)
        differs = np.zeros(agreed.shape, bool)
        for one in own:
            differs |= one != agreed
        uncertain[index] |= differs
        disagreeing[index], inside[index] = np.count_nonzero(differs), np.count_nonzero(agreed)
    worst = int((disagreeing if disagreeing.any() else inside).argmax())
    return agreement, WorstSlice(worst, labels[worst].copy(), np.stack(maps.slices(worst)))


def _slices(labels: np.ndarray, maps: LabelMaps) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    for index, agreed in enumerate(labels):
        yield agreed, maps.slices(index)


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
