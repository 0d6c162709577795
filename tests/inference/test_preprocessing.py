"""The preprocessing of images alone against nnU-Net's own."""

import json
from functools import partial

import numpy as np
import pytest
from inference.tiny_model import make_model, smooth_image
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnunet_ext.inference.preprocessing as preprocessing
from nnunet_ext.inference.case import Model, prepare
from nnunet_ext.inference.spacing import PlansSpacing

SPACING = [3.0, 1.1, 1.3]


@pytest.fixture
def model_with(tmp_path):
    def make(scheme, use_mask=False, order=(0, 1, 2)):
        folder = make_model(tmp_path).folder
        plans = json.loads((folder / "plans.json").read_text()) | {"transpose_forward": list(order)}
        settings = plans["configurations"]["3d_fullres"]
        settings |= {"normalization_schemes": [scheme], "use_mask_for_norm": [use_mask]}
        plans = PlansManager(plans)
        dataset_json = json.loads((folder / "dataset.json").read_text())
        return Model(plans, plans.get_configuration("3d_fullres"), dataset_json, stock_resampling=True)

    return make


def framed_image():
    """An image in a frame of zeros, with a hole of zeros in it."""
    image = np.zeros((1, 14, 30, 28), np.float32)
    image[0, 2:-1, 3:-4, 5:-2] = smooth_image(1)[:11, :23, :21] + 7
    image[0, 6, 10:14, 12:15] = 0
    return image


@pytest.mark.parametrize(
    "scheme",
    ["CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization"],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_equals_nnunet_to_the_last_bit(model_with, monkeypatch, scheme, order):
    model = model_with(scheme, order=order)
    image = framed_image()
    before = image.copy()
    arguments = image.copy(), None, {"spacing": SPACING}, model.plans, model.configuration, model.dataset_json
    expected, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(*arguments)
    used = []
    own = preprocessing.preprocess_image
    monkeypatch.setattr("nnunet_ext.inference.case.preprocess_image", lambda *a: used.append(a) or own(*a))
    found = prepare((image, {"spacing": SPACING}), None, PlansSpacing(), model)
    assert len(used) == 1
    np.testing.assert_array_equal(found.data, expected)
    np.testing.assert_array_equal(image, before)  # the caller's
    for key in ("shape_before_cropping", "bbox_used_for_cropping", "shape_after_cropping_and_before_resampling"):
        assert found.properties[key] == properties[key]


def test_an_image_of_nothing_but_zeros(model_with):
    model = model_with("CTNormalization")
    image = np.zeros((1, 8, 12, 12), np.float32)
    arguments = image, None, {"spacing": SPACING}, model.plans, model.configuration, model.dataset_json
    expected, _, properties = DefaultPreprocessor(verbose=False).run_case_npy(*arguments)
    found = prepare((image, {"spacing": SPACING}), None, PlansSpacing(), model)
    np.testing.assert_array_equal(found.data, expected)
    assert found.properties["bbox_used_for_cropping"] == properties["bbox_used_for_cropping"]


@pytest.mark.parametrize("reason", ["mask", "scheme", "preprocessor", "normalisation", "version"])
def test_nnunets_own_where_it_may_do_more(model_with, monkeypatch, reason):
    class Preprocessor(DefaultPreprocessor):
        run_case_npy = partial(DefaultPreprocessor.run_case_npy)

    class Normalizing(DefaultPreprocessor):
        def _normalize(self, data, seg, *_):
            return np.where(seg < 0, 0, data)

    model = model_with("OtherNormalization" if reason == "scheme" else "ZScoreNormalization", use_mask=reason == "mask")
    if reason == "version":
        monkeypatch.setattr(preprocessing, "_nnunet_is_as_known", lambda: False)
    kind = {"preprocessor": Preprocessor, "normalisation": Normalizing}.get(reason, DefaultPreprocessor)
    preprocessor = kind(verbose=False)
    assert not preprocessing.needs_no_mask(preprocessor, model.configuration)


def test_it_knows_the_nnunet_that_is_installed():
    assert preprocessing._nnunet_is_as_known()
