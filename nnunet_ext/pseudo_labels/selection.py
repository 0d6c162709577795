"""Which scans' consensus labels are good enough to train on, by their scores of agreement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nnunet_ext.inference.agreement_scores import mean_score


@dataclass(frozen=True)
class CaseScores:
    """Scores of one scan.

    Attributes:
        name: Of the case.
        classes: Class -> agreement, 0 to 1, NaN for a class that no network finds.
    """

    name: str
    classes: Mapping[str, float]

    @property
    def score(self) -> float:
        """Mean over the classes that are there; NaN where none is."""
        return mean_score(self.classes)

    @property
    def worst(self) -> tuple[str, float]:
        """Name and score of the class with the least agreement; an empty name and NaN where no class is there."""
        there = {name: score for name, score in self.classes.items() if not math.isnan(score)}
        return min(there.items(), key=lambda item: item[1]) if there else ("", math.nan)


@dataclass(frozen=True)
class Rule:
    """What is accepted.

    Attributes:
        min_score: Least mean score.
        min_class_score: Least score of every class that is there.
        top: Share of the scored cases that is accepted, the best ones, instead of thresholds; None for thresholds.
    """

    min_score: float = 0.9
    min_class_score: float = 0.7
    top: float | None = None

    def __post_init__(self) -> None:
        """Refuse thresholds out of range.

        Raises:
            ValueError: If a threshold is not between 0 and 1, or the share not above 0 and up to 1.
        """
        for name in ("min_score", "min_class_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.top is not None and not 0 < self.top <= 1:
            raise ValueError(f"top must lie above 0 and be 1 at most, got {self.top}")

    def accepts(self, case: CaseScores) -> bool:
        """Whether a case reaches the thresholds; one without any class does not."""
        return case.score >= self.min_score and case.worst[1] >= self.min_class_score


@dataclass(frozen=True)
class Selection:
    """Cases by what becomes of them, the best first.

    Attributes:
        accepted: Labels to train on.
        rejected: Networks disagree too much.
        empty: No network finds anything, so that there is no score.
    """

    accepted: list[CaseScores] = field(default_factory=list)
    rejected: list[CaseScores] = field(default_factory=list)
    empty: list[CaseScores] = field(default_factory=list)


def select(cases: Sequence[CaseScores], rule: Rule) -> Selection:
    """Sort cases by score, and accept those that a rule accepts.

    Args:
        cases: Scores of all cases.
        rule: What is accepted; with a share ``top`` half a case is rounded up.
    """
    scored = sorted((case for case in cases if not math.isnan(case.score)), key=lambda case: (-case.score, case.name))
    empty = sorted((case for case in cases if math.isnan(case.score)), key=lambda case: case.name)
    if rule.top is not None:
        number = math.ceil(rule.top * len(scored))
        return Selection(scored[:number], scored[number:], empty)
    return Selection(
        [case for case in scored if rule.accepts(case)], [case for case in scored if not rule.accepts(case)], empty
    )


def nothing_accepted(cases: Sequence[CaseScores], rule: Rule) -> str:
    """Say how the scores are spread where a rule accepts none, and which threshold would accept a tenth.

    Args:
        cases: Scores of all cases.
        rule: What accepted none of them.
    """
    scored = sorted((case for case in cases if not math.isnan(case.score)), key=lambda case: case.score, reverse=True)
    if not cases:
        return "no case is accepted: every one of them failed"
    if not scored:
        return f"no case is accepted: no network finds any class in any of {len(cases)} case(s)"
    tenth = scored[: max(1, math.ceil(len(scored) / 10))]
    values = [case.score for case in scored]
    score, of_class = tenth[-1].score, min(case.worst[1] for case in tenth)
    return (
        f"no case of {len(cases)} reaches a score of {rule.min_score} with {rule.min_class_score} for every class: "
        f"scores lie between {values[-1]:.3f} and {values[0]:.3f}, their median is {values[len(values) // 2]:.3f}. "
        f"--min_score {_below(score)} --min_class_score {_below(of_class)} would accept a tenth; see the scores first"
    )


def _below(score: float) -> str:
    """Round down to three digits, so that the threshold accepts the score."""
    return f"{math.floor(score * 1000) / 1000:.3f}"
