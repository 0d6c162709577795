"""Agreement of cases in words: lines of single cases, and what is said of all of them at the end."""

import pytest

from nnunet_ext.inference.case_agreement import agreement_line, summary

FOLDS = ["fold 0, network 1", "fold 1, network 1"]


def record(score, networks=FOLDS, **classes):
    return {"agreement": {"score": score, "classes": classes, "networks": networks}}


ALIKE = record(0.95, liver=1.0, spleen=0.9, tumour=None)
APART = record(0.5, liver=0.8, spleen=0.2, tumour=None)
BETWEEN = record(0.7, liver=0.6, spleen=0.8)
NOTHING = record(None, liver=None, spleen=None)


def test_a_case_is_one_line():
    assert agreement_line("a", APART) == "a: agreement of 2 networks 0.500, least about spleen (0.200)"
    nothing = "a: none of 2 networks finds any class, so their agreement has no score"
    assert agreement_line("a", NOTHING) == nothing


def test_cases_below_are_listed_the_least_first_with_their_worst_class():
    records = {"a": ALIKE, "b": BETWEEN, "c": NOTHING, "d": APART, "e": NOTHING}
    assert summary(records, [], FOLDS, 0.8) == [
        "Agreement is below 0.8 in 2 of 3 case(s), the least first:",
        "  d: 0.500, least about spleen (0.200)",
        "  b: 0.700, least about liver (0.600)",
        "No network finds any class, so there is no score: c, e",
    ]


def test_a_score_that_is_reached_is_not_below_it():
    assert summary({"a": BETWEEN, "b": ALIKE}, [], FOLDS, 0.7) == ["Agreement is 0.7 or more in all of 2 case(s)."]
    assert summary({"a": APART}, [], FOLDS, 0.0) == ["Agreement is 0 or more in all of 1 case(s)."]


def test_without_a_threshold_nothing_is_listed():
    assert summary({"a": APART, "c": NOTHING}, ["a"], FOLDS, None) == []


@pytest.mark.parametrize("threshold", [None, 0.8])
def test_cases_done_before_without_a_score_or_by_other_networks_are_named(threshold):
    single = {"voxels": 3}
    records = {"a": single, "b": record(0.9, ["fold 0, network 1", "fold 0, network 2"], liver=0.9), "d": ALIKE}
    lines = summary(records, ["c", "b", "a"], FOLDS, threshold)
    assert lines[-2:] == [
        "Predicted before without --agreement, so there is no score: a, c; remove their label maps to have them "
        "predicted again",
        "Predicted before by other networks (fold 0, network 1; fold 0, network 2): b",
    ]
    assert len(lines) == (2 if threshold is None else 3)


@pytest.mark.parametrize(
    "found",
    [
        *(None, 0.9, {}, {"score": 0.9}),
        {"score": "high", "classes": {"liver": 0.9}, "networks": FOLDS},
        {"score": 0.9, "classes": {"liver": "high"}, "networks": FOLDS},
        {"score": 0.9, "classes": {"liver": None}, "networks": FOLDS},
        {"score": 0.9, "classes": [0.9], "networks": FOLDS},
        {"score": 0.9, "classes": {"liver": 0.9}, "networks": 2},
    ],
)
def test_what_is_no_record_of_an_agreement_is_none(found):
    (line,) = summary({"a": {"agreement": found}}, ["a"], FOLDS, 0.8)
    assert "there is no score: a" in line


def test_of_no_case_nothing_is_said():
    assert summary({}, [], FOLDS, 0.8) == []
