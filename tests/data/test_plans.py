import hashlib

import pytest
from data.tiny_dataset import TinyDataset, make_plans

from nnunet_ext.data.plans import is_folder_name, load_configuration
from nnunet_ext.data.preprocess import preprocess_unlabeled

FILE = r"nnUNetPlans\.json"
HERE = FILE + ", configuration '3d_fullres' has "


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spacing": [1.0, -1.0, 1.0]}, r"spacing \[1\.0, -1\.0, 1\.0\], expected 2 or 3 positive numbers in mm"),
        ({"spacing": [1.0, float("nan"), 1.0]}, r"spacing \[1\.0, nan, 1\.0\], expected 2 or 3 positive"),
        ({"spacing": "1 1 1"}, r"spacing '1 1 1', expected 2 or 3 positive"),
        ({"spacing": [1.0, 1.0]}, r"the spacing \[1\.0, 1\.0\] and the patch_size .* expected as many numbers in both"),
        ({"patch_size": "16 16 16"}, "patch_size '16 16 16', expected 2 or 3 positive whole numbers"),
        ({"patch_size": ["16", 16, 16]}, r"patch_size \['16', 16, 16\], expected"),
        ({"preprocessor_name": "Default"}, "preprocessor_name 'Default', expected the name of a preprocessor"),
        ({"normalization_schemes": ["ZScore"]}, "normalization_schemes 'ZScore', which nnU-Net does not have"),
        ({"normalization_schemes": "ZScoreNormalization"}, "normalization_schemes 'ZScoreNormalization', expected a l"),
        ({"normalization_schemes": ["CTNormalization"] * 2}, r"2 normalization_schemes, but dataset\.json has 1 cha"),
        ({"use_mask_for_norm": [True, False]}, r"2 use_mask_for_norm, but dataset\.json has 1 channel"),
        ({"use_mask_for_norm": ["no"]}, r"use_mask_for_norm \['no'\], expected a list of true and false"),
        ({"resampling_fn_data": "resample"}, "resampling_fn_data 'resample', expected the name of a resampling"),
        ({"resampling_fn_seg": 5}, "resampling_fn_seg 5, expected the name of a resampling"),
        ({"resampling_fn_data_kwargs": {"ordre": 3}}, "resampling_fn_data_kwargs {'ordre': 3}, expected options of"),
        ({"resampling_fn_seg_kwargs": None}, "resampling_fn_seg_kwargs None, expected options of"),
        (
            {"data_identifier": "../other"},
            r"data_identifier '\.\./other', expected the name of a folder, without a path",
        ),
    ],
)
def test_an_impossible_value_is_one_error_and_nothing_is_touched(tiny: TinyDataset, change, reason):
    for seed, name in enumerate("ab"):
        tiny.add_unlabeled(name, seed)
    folder = preprocess_unlabeled(777, "nnUNetPlans", "3d_fullres", 1, show_progress_bar=False).folder
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    tiny.write_plans(make_plans(**change))
    for clean in (False, True):
        with pytest.raises(ValueError, match=HERE + reason):
            preprocess_unlabeled(777, "nnUNetPlans", "3d_fullres", 1, clean, show_progress_bar=False)
    after = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"transpose_forward": [0, 1, 1]}, r"has transpose_forward \[0, 1, 1\], expected an order of the axes"),
        ({"image_reader_writer": "ITK"}, "has image_reader_writer 'ITK', expected the name of a reader"),
        ({"configurations": []}, "has no 'configurations'"),
        ({"foreground_intensity_properties_per_channel": {"1": {}}}, "per_channel for channel 0 of dataset"),
    ],
)
def test_what_all_configurations_share(tiny: TinyDataset, change, reason):
    tiny.write_plans(make_plans() | change)
    with pytest.raises(ValueError, match=rf"{FILE} {reason}|{FILE} has no foreground_intensity_properties_{reason}"):
        load_configuration(tiny.preprocessed, "nnUNetPlans", "3d_fullres", 1)


def test_plans_that_are_no_json_are_named_with_the_line(tiny: TinyDataset):
    (tiny.preprocessed / "nnUNetPlans.json").write_text('{\n "plans_name": }')
    with pytest.raises(ValueError, match=rf"{FILE} is no JSON \(line 2, column 16: .*\); restore it, or plan again"):
        load_configuration(tiny.preprocessed, "nnUNetPlans", "3d_fullres")


@pytest.mark.parametrize("parent", ["none", "a"])
def test_inheritance_that_leads_nowhere(tiny: TinyDataset, parent):
    plans = make_plans()
    plans["configurations"]["a"] = {"inherits_from": parent}
    tiny.write_plans(plans)
    with pytest.raises(ValueError, match=rf"{FILE}, configuration 'a' cannot be used \(.*\); correct it there"):
        load_configuration(tiny.preprocessed, "nnUNetPlans", "a")


def test_a_configuration_that_inherits_is_checked_as_a_whole(tiny: TinyDataset):
    plans = make_plans()
    plans["configurations"]["a"] = {"inherits_from": "3d_fullres", "patch_size": [8, 8, 8]}
    plans["configurations"]["b"] = {"inherits_from": "a", "spacing": [1, 0, 1]}
    tiny.write_plans(plans)
    assert load_configuration(tiny.preprocessed, "nnUNetPlans", "a", 1)[1].patch_size == [8, 8, 8]
    with pytest.raises(ValueError, match=r"configuration 'b' has spacing \[1, 0, 1\]"):
        load_configuration(tiny.preprocessed, "nnUNetPlans", "b", 1)


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "/x", "a/b", "a\\b", "C:x", ".hidden", None, 5])
def test_what_is_no_name_of_a_folder(name):
    assert not is_folder_name(name)
    assert is_folder_name("SemiSupervisedPlans_3d_fullres")
