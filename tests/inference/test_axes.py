import itertools

import numpy as np
import pytest

from nnunet_ext.inference.axes import UNKNOWN_AXES, find_axes


def sitk_properties(direction):
    return {"spacing": [1, 1, 1], "sitk_stuff": {"direction": tuple(np.asarray(direction, float).ravel())}}


def rotation(axis, degrees):
    """Rotation about x, y or z."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(3)
    i, j = [a for a in range(3) if a != axis]
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def affine(codes):
    """Affine of an image whose axes run towards these sides of the patient."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([np.eye(3)["LRAPIS".index(code) // 2] for code in codes], 1)
    matrix[:3, :3] *= [1 if code in "RAS" else -1 for code in codes]
    return matrix


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_permuted_and_flipped_directions(order, signs):
    # Image axis i runs along the patient's axis order[i]; nnU-Net's arrays have the image axes reversed.
    direction = np.zeros((3, 3))
    for image_axis, (patient_axis, sign) in enumerate(zip(order, signs, strict=True)):
        direction[patient_axis, image_axis] = sign
    found = find_axes(sitk_properties(direction))
    assert found.known
    assert found.of == tuple(2 - order.index(axis) for axis in range(3))
    assert found.axial == found.of[2]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("degrees", [-40, -10, 20, 44])
def test_oblique_directions_are_the_nearest_axes(axis, degrees):
    tilted = rotation(axis, degrees) @ rotation((axis + 1) % 3, 15)
    assert find_axes(sitk_properties(tilted)).of == (2, 1, 0)
    sagittal = tilted[:, [1, 2, 0]]  # first image axis runs along y, the second along z, the third along x
    assert find_axes(sitk_properties(sagittal)).of == (0, 2, 1)


def test_each_axis_is_taken_once_where_the_nearest_would_be_the_same():
    # The first two image axes are both nearer to x than to anything else.
    direction = np.array([[0.8, 0.75, 0], [0.6, -0.66, 0], [0, 0, 1]])
    assert sorted(find_axes(sitk_properties(direction)).of) == [0, 1, 2]
    assert find_axes(sitk_properties(direction)).axial == 0


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SAL", "IRA"])
def test_nibabel_affines_with_spacing(codes):
    to_ras = affine(codes) @ np.diag([0.7, 0.8, 2.5, 1])
    properties = {"spacing": [2.5, 0.8, 0.7], "nibabel_stuff": {"original_affine": to_ras}}
    letters = [next("xyz"[n] for n, pair in enumerate(("LR", "AP", "SI")) if code in pair) for code in codes]
    assert find_axes(properties).of == tuple(2 - letters.index(letter) for letter in "xyz")


def test_after_reorientation_the_array_counts_and_not_the_file():
    original = affine("SAL")
    stuff = {"original_affine": original, "reoriented_affine": np.eye(4)}
    assert find_axes({"spacing": [1, 1, 1], "nibabel_stuff": stuff}).of == (2, 1, 0)


@pytest.mark.parametrize(
    "properties",
    [
        {"spacing": [1, 1, 1]},
        {"spacing": [999, 1, 1], "sitk_stuff": {"direction": (1.0, 0.0, 0.0, 1.0)}},  # a 2D image
        {"spacing": [1, 1, 1], "sitk_stuff": {"direction": (0.0,) * 9}},
        {"spacing": [1, 1, 1], "sitk_stuff": {"direction": (float("nan"),) * 9}},
    ],
)
def test_without_a_direction_the_array_order_counts(properties):
    assert find_axes(properties) == UNKNOWN_AXES
    assert not UNKNOWN_AXES.known
    assert UNKNOWN_AXES.of == (2, 1, 0)


def test_reordering_there_and_back():
    axes = find_axes(sitk_properties(np.eye(3)[:, [1, 2, 0]]))
    assert axes.of == (0, 2, 1)
    assert axes.to_array(("x", "y", "z")) == ("x", "z", "y")
    assert axes.to_xyz(axes.to_array(("x", "y", "z"))) == ("x", "y", "z")
