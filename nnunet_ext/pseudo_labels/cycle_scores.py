"""How good each cycle of a self-training is on the same validation cases with true labels, and which is the best."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext import files
from nnunet_ext.data.classes import Region
from nnunet_ext.evaluation.record import without_nan
from nnunet_ext.evaluation.summary import paired_bootstrap, read_summary
from nnunet_ext.evaluation.table import align

TABLE, PICTURE, RECORD = "self_train.csv", "self_train.png", "self_train.json"
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
        cases: Validation case -> class -> Dice, NaN where neither truth nor prediction has the class.
    """

    cycle: int
    dataset: str
    model: Path
    accepted: int
    cases: Mapping[str, Mapping[str, float]]

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

    def mean_of(self, case: str) -> float:
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
    summaries: Sequence[Path],
    names: Mapping[str, Region],
    ending: str,
) -> CycleScores:
    """Read what nnU-Net measured on the validation cases of each fold.

    Args:
        cycle: Its number.
        dataset: Name of the dataset that was trained with.
        model: Folder of the model.
        accepted: Number of pseudo-labels that were trained with.
        summaries: ``summary.json`` of each fold.
        names: Class -> label, or labels of a region.
        ending: Of the label files.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one is no summary, or lacks a class.
    """
    cases: dict[str, dict[str, float]] = {}
    for file in summaries:
        for case, regions in read_summary(file, ending, _REMEDY).items():
            missing = [name for name, region in names.items() if region not in regions]
            if missing:
                raise ValueError(f"{file} says nothing of {missing[0]} in {case}; {_REMEDY}")
            cases[case] = {name: regions[region]["Dice"] for name, region in names.items()}
    return CycleScores(cycle, dataset, model, accepted, cases)


def refuse_other_cases(first: CycleScores, other: CycleScores) -> None:
    """Raise where two cycles were not validated with the same cases.

    Raises:
        ValueError: Names the cases that only one of them has.
    """
    unpaired = sorted(set(first.cases) ^ set(other.cases))
    if unpaired:
        more = f" and {len(unpaired) - _NAMED} more" if len(unpaired) > _NAMED else ""
        raise ValueError(
            f"{first.model} and {other.model} were validated with different cases ({', '.join(unpaired[:_NAMED])}"
            f"{more} in one of them only), so that cycles cannot be compared: the splits were changed since. Restore "
            "splits_final.json, or train the later one anew"
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


def write_cycles(
    folder: Path, cycles: Sequence[CycleScores], scheme: Mapping[str, Any], datasets: Sequence[str]
) -> None:
    """Write the record, and the table with a row for each cycle and case.

    Args:
        folder: Where.
        cycles: The cycles that are done.
        scheme: What was wanted, for the record.
        datasets: Names of the datasets of cycles 1, 2, ..., which later runs keep.
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
    best = best_of(cycles).cycle if cycles else None
    content = {"scheme": dict(scheme), "datasets": list(datasets), "best": best, "cycles": entries}
    files.write_json(folder / RECORD, without_nan(content), 1)
    if not cycles:
        return
    names = list(cycles[0].classes)
    with files.whole(folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["cycle", "case", "mean", *names])
        for scores in cycles:
            for case, values in sorted(scores.cases.items()):
                row = [_mean(list(values.values())), *(values[name] for name in names)]
                writer.writerow([scores.cycle, case, *("" if math.isnan(v) else f"{v:.6f}" for v in row)])


def _mean(values: Sequence[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return sum(there) / len(there) if there else math.nan
