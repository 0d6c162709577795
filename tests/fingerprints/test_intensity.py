import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nnunet_ext.fingerprints.intensity import IntensityStatistics

KEYS = ("values", "counts", "buckets", "bucket_counts")
PERCENTAGES = (0.0, 0.5, 3.7, 50.0, 99.5, 100.0)
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
INTEGERS = st.one_of(
    arrays(np.int16, SHAPES),
    arrays(np.uint8, SHAPES),
    arrays(np.int32, SHAPES, elements=st.integers(-(2**24), 2**24)),
)
FLOATS = arrays(np.float32, SHAPES, elements=st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30))


def same(a: IntensityStatistics, b: IntensityStatistics) -> bool:
    arrays_equal = all(np.array_equal(getattr(a, key), getattr(b, key)) for key in KEYS)
    return arrays_equal and all(
        getattr(a, key) == getattr(b, key) for key in ("minimum", "maximum", "total", "squares")
    )


def test_hand_computed():
    # 1 1 2 4: mean 2, squared deviations 1 1 0 4, so variance 6 / 4; the median lies between 1 and 2.
    statistics = IntensityStatistics.of(np.array([[4, 1], [1, 2]], np.float32))
    summary = statistics.summary()
    assert summary["mean"] == 2
    assert summary["std"] == pytest.approx(1.5**0.5, rel=1e-15)
    assert summary["median"] == 1.5
    assert (summary["min"], summary["max"], statistics.count) == (1, 4, 4)
    # Position 0.995 * 3 = 2.985 between the third (2) and the fourth (4).
    assert summary["percentile_99_5"] == pytest.approx(2 + 0.985 * 2, rel=1e-12)
    assert statistics.values.tolist() == [1, 2, 4]
    assert statistics.counts.tolist() == [2, 1, 1]


@settings(deadline=None, max_examples=80)
@given(INTEGERS)
def test_integers_of_any_type_are_exact(image):
    statistics = IntensityStatistics.of(image)
    flat = image.astype(np.float64).ravel()
    assert statistics.integer_valued
    assert statistics.percentiles(PERCENTAGES) == np.percentile(flat, PERCENTAGES).tolist()
    summary = statistics.summary()
    assert summary["mean"] == pytest.approx(flat.mean(), rel=1e-12, abs=1e-9)
    assert summary["std"] == pytest.approx(flat.std(), rel=1e-9, abs=1e-6)
    assert (summary["min"], summary["max"]) == (flat.min(), flat.max())


@settings(deadline=None, max_examples=80)
@given(FLOATS)
def test_floats_are_within_a_thousandth(image):
    statistics = IntensityStatistics.of(image)
    flat = image.astype(np.float64).ravel()
    for percentage, found in zip(PERCENTAGES, statistics.percentiles(PERCENTAGES), strict=True):
        position = percentage / 100 * (flat.size - 1)
        # Between two neighbours of different sign the value can be next to 0; the neighbours bound the error.
        neighbours = np.sort(flat)[[int(np.floor(position)), int(np.ceil(position))]]
        assert found == pytest.approx(np.percentile(flat, percentage), rel=0, abs=1e-3 * np.abs(neighbours).max())
    assert statistics.percentiles((0.0, 100.0)) == [flat.min(), flat.max()]
    summary = statistics.summary()
    scale = np.abs(flat).max()
    assert summary["mean"] == pytest.approx(flat.mean(), rel=1e-6, abs=1e-12 * scale)
    assert summary["std"] == pytest.approx(flat.std(), rel=1e-6, abs=1e-12 * scale)
    assert (summary["min"], summary["max"]) == (flat.min(), flat.max())


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(INTEGERS, FLOATS), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_order_and_grouping_gives_the_same(images, random):
    parts = [IntensityStatistics.of(image) for image in images]
    expected = IntensityStatistics()
    for part in parts:
        expected = expected + part
    random.shuffle(parts)
    while len(parts) > 1:
        i = random.randrange(len(parts) - 1)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    assert same(parts[0], expected)
    assert parts[0].summary() == expected.summary()


@settings(deadline=None, max_examples=30)
@given(st.lists(arrays(np.int16, SHAPES), min_size=1, max_size=4))
def test_cases_together_equal_one_array_of_all_their_voxels(images):
    together = np.concatenate([image.ravel() for image in images])
    merged = sum((IntensityStatistics.of(image) for image in images), IntensityStatistics())
    assert same(merged, IntensityStatistics.of(together))


def test_chunks_and_views_do_not_matter(monkeypatch):
    image = np.random.default_rng(0).normal(0, 300, (7, 11, 13)).astype(np.float32)
    for array in (image, image.round()):
        expected = IntensityStatistics.of(array.copy())
        monkeypatch.setattr("nnunet_ext.fingerprints.intensity._CHUNK", 17)
        view = np.zeros((9, 12, 15), np.float32)
        view[1:8, :11, 2:] = array
        found = IntensityStatistics.of(view[1:8, :11, 2:])
        monkeypatch.undo()
        assert all(np.array_equal(getattr(found, key), getattr(expected, key)) for key in KEYS)
        assert found.summary() == pytest.approx(expected.summary(), rel=1e-12)


def test_wide_integers_are_exact_too(monkeypatch):
    image = np.random.default_rng(0).integers(-(2**23), 2**23, (5, 6, 7)).astype(np.float32)
    dense = IntensityStatistics.of(image)
    monkeypatch.setattr("nnunet_ext.fingerprints.intensity._DENSE", 2)
    assert same(dense, IntensityStatistics.of(image))


def test_float_mean_and_std_keep_their_digits_far_from_zero():
    image = (1e5 + np.random.default_rng(0).random((20, 20, 20))).astype(np.float32)
    summary = IntensityStatistics.of(image).summary()
    assert summary["std"] == pytest.approx(image.astype(np.float64).std(), rel=1e-6)
    assert summary["mean"] == pytest.approx(image.astype(np.float64).mean(), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_values_are_errors(bad):
    image = np.ones((2, 3), np.float32)
    image[1, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        IntensityStatistics.of(image)


def test_nothing_is_neutral_and_has_no_percentile():
    nothing = IntensityStatistics.of(np.zeros((0, 3), np.float32))
    one = IntensityStatistics.of(np.array([1.5, 2.5], np.float32))
    assert same(nothing + one, one)
    with pytest.raises(ValueError, match="no voxel"):
        nothing.percentiles((50.0,))


def test_zero_of_either_sign_and_the_smallest_numbers_count_as_zero():
    image = np.array([0.0, -0.0, 1e-42, 0.5], np.float32)
    values, counts = IntensityStatistics.of(image).distribution()
    assert values[0] == 0
    assert counts.tolist() == [3, 1]


def test_a_statistics_object_fits_into_a_file_without_pickle():
    statistics = IntensityStatistics.of(np.array([1.5, 2.5], np.float32))
    with io.BytesIO() as file:
        np.savez(file, **{key: getattr(statistics, key) for key in KEYS})
        file.seek(0)
        assert set(np.load(file, allow_pickle=False)) == set(KEYS)


def test_the_lowest_float_as_no_data_value_does_not_hide_the_rest():
    image = np.full(30, np.finfo(np.float32).min)
    image[20:] = 4.73
    statistics = IntensityStatistics.of(image.astype(np.float32))
    assert statistics.maximum == np.float32(4.73)
