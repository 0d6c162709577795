import pytest
from data.tiny_dataset import TinyDataset

from nnunet_ext.data.dataset_json import (
    check_dataset_json,
    check_number_of_training_cases,
    check_raw_dataset,
    load_dataset_json,
)
from nnunet_ext.data.unlabeled import find_unlabeled_cases


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"file_ending": 5}, r'file_ending is 5, expected text such as "\.nii\.gz"; correct it'),
        ({"file_ending": "nii.gz"}, "file_ending is 'nii.gz', expected text"),
        ({"channel_names": ["CT"]}, r"channel_names is \['CT'\], expected an object"),
        ({"channel_names": {}}, "channel_names is {}, expected an object"),
        ({"labels": ["organ"]}, r"labels is \['organ'\], expected an object"),
        ({"labels": {"0": "background"}}, r"labels\['0'\] is 'background', expected a whole number"),
        ({"labels": {"background": 0, "organ": 1.5}}, r"labels\['organ'\] is 1\.5, expected a whole number"),
        ({"labels": {"background": 0, "organ": []}}, r"labels\['organ'\] is \[\], expected a whole number"),
        ({"regions_class_order": "1 2"}, "regions_class_order is '1 2', expected a list of whole numbers"),
        ({"dataset": []}, r"dataset is \[\], expected an object"),
        ({"dataset": {"a": {"images": [5], "label": "a"}}}, r"dataset\['a'\] is .*, expected {\"images\":"),
        ({"dataset": {"a": {"images": ["a"], "label": None}}}, r"dataset\['a'\] is .*, expected"),
        ({"dataset": {"a": "a.nii.gz"}}, r"dataset\['a'\] is 'a\.nii\.gz', expected"),
    ],
)
def test_a_value_that_cannot_be(tiny: TinyDataset, change, reason):
    content = tiny.write_dataset_json() | change
    with pytest.raises(ValueError, match=rf"dataset\.json: {reason}"):
        check_dataset_json(tiny.raw, content)
    with pytest.raises(ValueError, match=rf"dataset\.json: {reason}"):
        find_unlabeled_cases(tiny.raw, content)


def test_values_that_nnunet_takes(tiny: TinyDataset):
    for change in ({"labels": {"background": 0, "whole": [1, 2], "one": "2"}, "regions_class_order": [1, 2]}, {}):
        check_dataset_json(tiny.raw, tiny.write_dataset_json() | change)
    old = tiny.write_dataset_json()
    old["modality"] = old.pop("channel_names")
    check_dataset_json(tiny.raw, old)


@pytest.mark.parametrize("number", [None, "5", -1, 1.5, True])
def test_number_of_training_cases(tiny: TinyDataset, number):
    with pytest.raises(ValueError, match=r"dataset\.json: numTraining is .*, expected the number of labelled cases"):
        check_number_of_training_cases(tiny.raw, {"numTraining": number})
    check_number_of_training_cases(tiny.raw, {"numTraining": 0})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{\n"labels": }', r"dataset\.json is no JSON \(line 2, column 11: .*\); correct or restore it"),
        ("[]", r"dataset\.json holds \[\], expected an object"),
        ('{"labels": {"a": 1, "a": 2}}', r"has \['a'\] more than once"),
    ],
)
def test_a_file_that_is_no_dataset_json(tiny: TinyDataset, text, reason):
    (tiny.raw / "dataset.json").write_text(text)
    for read in (load_dataset_json, lambda _: check_raw_dataset(777)):
        with pytest.raises(ValueError, match=reason):
            read(tiny.raw)
