from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet

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
