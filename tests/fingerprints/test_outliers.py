import numpy as np
import pytest

from nnunet_ext.fingerprints.case_statistics import CaseStatistics
from nnunet_ext.fingerprints.outliers import find_outliers


def case(labels, *beside):
    files = ["/raw/imagesTr/a_0000.tif", "/raw/labelsTr/a.tif", *beside]
    return CaseStatistics(
        source={"files": files},
        shape=[4, 5, 6],
        shape_after_crop=[4, 5, 6],
        spacing=[3.0, 0.8, 0.8],
        orientation="LPS",
        percentiles=[list(np.linspace(0, 100, 7))],
        integer_valued=[True],
        extremes=[[0.0, 100.0]],
        labels=labels,
    )


@pytest.mark.parametrize(
    ("labels", "declared", "said"),
    [
        ([0.0, 1.0, 7.0], {"background": 0, "organ": 1}, "/raw/labelsTr/a.tif has 7; named are 0, 1"),
        ([-1.0, 1.0], {"background": 0, "organ": 1}, "/raw/labelsTr/a.tif has -1; named are 0, 1"),
        (
            [0.0, 2.0, 4.0],
            {"background": 0, "whole": [1, 2], "ignore": 3},
            "/raw/labelsTr/a.tif has 4; named are 0, 1, 2, 3",
        ),
        (None, {"background": 0, "organ": 1}, "/raw/labelsTr/a.tif; labels are 0, 1, 2, ..."),
    ],
)
def test_label_values_that_nothing_names_are_told_by_file(labels, declared, said):
    dataset_json = {"channel_names": {"0": "MR"}, "labels": declared}
    (found,) = find_outliers({"a": case(labels, "/raw/imagesTr/a.json")}, {}, dataset_json)
    assert found.kind.startswith("label values that")
    assert found.detail == said


def test_labels_that_are_named_are_no_outliers():
    dataset_json = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "whole": [1, 2], "core": 2}}
    assert find_outliers({"a": case([0.0, 1.0, 2.0])}, {"u": case(None)}, dataset_json) == []
