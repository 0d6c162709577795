"""Dice (DSC) and normalised surface Dice (NSD) of label maps, by class or region, as FLARE compares methods.

FLARE 2022 measures accuracy by both (Ma et al., "Unleashing the strengths of unlabelled data in deep learning-assisted
pan-cancer abdominal organ quantification: the FLARE22 challenge", Lancet Digital Health 2024). Which classes or regions
count, and Dice itself, are nnU-Net's; surfaces and their distances are MONAI's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_ext.data.classes import Classes as Classes
from nnunet_ext.data.classes import Region as Region
from nnunet_ext.data.classes import classes_of as classes_of

Scores = dict[str, float]
MEASURES = ("dsc", "nsd")


def compare(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], classes: Classes, tolerance_mm: float
) -> dict[str, Scores]:
    """Compare two label maps of one case.

    Args:
        reference: Label map of the ground truth, ``(*S)`` integers.
        prediction: Label map of the prediction, ``(*S)`` integers.
        spacing: Spacing of both in mm, array order.
        classes: Classes to compare. Voxels with the ignored label in the reference belong to neither map.
        tolerance_mm: Distance in mm up to which surfaces agree.

    Returns:
        Class -> ``"dsc"`` and ``"nsd"``, both between 0 and 1, both NaN for a class that neither map has.

    Raises:
        ValueError: If the shapes differ.
    """
    if reference.shape != prediction.shape:
        raise ValueError(f"label maps must have one shape, got {reference.shape} and prediction {prediction.shape}")
    ignored = None if classes.ignored is None else reference == classes.ignored
    boxes = _boxes(reference), _boxes(prediction)
    scores = {}
    for name, region in classes.regions.items():
        labels = (region,) if isinstance(region, int) else region
        box = _grown(
            _joined([of_map[label] for of_map in boxes for label in labels if label in of_map], reference.ndim), 1
        )
        outside = np.zeros(reference[box].shape, bool) if ignored is None else ignored[box]
        true, predicted = (
            region_or_label_to_mask(volume[box], region) & ~outside for volume in (reference, prediction)
        )
        scores[name] = {"dsc": dice(true, predicted), "nsd": surface_dice(true, predicted, spacing, tolerance_mm)}
    return scores


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Return the Dice coefficient of two boolean masks; NaN if both are empty."""
    tp, fp, fn, _ = (int(count) for count in compute_tp_fp_fn_tn(reference, prediction))
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan


def surface_dice(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance_mm: float, crop: bool = True
) -> float:
    """Return the share of both surfaces that lies within a tolerance of the other one.

    Surfaces are weighted by their area in mm², which marching-cube neighbourhoods of 2 voxels an axis give (MONAI's
    ``use_subvoxels``), so that a slice thickness does not count for more than it is. Outside the image is background.

    Args:
        reference: Mask of the ground truth, ``(*S)`` bool, 2D or 3D; axes of one voxel do not count, so that a 2D image
            has no faces before and behind it.
        prediction: Mask of the prediction, ``(*S)`` bool.
        spacing: Spacing of both masks in mm, array order.
        tolerance_mm: Distance in mm up to which surfaces agree, 0 or more.
        crop: Whether to cut out first what holds both masks, which gives the same value and costs less in large
            volumes.

    Returns:
        Between 0 and 1. NaN if both masks are empty, 0 if one is.
    """
    if not reference.any() or not prediction.any():
        return math.nan if not (reference.any() or prediction.any()) else 0.0
    if crop:
        box = _grown(_joined(_boxes((reference | prediction).astype(np.uint8)).values(), reference.ndim), 1)
        reference, prediction = reference[box], prediction[box]
    flat = tuple(axis for axis, size in enumerate(reference.shape) if size == 1)
    reference, prediction = np.squeeze(reference, flat), np.squeeze(prediction, flat)
    return _monai_surface_dice(
        reference, prediction, np.delete(np.asarray(spacing, float), flat).tolist(), tolerance_mm
    )


def evaluate(
    references: Mapping[str, Path],
    predictions: Mapping[str, Path],
    reader: BaseReaderWriter,
    classes: Classes,
    tolerance_mm: float,
) -> Iterable[tuple[str, dict[str, Scores]]]:
    """Compare label files, one case after another.

    Args:
        references: Case -> label file of the ground truth.
        predictions: Case -> label file of the prediction.
        reader: nnU-Net's reader of label maps.
        classes: Classes or regions to compare.
        tolerance_mm: Distance in mm up to which surfaces agree.

    Yields:
        Case and what :func:`compare` returns.

    Raises:
        ValueError: If a file cannot be read, or the two of a case differ in shape; names both.
    """
    for case, file in references.items():
        reference, properties = _read(reader, file)
        prediction, _ = _read(reader, predictions[case])
        if reference.shape != prediction.shape:
            raise ValueError(
                f"{file} has shape {reference.shape}, expected {prediction.shape} as {predictions[case]} and its image "
                "have; give the label map of this image"
            )
        yield case, compare(reference, prediction, properties["spacing"], classes, tolerance_mm)


def means(cases: Mapping[str, Mapping[str, Scores]]) -> tuple[dict[str, Scores], Scores]:
    """Return the mean of each class over the cases, and the mean over the classes, both without NaN.

    Args:
        cases: Case -> class -> measure -> value, the same classes in each case.
    """
    names = next(iter(cases.values()), {})
    classes = {
        name: {measure: _mean(scores[name][measure] for scores in cases.values()) for measure in MEASURES}
        for name in names
    }
    return classes, {measure: _mean(scores[measure] for scores in classes.values()) for measure in MEASURES}


def _monai_surface_dice(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance_mm: float
) -> float:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's dependencies announce their own deprecations while it imports them
        from monai.metrics import compute_surface_dice

        # distances between neighbours are sums of floats: what is exactly at the tolerance counts as within it
        tolerance = tolerance_mm * (1 + 1e-6)
        predicted, true = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (prediction, reference))
        value = compute_surface_dice(
            predicted, true, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True
        )
    return float(value[0, 0])


def _read(reader: BaseReaderWriter, file: Path) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        array, properties = reader.read_seg(str(file))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{file} cannot be read as a label map ({reason}); replace it") from error
    return array[0].astype(np.int32), properties


def _boxes(labels: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Return the bounding box of each label above 0, found in one pass."""
    from scipy.ndimage import find_objects

    return {label: box for label, box in enumerate(find_objects(labels), start=1) if box is not None}


def _joined(boxes: Iterable[tuple[slice, ...]], axes: int) -> tuple[slice, ...]:
    boxes = list(boxes)
    if not boxes:
        return (slice(0, 0),) * axes
    return tuple(
        slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) for axis in range(axes)
    )


def _grown(box: tuple[slice, ...], margin: int) -> tuple[slice, ...]:
    """Return a box with a margin, which the image may cut off; so it has one voxel only where the image has."""
    return tuple(slice(max(0, axis.start - margin), axis.stop + margin) for axis in box)


def _mean(values: Iterable[float]) -> float:
    counted = [value for value in values if not math.isnan(value)]
    return sum(counted) / len(counted) if counted else math.nan
