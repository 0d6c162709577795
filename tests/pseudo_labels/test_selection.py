"""What is accepted, and what is said where nothing is."""

import math
import re

import pytest

from nnunet_ext.pseudo_labels.selection import CaseScores, Rule, nothing_accepted, select

CASES = [
    CaseScores("b", {"liver": 0.95, "spleen": 0.60}),
    CaseScores("a", {"liver": 0.95, "spleen": 0.91}),
    CaseScores("c", {"liver": 0.97, "spleen": math.nan}),
    CaseScores("d", {"liver": math.nan, "spleen": math.nan}),
]


def names(cases):
    return [case.name for case in cases]


def test_both_thresholds_decide_and_absent_classes_do_not_count():
    selection = select(CASES, Rule(min_score=0.7, min_class_score=0.7))
    assert names(selection.accepted) == ["c", "a"]
    assert names(selection.rejected) == ["b"]
    assert names(selection.empty) == ["d"]
    assert names(select(CASES, Rule(min_score=0.95, min_class_score=0)).accepted) == ["c"]
    assert CASES[0].worst == ("spleen", 0.60)


@pytest.mark.parametrize(("top", "accepted"), [(0.1, ["c"]), (0.5, ["c", "a"]), (1, ["c", "a", "b"])])
def test_the_best_share(top, accepted):
    selection = select(CASES, Rule(top=top))
    assert names(selection.accepted) == accepted
    assert names(selection.empty) == ["d"]


def test_where_nothing_is_accepted_the_threshold_that_is_named_accepts_a_tenth():
    message = nothing_accepted(CASES, Rule(min_score=0.99))
    assert re.search(
        r"no case of 4 reaches a score of 0\.99 .*between 0\.775 and 0\.970, their median is 0\.930", message
    )
    found = re.search(r"--min_score (\S+) --min_class_score (\S+) would", message)
    assert names(select(CASES, Rule(float(found[1]), float(found[2]))).accepted) == ["c"]
    assert nothing_accepted([], Rule()) == "no case is accepted: every one of them failed"
    assert "no network finds any class in any of 1 case" in nothing_accepted(CASES[3:], Rule())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_score": 1.2}, "min_score must lie between 0 and 1, got 1.2"),
        ({"min_class_score": -1}, "min_class_score must lie"),
        ({"top": 0}, "top must lie above 0 and be 1 at most, got 0"),
    ],
)
def test_rules_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        Rule(**values)
