"""DSC and NSD: hand-computed values, crops, empty masks, regions, and nnU-Net's own evaluation."""

import math
from pathlib import Path

import numpy as np
import pytest
from data.tiny_dataset import make_plans, write_image
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunet_ext.evaluation.metrics import Classes, classes_of, compare, dice, evaluate, means, surface_dice

SPACING = (3.0, 1.0, 1.0)


def box(shape: tuple[int, ...], *ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*some) for some in ranges)] = True
    return mask


def shifted_boxes() -> tuple[np.ndarray, np.ndarray]:
    """Two boxes of 2 x 3 x 4 voxels, one a slice of 3 mm above the other."""
    shape = (8, 9, 10)
    return box(shape, (2, 4), (3, 6), (3, 7)), box(shape, (3, 5), (3, 6), (3, 7))


def hand_computed_areas() -> tuple[float, float]:
    """Area of one end of such a box, and of its sides between the ends, in mm².

    The surface consists of one piece for each corner that voxels share; pieces at edges and corners are bevelled.
    """
    flat = 2 * 3 * (1 * 1)
    edges = (
        (2 * 3 + 2 * 2) * 1 * math.hypot(3 / 2, 1 / 2)
    )  # 1 mm long, across half a voxel in z and half a one in plane
    # triangles between the middles of the three edges: half the root of the sum of the squared areas of its shadows
    corners = 4 * math.sqrt((1.5 * 0.5) ** 2 + (1.5 * 0.5) ** 2 + (0.5 * 0.5) ** 2) / 2
    sides = (2 * 3 + 2 * 2) * 3 * 1 + 4 * 3 * math.hypot(1 / 2, 1 / 2)
    return flat + edges + corners, sides


def test_hand_computed_surface_dice():
    first, second = shifted_boxes()
    end, sides = hand_computed_areas()
    whole = 2 * end + sides
    # the outer end of each box lies 3 mm from the other box, everything else at most 1 mm
    assert surface_dice(first, second, SPACING, 2.0) == pytest.approx(1 - end / whole, abs=1e-6)
    # below 1 mm the 6 flat pieces of each inner end do not touch the other's sides either
    assert surface_dice(first, second, SPACING, 0.5) == pytest.approx(1 - (end + 6) / whole, abs=1e-6)
    assert surface_dice(first, second, SPACING, 3.0) == 1
    assert surface_dice(first, second, (1.0, 1.0, 1.0), 1.0) == 1


def test_a_distance_of_exactly_the_tolerance_is_within_it():
    first, second = shifted_boxes()
    assert surface_dice(first, second, (0.1, 1.0, 1.0), 0.1) == 1


@pytest.mark.parametrize("seed", range(3))
def test_cropped_equals_uncropped(seed):
    rng = np.random.default_rng(seed)
    first = box((14, 20, 17), (0, 7), (5, 15), (3, 9)) & (rng.random((14, 20, 17)) > 0.1)  # touches the border
    second = box((14, 20, 17), (1, 8), (4, 14), (3, 8))
    cropped = surface_dice(first, second, (2.5, 0.7, 0.9), 1.0)
    assert cropped == surface_dice(first, second, (2.5, 0.7, 0.9), 1.0, crop=False)
    padded = (np.pad(mask, 4) for mask in (first, second))
    assert cropped == pytest.approx(surface_dice(*padded, (2.5, 0.7, 0.9), 1.0), abs=1e-6)
    assert 0.1 < cropped < 0.99


def test_a_flat_image_has_outlines_only():
    first, second = box((1, 20, 20), (0, 1), (5, 15), (5, 15)), box((1, 20, 20), (0, 1), (5, 15), (6, 16))
    value = surface_dice(first, second, (999.0, 1.0, 1.0), 0.5)
    assert value == surface_dice(first[0], second[0], (1.0, 1.0), 0.5)
    # outlines of 10 x 10 voxels: 36 straight pieces of 1 mm and 4 bevels of root 1/2. Shifted by a voxel, each loses
    # one side (9 pieces and 2 bevels) and of the opposite side all but the bevels, which lie on the other's lines
    assert value == pytest.approx(1 - (18 + 2 * math.sqrt(0.5)) / (36 + 4 * math.sqrt(0.5)), abs=1e-6)


def test_empty_masks():
    some, none = box((5, 6, 7), (1, 3), (1, 3), (1, 3)), np.zeros((5, 6, 7), bool)
    assert math.isnan(surface_dice(none, none, SPACING, 2.0))
    assert math.isnan(dice(none, none))
    for first, second in ((some, none), (none, some)):
        assert surface_dice(first, second, SPACING, 2.0) == dice(first, second) == 0
    assert surface_dice(some, some, SPACING, 0.0) == dice(some, some) == 1


def test_classes_that_neither_map_has_do_not_count():
    reference = box((5, 6, 7), (1, 3), (1, 3), (1, 3)).astype(np.uint8)
    classes = Classes({"there": 1, "absent": 2})
    scores = compare(reference, reference, SPACING, classes, 2.0)
    assert scores["there"] == {"dsc": 1, "nsd": 1}
    assert all(math.isnan(value) for value in scores["absent"].values())
    missed = compare(reference, 0 * reference, SPACING, classes, 2.0)
    by_class, mean = means({"a": scores, "b": missed})
    assert by_class["there"] == mean == {"dsc": 0.5, "nsd": 0.5}
    assert math.isnan(by_class["absent"]["dsc"])
    assert means({}) == ({}, pytest.approx({"dsc": math.nan, "nsd": math.nan}, nan_ok=True))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2, 2\) and prediction \(2, 2, 3\)"):
        compare(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), SPACING, Classes({"a": 1}), 2.0)


@pytest.mark.parametrize(
    "dataset_json",
    [
        {"labels": {"background": 0, "a": 1, "b": 2, "c": 3}},
        {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}},
        {"labels": {"background": 0, "all": [1, 2, 3], "some": [2, 3], "c": 3}, "regions_class_order": [1, 2, 3]},
    ],
    ids=["labels", "ignore", "regions"],
)
def test_dice_equals_nnunets_evaluation(tmp_path: Path, dataset_json):
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 4, (6, 9, 8)).astype(np.uint8)
    prediction = np.where(rng.random(reference.shape) < 0.3, rng.integers(0, 3, reference.shape), reference)
    files = {"reference": write_image(tmp_path / "reference.nii.gz", reference, SPACING)}
    files["prediction"] = write_image(tmp_path / "prediction.nii.gz", prediction.astype(np.uint8), SPACING)
    classes = classes_of(make_plans(), dataset_json)
    expected = compute_metrics(
        str(files["reference"]),
        str(files["prediction"]),
        SimpleITKIO(),
        list(classes.regions.values()),
        classes.ignored,
    )
    found = dict(
        evaluate({"x": files["reference"]}, {"x": files["prediction"]}, SimpleITKIO(), classes, tolerance_mm=2.0)
    )
    assert {name: scores["dsc"] for name, scores in found["x"].items()} == pytest.approx(
        {name: float(expected["metrics"][region]["Dice"]) for name, region in classes.regions.items()}
    )


def test_the_spacing_is_the_files_own(tmp_path: Path):
    first, second = (
        write_image(tmp_path / f"{number}.nii.gz", mask.astype(np.uint8), SPACING)
        for number, mask in enumerate(shifted_boxes())
    )
    ((case, scores),) = evaluate({"x": first}, {"x": second}, SimpleITKIO(), Classes({"a": 1}), 2.0)
    end, sides = hand_computed_areas()
    assert case == "x"
    assert scores["a"]["nsd"] == pytest.approx(1 - end / (2 * end + sides), abs=1e-6)
    assert scores["a"]["dsc"] == 0.5


def test_files_that_cannot_be_compared_are_named(tmp_path: Path):
    small = write_image(tmp_path / "small.nii.gz", np.zeros((2, 3, 4), np.uint8))
    large = write_image(tmp_path / "large.nii.gz", np.zeros((2, 3, 5), np.uint8))
    with pytest.raises(ValueError, match=r"small.nii.gz has shape \(2, 3, 4\), expected \(2, 3, 5\) as .*large.nii.gz"):
        list(evaluate({"x": small}, {"x": large}, SimpleITKIO(), Classes({"a": 1}), 2.0))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.nii.gz cannot be read as a label map \(.*\); replace it"):
        list(evaluate({"x": broken}, {"x": large}, SimpleITKIO(), Classes({"a": 1}), 2.0))
