"""nnU-Net's summary.json, and paired differences."""

import json
import math

import numpy as np
import pytest

from nnunet_ext.evaluation.summary import paired_bootstrap, read_summary


def write(file, metrics, case="case_1.nii.gz"):
    file.write_text(json.dumps({"metric_per_case": [{"prediction_file": f"/else/where/{case}", "metrics": metrics}]}))
    return file


def test_labels_and_regions(tmp_path):
    file = write(
        tmp_path / "a.json", {"2": {"Dice": 0.5, "n_ref": 7}, "(1, 2)": {"Dice": 0.25}, "(3,)": {"Dice": None}}
    )
    measured = read_summary(file, ".nii.gz")["case_1"]
    assert measured[2] == {"Dice": 0.5, "n_ref": 7}
    assert measured[1, 2] == {"Dice": 0.25}
    assert math.isnan(measured[3]["Dice"])


def test_nan_as_nnunet_writes_it(tmp_path):
    file = write(tmp_path / "a.json", {"1": {"Dice": math.nan}})
    assert math.isnan(read_summary(file, ".nii.gz")["case_1"][1]["Dice"])


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"metric_per_case": [{}]}', '{"metric_per_case": 3}'])
def test_what_is_no_summary(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json .*validate again"):
        read_summary(tmp_path / "a.json", ".nii.gz", "validate again")


def test_bootstrap_of_constant_differences_has_no_width():
    assert paired_bootstrap(np.array([0.1, 0.1, np.nan, 0.1])) == pytest.approx((0.1, 0.1, 0.1))
    assert all(math.isnan(value) for value in paired_bootstrap(np.array([np.nan])))


def test_bootstrap_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(5).normal(0.2, 0.1, size=400)
    half_width = 1.96 * values.std() / np.sqrt(len(values))
    mean, low, high = paired_bootstrap(values)
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == pytest.approx((half_width, half_width), rel=0.05)
