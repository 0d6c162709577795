from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from skimage.transform import resize

from nnunet_ext.inference.resampling import resample_axis_by_axis, with_less_memory


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(2, 12)] * 3),
    new_shape=st.tuples(*[st.integers(1, 25)] * 3),
    order=st.sampled_from([0, 1, 3]),
    order_z=st.sampled_from([0, 1, 3]),
    force=st.sampled_from([None, True, False]),
    apart=st.sampled_from([None, 0, 1, 2]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_equals_nnunet(seed, shape, new_shape, order, order_z, force, apart):
    data = np.random.default_rng(seed).normal(0, 1, (2, *shape)).astype(np.float32)
    spacing = [1.0, 1.0, 1.0]
    if apart is not None:
        spacing[apart] = 5.0
    stock = partial(resample_data_or_seg_to_shape, is_seg=False, order=order, order_z=order_z, force_separate_z=force)
    expected = stock(data, new_shape, spacing, spacing)
    found = with_less_memory(stock)(data, new_shape, spacing, spacing)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16])
@pytest.mark.parametrize(
    ("shape", "new_shape", "order", "spacing"),
    [
        ((70, 83, 95), (43, 130, 51), 3, [1, 1, 1]),  # matrices of several blocks, finer and coarser
        ((9, 101, 67), (9, 67, 101), 3, [5, 1, 1]),  # only in plane
        ((41, 37, 1), (90, 37, 1), 1, [1, 1, 1]),
        ((5, 40, 52), (17, 33, 78), 3, [5, 1, 1]),
        ((66, 34, 50), (33, 80, 40), 2, [1, 5, 1]),
        ((3, 35, 66), (4, 70, 33), 0, [1, 1, 1]),
    ],
)
def test_equals_nnunet_on_larger_images_of_all_types(monkeypatch, dtype, shape, new_shape, order, spacing):
    monkeypatch.setattr("nnunet_ext.inference.resampling._SLAB_BYTES", 2**15)  # some slices
    data = (100 * np.random.default_rng(0).normal(0, 1, (1, *shape))).astype(dtype)
    stock = partial(resample_data_or_seg_to_shape, is_seg=False, order=order, order_z=0, force_separate_z=None)
    expected, found = (resample(data, new_shape, spacing, spacing) for resample in (stock, with_less_memory(stock)))
    assert found.dtype == dtype
    if dtype == np.int16:  # cut off, so that rounding decides where a value is whole
        assert np.abs(found - expected).max() <= 1
        assert (found != expected).mean() < 1e-3
    else:
        allowed = {np.float32: 2e-6, np.float16: 1e-3, np.float64: 1e-12}[dtype]
        np.testing.assert_allclose(found, expected, atol=allowed * np.abs(data).max())


def test_a_channel_that_is_a_view_is_resampled_and_stays_as_it_is():
    whole = np.random.default_rng(0).normal(0, 1, (1, 20, 22, 24)).astype(np.float32)
    view = whole.transpose(0, 3, 1, 2)[:, 2:-3, ::2, 1:]
    before, spacing = view.copy(), [1.0, 1.0, 1.0]
    expected = resample_data_or_seg_to_shape(before.copy(), (9, 20, 8), spacing, spacing, order=3)
    found = resample_axis_by_axis(view, (9, 20, 8), spacing, spacing)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(before).max())
    np.testing.assert_array_equal(view, before)


def test_splines_are_asked_for_once_an_axis_and_not_for_each_slice(monkeypatch):
    calls = []
    monkeypatch.setattr("nnunet_ext.inference.resampling.resize", lambda *a, **k: calls.append(a[1]) or resize(*a, **k))
    data = np.random.default_rng(0).normal(0, 1, (2, 31, 29, 27)).astype(np.float32)
    resample_axis_by_axis(data, (15, 17, 19), [1, 1, 1], [2, 2, 2])
    assert sorted(calls) == [(15, 31), (17, 29), (19, 27)]


def test_a_shape_that_is_wanted_already_costs_nothing():
    data = np.zeros((1, 3, 4, 5), np.float32)
    assert resample_axis_by_axis(data, np.array([3, 4, 5]), [1, 1, 1], [2, 2, 2]) is data


@pytest.mark.parametrize(
    "other",
    [
        partial(resample_torch_fornnunet, is_seg=False),
        partial(resample_data_or_seg_to_shape, is_seg=True, order=1),
        partial(resample_data_or_seg_to_shape, some_new_argument=1),
        resample_torch_fornnunet,
    ],
)
def test_functions_that_it_does_not_know_stay(other):
    assert with_less_memory(other) is other
