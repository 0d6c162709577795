"""The position of a slice: exact values through crop, transpose, flips and tilts, whatever reads the image."""

import re

import nibabel
import numpy as np
import pytest
import SimpleITK
from data.tiny_dataset import make_plans
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.data.position import append_position, has_position, slice_positions, slicing_direction

READERS = (SimpleITKIO, NibabelIO)
TILT = np.radians(25)
TILTED = np.array([[1, 0, 0], [0, np.cos(TILT), -np.sin(TILT)], [0, np.sin(TILT), np.cos(TILT)]])


def write(path, direction, shape=(5, 4, 3)):
    """Write an image of (z, y, x) voxels whose axes point as SimpleITK's direction says."""
    image = SimpleITK.GetImageFromArray(np.ones(shape, np.float32))
    image.SetDirection([float(value) for value in np.asarray(direction).ravel()])
    SimpleITK.WriteImage(image, str(path))
    return path


def direction_of(path, reader, axis):
    _, properties = reader().read_images([str(path)])
    return slicing_direction(properties, axis)


def test_values():
    assert slice_positions(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert slice_positions(5, from_end=True).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert slice_positions(11, 3, 4).tolist() == np.float32([0.3, 0.4, 0.5, 0.6]).tolist()
    assert slice_positions(11, 3, 4, from_end=True).tolist() == np.float32([0.7, 0.6, 0.5, 0.4]).tolist()
    assert slice_positions(1).tolist() == [0.5]
    assert slice_positions(2).tolist() == [0, 1]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("direction", "expected"),
    [
        (np.eye(3), (1, None, None)),
        (np.diag([1, 1, -1]), (-1, None, None)),  # stored from the head on
        (np.diag([-1, -1, 1]), (1, None, None)),
        (TILTED, (1, None, None)),
        (TILTED @ np.diag([1, 1, -1]), (-1, None, None)),
        (np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), (None, -1, None)),  # coronal: rows run from the head down
        (np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]]), (None, -1, None)),  # sagittal
        (np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]), (None, None, 1)),
    ],
    ids=["axial", "from the head", "turned", "oblique", "oblique from the head", "coronal", "sagittal", "columns"],
)
def test_direction_of_each_axis_of_the_array(tmp_path, reader, direction, expected):
    path = write(tmp_path / "image.nii.gz", direction=direction)
    assert tuple(direction_of(path, reader, axis) for axis in range(3)) == expected


@pytest.mark.parametrize("reader", [SimpleITKIOWithReorient, NibabelIOWithReorient])
def test_readers_that_turn_the_image_count_from_the_turned_one(tmp_path, reader):
    path = write(tmp_path / "image.nii.gz", direction=np.diag([1, 1, -1]))
    assert direction_of(path, reader, 0) == 1


def test_nibabel_and_simpleitk_agree_on_a_file_of_nibabel(tmp_path):
    affine = np.diag([1.0, 1.0, -3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 4, 5), np.float32), affine), tmp_path / "image.nii.gz")
    assert [direction_of(tmp_path / "image.nii.gz", reader, 0) for reader in READERS] == [-1, -1]


def test_without_a_direction_it_is_not_known():
    for properties in ({"spacing": [1, 1, 1]}, {"sitk_stuff": {"direction": (1.0, 0.0, 0.0, 1.0)}}):
        assert slicing_direction(properties, 0) is None


def properties_of(direction, before=(10, 6, 6), first=2, left=5):
    return {
        "sitk_stuff": {"direction": tuple(np.asarray(direction, float).ravel())},
        "shape_before_cropping": before,
        "bbox_used_for_cropping": [[first, first + left], [0, 6], [0, 6]],
        "shape_after_cropping_and_before_resampling": (left, 6, 6),
    }


@pytest.mark.parametrize(
    ("direction", "expected", "counted"),
    [
        (np.eye(3), [2, 3, 4, 5, 6], "patient"),
        (np.diag([1, 1, -1]), [7, 6, 5, 4, 3], "patient"),
        (np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]), [2, 3, 4, 5, 6], "index"),
    ],
)
def test_index_is_that_of_the_scan_before_it_was_cropped(direction, expected, counted):
    properties, data = properties_of(direction), np.zeros((2, 5, 4, 7), np.float32)
    made = append_position(data, properties, [0, 1, 2])
    assert (made.shape, made.dtype) == ((3, 5, 4, 7), np.float32)
    assert (made[:2] == 0).all()
    for position, value in zip(made[-1], expected, strict=True):
        assert (position == np.float32(value / 9)).all()
    assert properties["slice_position"] == counted


def test_the_axis_of_the_slices_is_that_of_the_plans():
    """Sliced along y of an image whose y runs from the head down."""
    coronal = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    made = append_position(np.zeros((1, 5, 4, 7), np.float32), properties_of(coronal), [1, 0, 2])
    assert made[-1, :, 0, 0].tolist() == np.float32(np.array([7, 6, 5, 4, 3]) / 9).tolist()


def test_slices_that_were_resampled_have_no_position():
    with pytest.raises(ValueError, match=re.escape("needs a 2d configuration, which keeps them; 5 slices were")):
        append_position(np.zeros((1, 8, 4, 7), np.float32), properties_of(np.eye(3)), [0, 1, 2])


def test_the_preprocessor_in_the_plans_says_that_there_is_one():
    plans = make_plans()
    assert not has_position(PlansManager(plans).get_configuration("2d"))
    plans["configurations"]["2d"]["preprocessor_name"] = "ReferencePreprocessor"
    assert has_position(PlansManager(plans).get_configuration("2d"))
