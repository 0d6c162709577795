import numpy as np
import pytest
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from nnunet_ext.data.geometry import affine_of, nonzero_box, orientation


@pytest.mark.parametrize("seed", range(6))
def test_the_box_is_that_of_nnunets_crop(seed):
    rng = np.random.default_rng(seed)
    data = np.zeros((2, 9, 8, 7), np.float32)
    low = rng.integers(0, 3, 3)
    high = low + rng.integers(1, 5, 3)
    data[rng.integers(0, 2), low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 5
    data[1, 4, 4, 3] = -1
    assert data[(slice(None), *nonzero_box(data))].shape == crop_to_nonzero(data.copy())[0].shape
    box = crop_to_nonzero(data.copy())[2]
    assert [[s.start, s.stop] for s in nonzero_box(data)] == [list(b) for b in box]


def test_the_box_of_nothing_is_everything():
    data = np.zeros((1, 3, 4, 5), np.float32)
    assert [[s.start, s.stop] for s in nonzero_box(data)] == [list(b) for b in crop_to_nonzero(data)[2]]


def test_the_direction_of_the_file_and_of_what_was_read():
    stuff = {"original_affine": np.diag([-0.8, -0.6, 3.6, 1]), "reoriented_affine": np.diag([0.8, 0.6, 3.6, 1])}
    properties = {"nibabel_stuff": stuff}
    assert orientation(properties) == "LPS"
    np.testing.assert_array_equal(affine_of(properties), np.diag([-1, -1, 1, 1]))
    np.testing.assert_array_equal(affine_of(properties, of_array=True), np.eye(4))


def test_itk_and_nibabel_say_the_same():
    assert orientation({"sitk_stuff": {"direction": tuple(np.eye(3).ravel())}}) == "LPS"
    assert orientation({"nibabel_stuff": {"original_affine": np.diag([-1, -1, 1, 1])}}) == "LPS"


@pytest.mark.parametrize("direction", [(), (1, 0, 0, 1), (0,) * 9, (np.nan,) * 9])
def test_no_direction(direction):
    assert orientation({"sitk_stuff": {"direction": direction}}) is None
