"""Contours of label maps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import naive_cwcd
from scipy.ndimage import binary_erosion

from nnunet_ext.losses import contour_map
from nnunet_ext.losses.contour import reach_of, region_contours


def two_boxes():
    """8 x 8 x 8 voxels: label 1 in [1:6]^3, label 2 in [6:8, 2:7, 3:8]."""
    labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int16)
    labels[..., 1:6, 1:6, 1:6] = 1
    labels[..., 6:8, 2:7, 3:8] = 2
    return labels


def cube(batch=1):
    labels = torch.zeros(batch, 1, 6, 6, 6, dtype=torch.int64)
    labels[..., 1:5, 1:5, 1:5] = 1
    return labels


def counts(contours, labels, classes):
    return [int((contours & (labels == c)).sum()) for c in range(classes)]


@pytest.mark.parametrize(
    ("kernel", "iterations", "border", "expected"),
    [
        (3, 1, "outside", [337, 98, 50]),
        (2, 1, "outside", [250, 61, 34]),
        (3, 6, "outside", [337, 125, 50]),
        (3, 1, "inside", [234, 98, 38]),
        ((1, 3, 3), 1, "inside", [154, 80, 26]),
        (3, (0, 1, 1), "inside", [154, 80, 26]),
    ],
)
def test_counts_of_the_golden_geometry(kernel, iterations, border, expected):
    labels = two_boxes()
    assert counts(contour_map(labels, kernel, iterations, border), labels, 3) == expected


def test_a_cube():
    assert int((contour_map(cube()) & (cube() == 1)).sum()) == 56  # 4^3 - 2^3
    low = contour_map(cube(), kernel=2) & (cube() == 1)
    assert int(low.sum()) == 37  # 4^3 - 3^3: the faces at low indices
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[1, 1:5] = expected[1:5, 1] = True
    assert torch.equal(low[0, 0, 3], expected)


def test_samples_of_a_batch_do_not_mix():
    assert [
        counts(one[None], one_label[None], 2)
        for one, one_label in zip(contour_map(cube(2), border="outside"), cube(2), strict=True)
    ] == [
        [152, 56],
        [152, 56],
    ]
    labels = torch.cat([cube(), torch.zeros_like(cube())])
    assert not contour_map(labels)[1].any()
    assert torch.equal(contour_map(labels)[:1], contour_map(cube()))


@st.composite
def maps(draw):
    dims = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(dims))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    classes = draw(st.sampled_from([1, 2, 3, 5]))
    # blocks, so that there is an interior
    coarse = rng.integers(0, classes, [-(-n // 3) for n in shape])
    for axis in range(dims):
        coarse = coarse.repeat(3, axis)
    labels = coarse[tuple(slice(n) for n in shape)]
    speckle = rng.random(shape) < draw(st.sampled_from([0, 0.1]))
    return np.where(speckle, rng.integers(0, classes, shape), labels)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    maps(),
    st.sampled_from([1, 2, 3, 4, 5]),
    st.integers(0, 3),
    st.sampled_from(["inside", "outside"]),
    st.booleans(),
    st.sampled_from([torch.uint8, torch.int16, torch.int64]),
)
def test_equals_scipys_erosion(labels, kernel, iterations, border, ignore, dtype):
    ignore_label = 1 if ignore else None
    expected = naive_cwcd.contours(labels, kernel, iterations, border, ignore_label)
    tensor = torch.from_numpy(labels)[None, None].to(dtype)
    found = contour_map(tensor, kernel, iterations, border, ignore_label)
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found[0, 0].numpy(), expected)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(maps(), st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(0, 2)] * 3), st.sampled_from([0, 1]))
def test_axes_have_their_own_kernels_and_iterations(labels, kernel, iterations, border_value):
    dims = labels.ndim
    expected = np.zeros(labels.shape, bool)
    for value in np.unique(labels):
        inside = labels == value
        for axis in range(dims):
            box = np.ones([kernel[axis] if other == axis else 1 for other in range(dims)])
            for _ in range(iterations[axis]):
                inside = binary_erosion(inside, box, border_value=border_value)
        expected |= (labels == value) & ~inside
    border = "inside" if border_value else "outside"
    found = contour_map(torch.from_numpy(labels)[None, None], kernel[:dims], iterations[:dims], border)
    np.testing.assert_array_equal(found[0, 0].numpy(), expected)


@pytest.mark.parametrize("value", [255, 254, 256, 40000, 2**31 + 5, -1, -32768])
@pytest.mark.parametrize("border", ["inside", "outside"])
def test_any_label_value(value, border):
    labels = cube() * value
    assert torch.equal(contour_map(labels, border=border), contour_map(cube(), border=border))


def test_an_ignored_part_of_a_region_is_no_contour():
    regions = torch.zeros(1, 2, 1, 6, dtype=torch.bool)
    regions[0, 0, 0, :4] = regions[0, 1, 0, 2:] = True
    ignored = torch.tensor([0, 0, 0, 1, 0, 0]).reshape(1, 1, 1, 6) > 0
    found = region_contours(regions, reach_of(3, 1, 2), "inside", None)
    assert found[0, :, 0].int().tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]]
    # the first region ends in an ignored voxel, which hides what lies beyond
    found = region_contours(regions, reach_of(3, 1, 2), "inside", ignored)
    assert found[0, :, 0].int().tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_type(dtype):
    assert torch.equal(contour_map(cube().to(dtype)), contour_map(cube()))


def test_labels_are_not_changed():
    labels = two_boxes()
    contour_map(labels, ignore_label=1)
    assert torch.equal(labels, two_boxes())


def test_ignored_voxels_hide_what_lies_beyond():
    # one row: 1 1 I 2 2: the ones see only ignored voxels beside them, and the twos as well
    labels = torch.tensor([1, 1, 9, 2, 2]).reshape(1, 1, 1, 5)
    assert not contour_map(labels, ignore_label=9).any()
    # two iterations look past the ignored voxel
    assert contour_map(labels, iterations=2, ignore_label=9).flatten().tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("value", [44, 255, 256, 300, 65536])
def test_an_ignore_label_that_is_not_there(value):
    assert torch.equal(contour_map(two_boxes(), ignore_label=value), contour_map(two_boxes()))
    wide = two_boxes().long()
    wide[wide == 1] = value
    found = contour_map(wide, ignore_label=value)
    assert torch.equal(found, contour_map(two_boxes(), ignore_label=1))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("border", ["inside", "outside"])
def test_compiles_in_one_graph(dtype, border):
    # the largest label that its type may hold beside what lies outside
    largest = {torch.bool: 1, torch.uint8: 255, torch.int8: 127, torch.int16: 32767}.get(dtype, 2**31 - 2)
    labels = (cube() * largest).to(dtype)
    assert contour_map(labels, border=border).any()
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    compiled = torch.compile(contour_map, fullgraph=True, backend="eager")
    assert torch.equal(compiled(labels, border=border), contour_map(labels, border=border))


@pytest.mark.slow
@pytest.mark.parametrize("border", ["inside", "outside"])
def test_inductor_finds_the_same(border):
    labels = (cube() * 3).to(torch.int16)
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    compiled = torch.compile(contour_map, fullgraph=True)
    assert torch.equal(compiled(labels, iterations=2, border=border), contour_map(labels, iterations=2, border=border))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
@pytest.mark.parametrize("border", ["inside", "outside"])
def test_a_gpu_finds_the_same(dtype, border):
    labels = (cube() * 3).to(dtype)
    found = contour_map(labels.cuda(), iterations=2, border=border).cpu()
    assert torch.equal(found, contour_map(labels, iterations=2, border=border))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"labels": torch.zeros(1, 2, 4, 4, dtype=torch.int64)},
            ValueError,
            r"must have shape \(B, 1, \*S\), got \(1, 2",
        ),
        ({"labels": torch.zeros(4, 4, dtype=torch.int64)}, ValueError, r"got \(4, 4\)"),
        ({"labels": torch.zeros(1, 1, 4, 4)}, TypeError, "integers, got torch.float32"),
        ({"kernel": 0}, ValueError, "kernel must be one integer from 1 on, or one for each of 3 axes, got 0"),
        ({"kernel": (3, 3)}, ValueError, r"for each of 3 axes, got \(3, 3\)"),
        ({"iterations": 1.5}, ValueError, "iterations must be one integer from 0 on"),
        ({"border": "zero"}, ValueError, "border must be one of inside, outside, got 'zero'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        contour_map(**({"labels": two_boxes()} | arguments))
