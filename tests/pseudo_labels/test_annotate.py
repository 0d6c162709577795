"""Which scans to annotate first: least agreement first, and scans of all kinds in turn."""

import math

import numpy as np

from nnunet_ext.pseudo_labels.annotate import annotate_first, farthest_first, standardised
from nnunet_ext.pseudo_labels.selection import CaseScores


def case(name, score):
    return CaseScores(name, {"organ": score})


def features(spacing, *percentiles):
    return {"spacing_mm": [spacing, 1.0, 1.0], "percentiles": list(percentiles)}


CASES = [case("sure", 0.9), case("empty", math.nan), case("worst", 0.1), case("bad", 0.2), case("fair", 0.5)]


def test_least_agreement_comes_first():
    assert [one.name for one, _ in annotate_first(CASES)] == ["worst", "bad", "fair", "sure", "empty"]
    assert {cluster for _, cluster in annotate_first(CASES)} == {1}


def test_clusters_take_turns():
    """Worst and bad are scans of one kind, fair and sure of another."""
    of_kind = {"worst": 1.0, "bad": 1.1, "fair": 5.0, "sure": 5.1, "empty": 1.2}
    known = {name: features(spacing, 0.0, 1.0) for name, spacing in of_kind.items()}
    found = annotate_first(CASES, known, 2)
    assert [one.name for one, _ in found] == ["worst", "fair", "bad", "sure", "empty"]
    assert [cluster for _, cluster in found] == [1, 2, 1, 2, 1]


def test_more_clusters_than_kinds():
    known = {one.name: features(1.0, 0.0) for one in CASES}
    assert {cluster for _, cluster in annotate_first(CASES, known, 4)} == {1}


def test_all_features_weigh_the_same():
    rng = np.random.default_rng(0)
    many = [{"size_mm": [float(np.exp(a))], "percentiles": list(b)} for a, b in zip(*_numbers(rng), strict=True)]
    places = standardised(many)
    assert abs(places[:, 0].var() - 1) < 1e-9
    assert abs(places[:, 1:].var(0).sum() - 1) < 1e-9


def _numbers(rng):
    return rng.normal(0, 1, 20), rng.normal(0, 1, (20, 5))


def test_farthest_first():
    places = np.array([[0.0], [0.1], [4.0], [9.0], [9.1]])
    assert farthest_first(places, 2) == [0, 0, 0, 1, 1]  # the last one is the farthest from the first
    assert farthest_first(places, 3) == [0, 0, 2, 1, 1]
    assert farthest_first(places, 1) == [0] * 5
