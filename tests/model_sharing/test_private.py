from copy import deepcopy

from data.tiny_dataset import make_plans

from nnunet_ext.model_sharing.private import for_inference, without_private_keys


def test_keys_that_list_files_are_removed_from_a_copy():
    content = {
        "labels": {"background": 0, "organ": [1, 2]},
        "unlabeled": {"DOE_JANE": {"images": ["/clinic/doe.nii.gz"]}},
        "dataset": {"ROE": {"images": ["/clinic/roe.nii.gz"], "label": "roe.nii.gz"}},
        "file_ending": ".nii.gz",
    }
    before = deepcopy(content)
    shared = without_private_keys(content)
    assert shared == {"labels": {"background": 0, "organ": [1, 2]}, "file_ending": ".nii.gz"}
    shared["labels"]["organ"].append(3)
    assert content == before


def test_our_preprocessor_becomes_stocks_in_a_copy():
    plans = make_plans(preprocessor_name="SemiSupervisedPreprocessor")
    plans["configurations"]["2d"]["preprocessor_name"] = "MyPreprocessor"
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    before = deepcopy(plans)
    shared = for_inference(plans)
    assert plans == before
    assert shared["configurations"]["3d_fullres"].pop("preprocessor_name") == "DefaultPreprocessor"
    del before["configurations"]["3d_fullres"]["preprocessor_name"]
    assert shared == before
    shared["configurations"]["2d"]["spacing"][0] = 99
    assert plans["configurations"]["2d"]["spacing"] == before["configurations"]["2d"]["spacing"]


def test_twice_is_once():
    plans = for_inference(make_plans(preprocessor_name="SemiSupervisedPreprocessor"))
    assert for_inference(plans) == plans
