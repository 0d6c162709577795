"""The fast export against nnU-Net's own: resampling of all logits, then its label manager."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.no_resampling import no_resampling_hack
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.ndimage import gaussian_filter

from nnunet_ext.inference import fast_export
from nnunet_ext.inference.fast_export import Interpolation, label_map, plan_interpolation, winners

DATA = Path(os.environ.get("NNUNET_EXT_DATA", Path(__file__).parents[3] / "shared" / "data"))
SCIPY = partial(resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None)
TORCH = partial(resample_torch_fornnunet, is_seg=False, force_separate_z=None, num_threads=1)
LINEAR = Interpolation(("linear",) * 3, rounded=True)


def logits_of(seed, classes, shape, smooth=1.5, dtype=np.float16):
    noise = np.random.default_rng(seed).normal(0, 1, (classes, *shape))
    noise = gaussian_filter(noise, (0, smooth, smooth, smooth))
    return (8 * noise / noise.std()).astype(dtype)


def label_manager(classes, regions):
    if regions:  # the last region is a single label, the others overlap
        labels = {"background": 0} | {f"r{n}": [n, 99] if n < classes else n for n in range(1, classes + 1)}
        # Labels that are not the channels' numbers, in an order of their own.
        return LabelManager(labels, regions_class_order=[(3 * n) % 7 + n for n in range(1, classes + 1)])
    return LabelManager({"background": 0} | {f"c{n}": n for n in range(1, classes)}, None)


def stock(resampling, logits, new_shape, spacing, new_spacing, manager):
    return np.asarray(manager.convert_logits_to_segmentation(resampling(logits, new_shape, spacing, new_spacing)))


def fast(resampling, logits, new_shape, spacing, new_spacing, manager):
    how = plan_interpolation(resampling, logits.shape[1:], new_shape, spacing, new_spacing)
    return label_map(logits, new_shape, how, manager.regions_class_order if manager.has_regions else None)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(2, 9)] * 3),
    new_shape=st.tuples(*[st.integers(1, 22)] * 3),
    classes=st.integers(1, 6),
    regions=st.booleans(),
    resampling=st.sampled_from([SCIPY, TORCH]),
    apart=st.sampled_from([None, 0, 1, 2]),
    dtype=st.sampled_from([np.float16, np.float32]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_equals_stock_on_random_logits(seed, shape, new_shape, classes, regions, resampling, apart, dtype):
    classes = max(classes, 2) if regions else classes
    logits = logits_of(seed, classes, shape, smooth=0.5, dtype=dtype)
    spacing = [1.0, 1.0, 1.0]
    if apart is not None:  # so anisotropic that nnU-Net resamples slices apart
        spacing[apart] = 5.0
    manager = label_manager(classes, regions)
    expected = stock(resampling, logits, new_shape, spacing, spacing, manager)
    found = fast(resampling, logits, new_shape, spacing, spacing, manager)
    assert found.shape == tuple(new_shape)
    # Small volumes: one voxel where two logits differ by rounding is more than the share allowed for large ones.
    assert (found != expected).sum() <= max(1, 1e-4 * expected.size)


@pytest.mark.parametrize("classes", [2, 14, 104])
@pytest.mark.parametrize("resampling", [SCIPY, TORCH])
def test_differs_from_stock_in_at_most_one_voxel_of_ten_thousand(classes, resampling):
    logits = logits_of(1, classes, (24, 30, 28))
    manager = label_manager(classes, False)
    arguments = (resampling, logits, (61, 60, 77), [2, 2, 2], [0.8, 1, 0.7], manager)
    expected, found = stock(*arguments), fast(*arguments)
    assert len(np.unique(expected)) == classes
    assert (found != expected).mean() <= 1e-4


def test_a_class_that_is_nowhere_the_largest_can_win_between_voxels():
    # Halfway between (10, 0, 6) and (0, 10, 6) the mean is (5, 5, 6).
    logits = np.zeros((3, 2, 2, 2), np.float32)
    logits[0, 0], logits[1, 1], logits[2] = 10, 10, 6
    found = label_map(logits, (3, 2, 2), LINEAR)
    assert found[:, 0, 0].tolist() == [0, 2, 1]


def test_only_blocks_whose_corners_disagree_are_interpolated(monkeypatch):
    interpolated = []
    original = fast_export.Slices.interpolate
    monkeypatch.setattr(
        fast_export.Slices,
        "interpolate",
        lambda self, p, y, x: interpolated.append(len(y)) or original(self, p, y, x),
    )
    logits = np.zeros((2, 10, 10, 10), np.float16)
    logits[0, 5:], logits[1, :5] = 1, 1
    found = label_map(logits, (40, 40, 40), LINEAR)
    assert found.sum() == 20 * 40 * 40
    assert sum(interpolated) == 4 * 40 * 40  # the four slices between coarse slices 4 and 5


def test_the_buffers_are_bounded(monkeypatch):
    logits = logits_of(3, 5, (6, 8, 8), smooth=0.3)
    expected = label_map(logits, (12, 20, 20), LINEAR)
    sizes = []
    original = fast_export.Slices.interpolate
    monkeypatch.setattr(fast_export, "BUFFER_VALUES", 50)
    monkeypatch.setattr(
        fast_export.Slices, "interpolate", lambda self, p, y, x: sizes.append(len(y)) or original(self, p, y, x)
    )
    np.testing.assert_array_equal(label_map(logits, (12, 20, 20), LINEAR), expected)
    assert max(sizes) == 10


def sure(values, least=0.6):
    """The largest of two values, or a negative number where it is below a threshold."""
    best = values.max(0)
    return torch.where(best.values >= least, best.indices, -1 - best.indices)


def test_what_is_known_of_several_grids_is_so():
    """Where all of them know, each is decided alike once it is interpolated; unsure corners are never known."""
    new_shape, parts, naive = (13, 20, 22), [], []
    for seed, shape in enumerate(((6, 9, 10), (7, 12, 8), new_shape)):
        values = torch.from_numpy(logits_of(seed // 2, 3, shape, 2.5, np.float32)).softmax(0)
        how = plan_interpolation(SCIPY, shape, new_shape, (1, 1, 1), (1, 1, 1))
        parts.append(fast_export.Slices(values, new_shape, how, sure))
        naive.append(sure(torch.from_numpy(SCIPY(values.numpy(), new_shape, (1, 1, 1), (1, 1, 1)))))
    known = 0
    for index, filled, y, x in fast_export.open_voxels(parts):
        closed = torch.ones(new_shape[1:], dtype=torch.bool)
        closed[y, x] = False
        known += int(closed.sum())
        for one in naive:
            assert torch.equal(one[index][closed], filled[closed])
            assert (one[index][closed] >= 0).all()
    assert known > 100


def test_grids_of_other_results_are_refused():
    parts = [fast_export.Slices(torch.zeros(2, 3, 3, 3), shape, LINEAR, sure) for shape in ((4, 4, 4), (4, 4, 5))]
    with pytest.raises(ValueError, match=r"one shape, got \[\(4, 4, 4\), \(4, 4, 5\)\]"):
        next(fast_export.open_voxels(parts))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_logits_are_left_as_they_are(dtype):
    logits = logits_of(6, 4, (5, 5, 5), dtype=dtype)
    before = logits.copy()
    label_map(logits, (9, 9, 9), LINEAR)
    np.testing.assert_array_equal(logits, before)


def test_equal_logits_go_to_the_first_class():
    assert winners(torch.ones(3, 2, 2, 2), False).unique().tolist() == [0]
    assert winners(torch.tensor([[0.0], [2.0], [2.0]]), False).tolist() == [1]


def test_regions_are_decided_by_the_last_positive_one():
    logits = torch.tensor([[3.0, 3.0, -1.0, 0.0], [-2.0, 2.0, 5.0, 0.0]])
    assert winners(logits, True).tolist() == [1, 2, 2, 0]


def test_writes_into_a_view_of_a_larger_array():
    logits = logits_of(4, 3, (5, 6, 7))
    whole = np.full((12, 14, 16), 9, np.uint8)
    inside = whole[1:11, 1:13, 1:15]
    assert label_map(logits, (10, 12, 14), LINEAR, out=inside) is inside
    np.testing.assert_array_equal(inside, label_map(logits, (10, 12, 14), LINEAR))
    assert (whole[0] == 9).all()


def test_many_labels_need_two_bytes():
    logits = logits_of(5, 300, (2, 2, 2))
    assert label_map(logits, (2, 2, 2), LINEAR).dtype == np.uint16
    assert label_map(logits[:256], (2, 2, 2), LINEAR).dtype == np.uint8


@pytest.mark.parametrize(("logits", "shape"), [(np.zeros((2, 3, 3)), (3, 3, 3)), (np.zeros((2, 3, 3, 3)), (3, 3))])
def test_shapes_are_checked(logits, shape):
    with pytest.raises(ValueError, match=r"expected logits \(K, \*S\) and a new shape of 3"):
        label_map(logits, shape, LINEAR)
    with pytest.raises(ValueError, match=r"expected an array of shape \(3, 3, 3\) to write into, got \(2, 3, 3\)"):
        label_map(np.zeros((2, 3, 3, 3)), (3, 3, 3), LINEAR, out=np.zeros((2, 3, 3)))


@pytest.mark.parametrize(
    ("resampling", "reason"),
    [
        (partial(resample_data_or_seg_to_shape, order=3), "a spline"),
        (partial(resample_data_or_seg_to_shape), "a spline, by default"),
        (partial(resample_data_or_seg_to_shape, order=0), "nearest"),
        (partial(resample_data_or_seg_to_shape, order=1, is_seg=True), "of labels"),
        (partial(resample_torch_fornnunet, mode="nearest"), "nearest"),
        (partial(no_resampling_hack), "another function"),
        (lambda *_: None, "somebody's own"),
    ],
)
def test_resampling_that_is_not_linear_is_recognised(resampling, reason):
    assert plan_interpolation(resampling, (4, 4, 4), (8, 8, 8), [1, 1, 1], [1, 1, 1]) is None, reason


def test_across_slices_that_are_resampled_apart_only_known_modes_count():
    spline = partial(resample_data_or_seg_to_shape, order=1, order_z=3, force_separate_z=None)
    arguments = ((4, 4, 4), (8, 8, 8))
    assert plan_interpolation(spline, *arguments, [5, 1, 1], [5, 1, 1]) is None
    assert plan_interpolation(spline, *arguments, [1, 1, 1], [1, 1, 1]) == LINEAR
    assert plan_interpolation(SCIPY, *arguments, [5, 1, 1], [5, 1, 1]).modes == ("round", "linear", "linear")


def test_axes_that_keep_their_size_are_not_interpolated():
    how = plan_interpolation(SCIPY, (4, 5, 6), (4, 10, 6), [1, 1, 1], [1, 1, 1])
    assert how.modes == ("same", "linear", "same")


@pytest.mark.skipif(not (DATA / "ct").is_dir(), reason=f"no real data in {DATA} (NNUNET_EXT_DATA)")
def test_equals_stock_on_a_ct_with_forty_structures():
    import SimpleITK

    labels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(DATA / "ct" / "example_seg.nii.gz")))
    values = np.unique(labels)
    shape = tuple(int(n * 0.6) for n in labels.shape)
    coarse = np.stack([gaussian_filter((labels == value).astype(np.float32), 1) for value in values])
    coarse = resample_data_or_seg_to_shape(coarse, shape, [3] * 3, [5] * 3, order=1, force_separate_z=False)
    logits = np.log(coarse.clip(1e-6)).astype(np.float16)
    manager = label_manager(len(values), False)
    arguments = (SCIPY, logits, labels.shape, [5, 5, 5], [3, 3, 3], manager)
    expected, found = stock(*arguments), fast(*arguments)
    assert len(np.unique(expected)) > 30
    assert (found != expected).mean() <= 1e-4
