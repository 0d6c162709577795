"""Dice of the cycles: means, differences, the best one, and when there are no more."""

import csv
import json
import math
from pathlib import Path

import pytest

from nnunet_ext.pseudo_labels.cycle_datasets import RECORD
from nnunet_ext.pseudo_labels.cycle_scores import (
    TABLE,
    CycleScores,
    best_of,
    format_cycles,
    has_stopped_gaining,
    read_cycle,
    write_cycles,
)


def cycle(number, *values, names=("a", "b")):
    """Scores of two classes: the value and a tenth less."""
    cases = {(0, f"case_{n}"): dict(zip(names, (v, v - 0.1), strict=True)) for n, v in enumerate(values)}
    return CycleScores(number, f"Dataset{900 + number}_X", Path("model"), 3 * number, cases)


def write_summary(model, fold, cases):
    file = model / f"fold_{fold}" / "validation" / "summary.json"
    file.parent.mkdir(parents=True)
    entries = [{"prediction_file": f"/p/{name}.nii.gz", "metrics": metrics} for name, metrics in cases.items()]
    file.write_text(json.dumps({"metric_per_case": entries}))


def read(model, splits, names):
    return read_cycle(2, "Dataset902_X", model, 6, splits, names, ".nii.gz")


def test_means():
    scores = cycle(0, 0.5, 0.9)
    assert scores.classes == pytest.approx({"a": 0.7, "b": 0.6})
    assert (scores.dice, scores.worst) == pytest.approx((0.65, 0.45))


def test_a_class_that_is_nowhere_does_not_count():
    scores = CycleScores(0, "d", Path("m"), 0, {(0, "x"): {"a": 0.5, "b": math.nan}, (0, "y"): {"a": 0.7, "b": 0.1}})
    assert scores.classes == pytest.approx({"a": 0.6, "b": 0.1})
    assert scores.mean_of((0, "x")) == 0.5


def test_the_mean_is_over_classes_as_in_nnunet(tmp_path):
    """With NaN, the mean over classes is another number than the mean over cases."""
    scores = CycleScores(0, "d", Path("m"), 0, {(0, "x"): {"a": 0.4, "b": math.nan}, (0, "y"): {"a": 0.8, "b": 0.2}})
    assert scores.dice == pytest.approx(0.4)  # (0.6 + 0.2) / 2


def test_gain_is_paired():
    mean, low, high = cycle(1, 0.6, 0.8).gain_over(cycle(0, 0.5, 0.7))
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_best_is_the_first_of_equal_ones():
    assert best_of([cycle(0, 0.5), cycle(1, 0.7), cycle(2, 0.7)]).cycle == 1
    assert best_of([cycle(0, math.nan), cycle(1, 0.1)]).cycle == 1


@pytest.mark.parametrize(
    ("dice", "patience", "stops"),
    [
        ((0.5, 0.6), 1, False),
        ((0.5, 0.5), 1, True),
        ((0.5, 0.4), 2, False),
        ((0.5, 0.4, 0.45), 2, True),
        ((0.5, 0.4, 0.6), 2, False),
    ],
)
def test_when_there_are_no_more(dice, patience, stops):
    assert has_stopped_gaining([cycle(n, value) for n, value in enumerate(dice)], patience) == stops


def test_folds_are_put_together(tmp_path):
    write_summary(tmp_path, 0, {"x": {"1": {"Dice": 0.5}, "(1, 2)": {"Dice": 0.25}}})
    write_summary(tmp_path, 1, {"y": {"1": {"Dice": None}, "(1, 2)": {"Dice": 1}}})
    scores = read(tmp_path, {0: ["x"], 1: ["y"]}, {"core": 1, "whole": (1, 2)})
    assert scores.cases[0, "x"] == {"core": 0.5, "whole": 0.25}
    assert math.isnan(scores.cases[1, "y"]["core"])
    assert scores.classes == {"core": 0.5, "whole": 0.625}


def test_a_case_of_several_folds_counts_in_each(tmp_path):
    for fold, value in ((0, 0.2), (1, 0.8)):
        write_summary(tmp_path, fold, {"x": {"1": {"Dice": value}}})
    assert read(tmp_path, {0: ["x"], 1: ["x"]}, {"organ": 1}).dice == pytest.approx(0.5)


def test_a_class_that_a_summary_lacks(tmp_path):
    write_summary(tmp_path, 0, {"x": {"1": {"Dice": 0.5}}})
    with pytest.raises(ValueError, match=r"summary\.json says nothing of liver in x; validate again: .* --val"):
        read(tmp_path, {0: ["x"]}, {"liver": 2})


@pytest.mark.parametrize(("expected", "named"), [(["x", "y"], "y"), (["y"], "x, y"), ([], "x")])
def test_other_cases_than_those_of_the_split(tmp_path, expected, named):
    """After a change of the splits, or with files of an earlier validation, which nnU-Net measures as well."""
    write_summary(tmp_path, 0, {"x": {"1": {"Dice": 0.5}}})
    with pytest.raises(ValueError, match=rf"not of the validation cases of splits_final\.json: {named} in one of"):
        read(tmp_path, {0: expected}, {"organ": 1})


def test_what_is_written(tmp_path):
    done = [cycle(0, 0.5, 0.6), cycle(1, 0.7, math.nan)]
    write_cycles(tmp_path, done, {"datasets": ["Dataset901_X", "Dataset902_X"]})
    record = json.loads((tmp_path / RECORD).read_text(), parse_constant=lambda name: pytest.fail(name))
    assert record["best"] == 1
    assert record["datasets"] == ["Dataset901_X", "Dataset902_X"]
    assert record["cycles"][1]["over_cycle_0"] == pytest.approx([0.2, 0.2, 0.2])
    with (tmp_path / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["cycle"], row["case"], row["mean"]) for row in rows][2:] == [
        ("1", "case_0", "0.650000"),
        ("1", "case_1", ""),
    ]


def test_the_table_marks_the_best():
    lines = format_cycles([cycle(0, 0.5), cycle(1, 0.7)]).splitlines()
    assert lines[1].startswith("0 ")
    assert lines[2].startswith("1 *")
    assert "+0.200 [+0.200, +0.200]" in lines[2]
