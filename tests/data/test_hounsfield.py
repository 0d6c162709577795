"""CT that stays in Hounsfield units, and the windows of the reference module on it: golden values."""

import numpy as np
import pytest
import torch
from data.tiny_dataset import make_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.data.hounsfield import HOUNSFIELD, HounsfieldNormalization, hounsfield_channels
from nnunet_ext.networks import ReferenceInput

# Hounsfield units -> abdomen, chest, bone, as trunc(255 * value)
GOLDEN = {
    -1000: (0, 56, 0),
    -150: (0, 194, 49),
    0: (95, 218, 70),
    50: (127, 226, 77),
    100: (159, 234, 85),
    250: (255, 255, 106),
    400: (255, 255, 127),
    1300: (255, 255, 255),
}


def test_it_divides_by_1000_and_clips_nothing():
    image = np.array([-3024, -1000, 0, 40, 3071], np.float64).reshape(1, 1, 5)
    made = HounsfieldNormalization(False, {"percentile_00_5": -100, "percentile_99_5": 100}).run(image.copy())
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, (image.astype(np.float32) / np.float32(1000)))


def test_nnunet_finds_it_by_its_name_in_plans():
    plans = make_plans(channels=2)
    plans["configurations"]["2d"]["normalization_schemes"] = ["ZScoreNormalization", HOUNSFIELD]
    manager = PlansManager(plans)
    configuration = manager.get_configuration("2d")
    assert hounsfield_channels(configuration) == (1,)
    preprocessor = configuration.preprocessor_class(verbose=False)
    data = np.stack([np.arange(8.0).reshape(2, 2, 2), np.full((2, 2, 2), 50.0)]).astype(np.float32)
    made = preprocessor._normalize(data, np.zeros((1, 2, 2, 2)), configuration, {"0": {}, "1": {}})
    assert made[0].mean() == pytest.approx(0, abs=1e-6)
    assert (made[1] == np.float32(0.05)).all()


def test_windows_of_what_it_makes_are_those_of_the_paper():
    image = HounsfieldNormalization(False, {}).run(np.array(list(GOLDEN), np.float32).reshape(1, 1, -1))
    windows = ReferenceInput(1, [(-150, 250), (-1350, 225), (-500, 1300)], [0])
    made, _ = windows(torch.from_numpy(image[None]))
    found = [tuple(int(value) for value in values) for values in (255 * made[0, :, 0] + 1e-3).T]
    assert found == list(GOLDEN.values())
