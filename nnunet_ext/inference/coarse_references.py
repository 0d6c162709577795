"""References for a propagation model out of a prediction: of its sampled slices alone where a 2D model makes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from nnunet_ext.inference.case import Model, Prepared
from nnunet_ext.inference.propagated import Carrier, GivenSlices, nothing, slices_of_crop, to_grid
from nnunet_ext.propagation.references import CHOICES, How, choose, sampled_slices
from nnunet_ext.propagation.sparse import slice_numbers

NO_CLASS = "the model finds no class in the slices that it was asked for, so that there is nothing to carry"

TOO_SMALL = "what the model finds is smaller than a voxel of the propagation model, so that there is nothing to carry"


def check_how(how: Any) -> How:
    """Return a choice of references.

    Raises:
        ValueError: If it is neither ``largest``, ``uniform`` nor a positive number.
    """
    number = isinstance(how, int) and not isinstance(how, bool) and how > 0
    if how not in CHOICES and not number:
        raise ValueError(f"propagate_references must be {', '.join(CHOICES)} or a positive number, got {how!r}")
    chosen: How = how
    return chosen


def segments_slices(model: Model, carrier: Model) -> bool:
    """Whether a model segments single slices, along the axis along which the propagation model carries masks."""
    return model.dimensions == 2 and model.plans.transpose_forward[0] == carrier.plans.transpose_forward[0]


def of_slices(prepared: Prepared, indices: Sequence[int]) -> Prepared:
    """Return a case that consists of some slices of another one, as if the image had no others.

    Args:
        prepared: Case of a 2d configuration, ``(C, T, H, W)``.
        indices: Indices of the slices in it.
    """
    number, before = len(indices), prepared.properties
    properties: dict[str, Any] = {
        **before,
        "shape_before_cropping": (number, *before["shape_before_cropping"][1:]),
        "bbox_used_for_cropping": [[0, number], *before["bbox_used_for_cropping"][1:]],
        "shape_after_cropping_and_before_resampling": (
            number,
            *before["shape_after_cropping_and_before_resampling"][1:],
        ),
    }
    return replace(prepared, data=prepared.data[:, list(indices)], properties=properties, carried=None)


def carry_prediction(
    prepared: Prepared,
    model: Model,
    carrier: Carrier,
    how: How,
    segment: Callable[[Prepared], Tensor],
    label_map: Callable[[Tensor, Prepared], np.ndarray],
    all_heads: bool = False,
) -> Tensor:
    """Segment sampled slices of a case, choose references among them, and carry them through the whole case.

    Args:
        prepared: Case, prepared for both models; afterwards it is exported as the logits are, and its record is
            complete.
        model: Model that segments.
        carrier: Networks of the propagation model.
        how: Which slices are references: ``"largest"``, ``"uniform"`` or how many.
        segment: Returns the logits of a prepared case, and empties it of its image.
        label_map: Returns the label map of logits and their case, on the image's own grid.
        all_heads: As in :meth:`Carrier.carry`.

    Returns:
        Logits of the whole case. Where no sampled slice has a class, or none is left on the grid of the propagation
        model, those of the model that segments, or background beside the sampled slices where it segmented no others.
    """
    volume = prepared.carried or replace(prepared, data=prepared.data, properties=dict(prepared.properties))
    prepared.carried = None
    slices = volume.data.shape[1]
    sampled = sampled_slices(slices)
    alone = segments_slices(model, carrier.model)
    segmented = of_slices(prepared, sampled) if alone else prepared
    if alone:
        prepared.data = np.empty(0, np.float32)
    logits = segment(segmented)
    start = time.perf_counter()
    given = _given(label_map(logits, segmented), sampled, volume, carrier.model, alone)
    along = np.moveaxis(given.labels, given.axis, 0)
    indices = choose(along, given.indices, how)
    record: dict[str, Any] = {"references": [], "slices": len(sampled) if alone else slices}
    references = given.chosen(indices)
    on_grid = to_grid(references, volume, carrier.model)
    exported = None
    if any((labels > 0).any() for labels in on_grid.values()):
        del logits
        carried = carrier.carry(volume, references, all_heads=all_heads, on_grid=on_grid)
        logits, exported = carried.logits, carried.exported
        record["classes"] = [int(label) for label in carried.result.classes]
    else:
        record["reason"] = TOO_SMALL if indices else NO_CLASS
        indices = []
        if alone:
            logits, exported = nothing(volume, carrier.model, given, all_heads)
    if exported is not None:
        _export_as(prepared, volume, exported)
    total = volume.properties["shape_before_cropping"][0]
    numbers = slice_numbers(volume.properties, given.axis, int(total))
    record["references"] = sorted(numbers.number(index) for index in indices)
    record["seconds"] = round(time.perf_counter() - start, 3)
    prepared.record["propagation"] = record
    return logits


def propagation_line(case: str, record: dict[str, Any]) -> str:
    """Return one line on what was carried through a case."""
    if "reason" in record:
        return f"{case}: {record['reason']}; the prediction is written as it is"
    slices = ", ".join(map(str, record["references"]))
    return f"{case}: {record['slices']} slices segmented, masks of {slices} carried on in {record['seconds']:.1f} s"


def _given(labels: np.ndarray, sampled: Sequence[int], volume: Prepared, model: Model, alone: bool) -> GivenSlices:
    """Return the sampled slices of a label map, which has no others where they were segmented alone."""
    axis = int(model.plans.transpose_forward[0])
    first = slices_of_crop(volume).start
    indices = tuple(first + index for index in sampled)
    return GivenSlices(axis, indices, labels if alone else labels.take(indices, axis))


def _export_as(prepared: Prepared, volume: Prepared, exported: Any) -> None:
    """Let a case be exported as another one, of the same image."""
    prepared.properties, prepared.true_spacing = volume.properties, volume.true_spacing
    prepared.target, prepared.exported = volume.target, exported
