"""How good each cycle of a self-training is on the same validation cases with true labels, and which is the best."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext import files
from nnunet_ext.data.classes import Region
from nnunet_ext.evaluation.record import without_nan
from nnunet_ext.evaluation.summary import paired_bootstrap, read_summary
from nnunet_ext.evaluation.table import align
from nnunet_ext.pseudo_labels.cycle_datasets import RECORD

Key = tuple[int, str]  # fold and case: a case may be in the validation sets of several folds
TABLE, PICTURE = "self_train.csv", "self_train.png"
_REMEDY = "validate again: nnUNetv2_train ... --val"
_NAMED = 5  # cases named in an error


@dataclass(frozen=True)
class CycleScores:
    """Dice of one cycle.

    Attributes:
        cycle: Its number, 0 for the training with true labels alone.
        dataset: Name of the dataset that was trained with.
        model: Folder of the model.
        accepted: Number of pseudo-labels that were trained with.
        cases: Fold and validation case -> class -> Dice, NaN where neither truth nor prediction has the class.
    """

    cycle: int
    dataset: str
    model: Path
    accepted: int
    cases: Mapping[Key, Mapping[str, float]]

    @property
    def classes(self) -> dict[str, float]:
        """Mean over the cases of each class."""
        names = next(iter(self.cases.values()), {})
        return {name: _mean([case[name] for case in self.cases.values()]) for name in names}

    @property
    def dice(self) -> float:
        """Mean over the classes, nnU-Net's ``foreground_mean``."""
        return _mean(list(self.classes.values()))

    @property
    def worst(self) -> float:
        """Mean over the classes of the case that is worst."""
        means = [self.mean_of(case) for case in self.cases]
        return min((value for value in means if not math.isnan(value)), default=math.nan)

    def mean_of(self, case: Key) -> float:
        """Return the mean over the classes of a case."""
        return _mean(list(self.cases[case].values()))

    def gain_over(self, other: CycleScores) -> tuple[float, float, float]:
        """Return the mean over the cases of the difference to another cycle, and its 95 % interval.

        Args:
            other: A cycle with the same cases.
        """
        pairs = [self.mean_of(case) - other.mean_of(case) for case in self.cases]
        return paired_bootstrap(np.array(pairs, float))


def read_cycle(
    cycle: int,
    dataset: str,
    model: Path,
    accepted: int,
    splits: Mapping[int, Collection[str]],
    names: Mapping[str, Region],
    ending: str,
) -> CycleScores:
    """Read what nnU-Net measured on the validation cases of each fold.

    Args:
        cycle: Its number.
        dataset: Name of the dataset that was trained with.
        model: Folder of the model.
        accepted: Number of pseudo-labels that were trained with.
        splits: Fold -> its validation cases.
        names: Class -> label, or labels of a region.
        ending: Of the label files.

    Raises:
        FileNotFoundError: If a summary is missing.
        ValueError: If one is no summary, lacks a class, or is of other cases than the split's.
    """
    cases: dict[Key, dict[str, float]] = {}
    for fold, expected in splits.items():
        file = model / f"fold_{fold}" / "validation" / "summary.json"
        measured = read_summary(file, ending, _REMEDY)
        _refuse_other_cases(file, set(measured), set(expected))
        for case, regions in measured.items():
            missing = [name for name, region in names.items() if region not in regions]
            if missing:
                raise ValueError(f"{file} says nothing of {missing[0]} in {case}; {_REMEDY}")
            cases[fold, case] = {name: regions[region]["Dice"] for name, region in names.items()}
    return CycleScores(cycle, dataset, model, accepted, cases)


def _refuse_other_cases(file: Path, measured: set[str], expected: set[str]) -> None:
    """Raise where a fold was validated with other cases than those of its split, so that cycles cannot be compared."""
    other = sorted(measured ^ expected)
    if not other:
        return
    more = f" and {len(other) - _NAMED} more" if len(other) > _NAMED else ""
    raise ValueError(
        f"{file} is not of the validation cases of splits_final.json: {', '.join(other[:_NAMED])}{more} in one of them "
        "only. If the splits were changed after this training, restore them, or train this fold anew; if the folder "
        "holds files of an earlier validation, empty it and validate again (nnUNetv2_train ... --val)"
    )


def best_of(cycles: Sequence[CycleScores]) -> CycleScores:
    """Return the cycle with the highest mean Dice, the first of equal ones."""
    return max(cycles, key=lambda scores: (-math.inf if math.isnan(scores.dice) else scores.dice, -scores.cycle))


def has_stopped_gaining(cycles: Sequence[CycleScores], patience: int) -> bool:
    """Whether the last ``patience`` cycles are no better than the best one before them."""
    return cycles[-1].cycle - best_of(cycles).cycle >= patience


def format_cycles(cycles: Sequence[CycleScores]) -> str:
    """Return a table of the cycles; differences are those to cycle 0, with their 95 % intervals."""
    best, names = best_of(cycles), list(cycles[0].classes)
    rows = [["cycle", "dataset", "pseudo-labels", "Dice", "over cycle 0", "worst case", *names]]
    for scores in cycles:
        gain = "-" if scores is cycles[0] else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*scores.gain_over(cycles[0]))
        mark = " *" if scores is best else ""
        row = [f"{scores.cycle}{mark}", scores.dataset, str(scores.accepted), f"{scores.dice:.3f}", gain]
        rows.append([*row, f"{scores.worst:.3f}", *(f"{scores.classes[name]:.3f}" for name in names)])
    return align(rows, left=(0, 1))


def write_cycles(folder: Path, cycles: Sequence[CycleScores], reserved: Mapping[str, Any]) -> None:
    """Write the record, and the table with a row for each cycle and case.

    Args:
        folder: Where.
        cycles: The cycles that are done, one at least.
        reserved: What the record said before any was.
    """
    entries = [
        {
            "cycle": scores.cycle,
            "dataset": scores.dataset,
            "model": str(scores.model),
            "pseudo_labels": scores.accepted,
            "dice": scores.dice,
            "worst_case": scores.worst,
            "classes": scores.classes,
            "over_cycle_0": list(scores.gain_over(cycles[0])),
        }
        for scores in cycles
    ]
    later = [entry for entry in reserved.get("cycles", ()) if entry["cycle"] > cycles[-1].cycle]  # not read yet
    entries += later
    files.write_json(folder / RECORD, without_nan({**reserved, "best": best_of(cycles).cycle, "cycles": entries}), 1)
    names = list(cycles[0].classes)
    with files.whole(folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["cycle", "fold", "case", "mean", *names])
        for scores in cycles:
            for (fold, case), values in sorted(scores.cases.items()):
                row = [_mean(list(values.values())), *(values[name] for name in names)]
                writer.writerow([scores.cycle, fold, case, *("" if math.isnan(v) else f"{v:.6f}" for v in row)])


def _mean(values: Sequence[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan
