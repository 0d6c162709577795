"""Annotated slices: which, along which axis, and their numbers in the file."""

import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnunet_ext.propagation.sparse import (
    Annotated,
    SliceNumbers,
    along_another_axis,
    annotated_slices,
    axis_name,
    slice_numbers,
)

IGNORE = 3


def sparse(axis, slices, shape=(5, 6, 7)):
    """Ignored everywhere but in slices along an axis, which have an object of label 1."""
    labels = np.full(shape, IGNORE, np.uint8)
    moved = np.moveaxis(labels, axis, 0)
    for index in slices:
        moved[index] = 0
        moved[index, 1:3, 2:4] = 1
    return labels


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_whole_slices_along_each_axis(axis):
    labels = sparse(axis, (1, 4))
    assert annotated_slices(labels, axis, IGNORE) == Annotated((1, 4), ())
    for other in {0, 1, 2} - {axis}:  # each of its slices is crossed by the two
        assert annotated_slices(labels, other, IGNORE) == Annotated((), tuple(range(labels.shape[other])))


def test_a_partly_annotated_slice_is_no_whole_one():
    labels = sparse(0, (1,))
    labels[3, 2, 2] = 0
    assert annotated_slices(labels, 0, IGNORE) == Annotated((1,), (3,))
    assert annotated_slices(np.zeros((2, 3, 3)), 0, None) == Annotated((0, 1), ())


@pytest.mark.parametrize("axis", [1, 2])
def test_slices_along_another_axis_are_found(axis):
    assert along_another_axis(sparse(axis, (1, 4)), 0, IGNORE, {}) == (axis, [1, 4])
    assert along_another_axis(sparse(0, (1, 4)), 0, IGNORE, {}) == (0, [])
    everything = np.full((5, 6, 7), IGNORE)
    assert along_another_axis(everything, 0, IGNORE, {}) == (0, [])


@pytest.mark.parametrize("axis", [1, 2])
def test_named_slices_along_another_axis_are_found(axis):
    labels = sparse(axis, (1, 4))
    labels[labels == IGNORE] = 0  # without an ignore label
    named = {along: [1, 4] for along in range(3)}
    assert along_another_axis(labels, 0, None, named) == (axis, [1, 4])
    assert along_another_axis(labels, axis, None, named) == (axis, [])
    whole = np.ones((5, 6, 7), np.uint8)  # a whole label map, of which slices are named
    assert along_another_axis(whole, 0, None, named) == (0, [])


def test_both_directions_of_crossing_slices_are_fine():
    labels = np.minimum(sparse(0, (2,)), sparse(1, (3,)))
    assert along_another_axis(labels, 0, IGNORE, {}) == (0, [])
    assert annotated_slices(labels, 0, IGNORE).whole == (2,)


class TestNumbers:
    def test_they_count_from_1(self):
        numbers = SliceNumbers(5, 2)
        assert [numbers.number(index) for index in range(5)] == [1, 2, 3, 4, 5]
        assert [numbers.index(number) for number in (1, 5)] == [0, 4]
        backwards = SliceNumbers(5, 2, True)
        assert [backwards.number(index) for index in range(5)] == [5, 4, 3, 2, 1]
        assert [backwards.index(number) for number in (1, 5)] == [4, 0]

    @pytest.mark.parametrize("number", [0, 6, -1])
    def test_there_are_no_others(self, number):
        with pytest.raises(ValueError, match=f"there is no slice {number} along the axis z, which has 5: slices count"):
            SliceNumbers(5, 2).index(number)

    @pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient, SimpleITKIOWithReorient])
    @pytest.mark.parametrize(
        "direction",
        [np.eye(3), np.diag([-1, -1, 1]), np.diag([1, 1, -1]), [[0, 0, -1], [1, 0, 0], [0, -1, 0]]],
    )
    def test_every_reader_gives_the_numbers_of_the_file(self, tmp_path, reader, direction):
        """Each slice of each axis of the file is marked by its number, and is found under it."""
        for file_axis, total in enumerate((3, 4, 5)):
            index = np.arange(1, total + 1).reshape([-1 if a == file_axis else 1 for a in (2, 1, 0)])
            image = SimpleITK.GetImageFromArray(np.broadcast_to(index, (5, 4, 3)).astype(np.float32).copy())
            image.SetDirection(np.asarray(direction, float).ravel().tolist())
            file = tmp_path / "image.nii.gz"
            SimpleITK.WriteImage(image, str(file))
            data, properties = reader().read_images([str(file)])
            (axis,) = [a for a in range(3) if len(np.unique(data[0].take([0], a))) == 1]
            numbers = slice_numbers(properties, axis, total)
            assert numbers.axis == file_axis
            for place in range(total):
                assert data[0].take(place, axis).flat[0] == numbers.number(place)
                assert numbers.index(numbers.number(place)) == place

    def test_axes_have_names(self, tmp_path):
        image = SimpleITK.GetImageFromArray(np.zeros((5, 4, 3), np.float32))
        image.SetDirection([0, 0, 1, 1, 0, 0, 0, 1, 0])  # of the file: front-back, head-foot, left-right
        SimpleITK.WriteImage(image, str(tmp_path / "image.nii.gz"))
        for reader, names in (
            (SimpleITKIO, ["z (left-right)", "y (head-foot)", "x (front-back)"]),
            (NibabelIOWithReorient, ["y (head-foot)", "x (front-back)", "z (left-right)"]),
        ):
            _, properties = reader().read_images([str(tmp_path / "image.nii.gz")])
            assert [axis_name(properties, axis) for axis in range(3)] == names
        assert [axis_name({"spacing": [1, 1, 1]}, axis) for axis in range(3)] == ["z", "y", "x"]
