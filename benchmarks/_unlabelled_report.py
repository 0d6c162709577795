"""Tables of unlabelled.py: what is done, what it gains over every control, and what is owed."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import accuracy
import numpy as np
from _unlabelled_data import ATRIUM, describe
from _unlabelled_runs import CONTROLS, EPOCHS, ITERATIONS, TASKS, Run, cost, step_cost

HEADROOM = 0.01  # between supervised and ceiling, below which a task cannot show anything
NOTHING = 0.1  # Dice of a class below which it was not learned
LONG_COSTS = 2.5  # in supervised trainings of the usual length; a long one costs three
FEW_TESTS = 10  # test cases up to which each is listed
# What a method must keep to: more Dice than the best control, and no class and no worst case much below supervised.
LEAST_GAIN, MOST_CLASS_LOSS, MOST_WORST_LOSS = 0.005, 0.01, 0.02
RULE = (
    f"The rule: two seeds; Dice at least {LEAST_GAIN:.3f} above that of the best control, its interval above 0; "
    f"no class more than {MOST_CLASS_LOSS:.3f}, and the worst case no more than {MOST_WORST_LOSS:.3f} below supervised."
)
FIRST, MEAN = "network 1", "mean weights"


@dataclass(frozen=True)
class Table:
    """Scores of one measure.

    Attributes:
        cases: Names of the test cases.
        values: Scores, ``(cases, classes)``; NaN where neither map has the class.
    """

    cases: tuple[str, ...]
    values: np.ndarray

    @property
    def of_cases(self) -> np.ndarray:
        """The mean over classes of each case."""
        return np.nanmean(self.values, 1)

    def minus(self, other: Table) -> Table:
        """Return the difference, case by case.

        Raises:
            ValueError: If the cases are others.
        """
        if self.cases != other.cases:
            raise ValueError(f"{len(self.cases)} and {len(other.cases)} test cases differ, so that they are no pairs")
        return Table(self.cases, self.values - other.values)


def table_of(run: Run, measure: str, network: str = FIRST) -> Table | None:
    """Return the scores of a run, None if it is not done or has no such network."""
    result = accuracy.recorded(run)
    if result is None or network not in result[measure]:
        return None
    cases = result[measure][network]
    return Table(tuple(sorted(cases)), np.array([cases[case] for case in sorted(cases)], float))


class Results:
    """What is done of a list of runs, by task, method and seed.

    Args:
        runs: All of them.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = {(run.task, run.method, run.seed): run for run in runs}

    def methods(self, task: str) -> dict[str, list[Run]]:
        """Return the runs of a task that are done, by method, in the order of the list."""
        found: dict[str, list[Run]] = {}
        for run in self.runs.values():
            if run.task == task and accuracy.recorded(run) is not None:
                found.setdefault(run.method, []).append(run)
        return found

    def mean(self, task: str, method: str, seeds: Sequence[int], measure: str, network: str = FIRST) -> Table | None:
        """Return the mean over seeds of the scores, None unless all are done."""
        tables = []
        for seed in seeds:
            run = self.runs.get((task, method, seed))
            table = None if run is None else table_of(run, measure, network)
            if table is None:
                return None
            tables.append(table)
        if any(table.cases != tables[0].cases for table in tables):
            raise ValueError(f"{task}, {method}: the seeds {list(seeds)} were judged on different test cases")
        return Table(tables[0].cases, np.mean([table.values for table in tables], 0))


def groups_of_seeds(runs: Sequence[Run]) -> list[tuple[int, ...]]:
    """Return each seed alone, and all together where there are several."""
    seeds = sorted(run.seed for run in runs)
    return [*((seed,) for seed in seeds), *([tuple(seeds)] if len(seeds) > 1 else [])]


def report(runs: Sequence[Run]) -> None:
    """Print what is done as Markdown, and name what is owed."""
    results = Results(runs)
    for name, task in TASKS.items():
        if results.methods(name):
            print(f"\n**{describe(name, task)}**")
            for table in (scores_table, equal_cost_table, classes_table, cases_table):
                lines = list(table(results, name))
                if len(lines) > 2:
                    print("\n" + "\n".join(lines))
            for line in never_learned(results, name):
                print(f"\n{line}")
    print(f"\n{RULE}")
    print("\n" + "\n".join(owed(runs)))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|---" * len(cells) + "|"]


def _with_interval(values: np.ndarray, sign: str = "") -> str:
    low, high = accuracy.interval(values)
    return f"{values.mean():{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _seeds(seeds: Sequence[int]) -> str:
    return " and ".join(map(str, seeds)) + (", pooled" if len(seeds) > 1 else "")


def scores_table(results: Results, task: str) -> Iterator[str]:
    """Yield the lines of the table of scores, each method beside supervised training of the same length."""
    smallest = TASKS[task].smallest
    place = list(TASKS[task].classes.values()).index(smallest)
    yield from _head(
        [
            task,
            "network",
            "seed",
            "steps",
            "Dice [95 %]",
            "worst case",
            f"smallest class ({smallest})",
            "NSD [95 %]",
            "Dice minus supervised [95 %]",
            "NSD minus supervised [95 %]",
            "gap closed, Dice",
            "gap closed, NSD",
        ]
    )
    for method, runs in results.methods(task).items():
        networks = list(accuracy.recorded(runs[0])["dsc"])
        for network in networks:
            for seeds in groups_of_seeds(runs):
                dice, nsd = (results.mean(task, method, seeds, measure, network) for measure in accuracy.MEASURES)
                if dice is None or nsd is None:
                    continue
                steps = _steps([run for run in runs if run.seed in seeds])
                cells = [method, network, _seeds(seeds), steps, _with_interval(dice.of_cases)]
                cells += [f"{dice.of_cases.min():.3f}", f"{np.nanmean(dice.values[:, place]):.3f}"]
                cells.append(_with_interval(nsd.of_cases))
                cells += _beside_supervised(results, runs[0], seeds, (dice, nsd), network)
                yield _row(cells)


def _steps(runs: Sequence[Run]) -> str:
    counts = sorted({accuracy.recorded(run)["steps"] for run in runs})
    text = " and ".join(map(str, counts))
    return text if runs[0].seconds is None else f"{text} in {runs[0].seconds:g} s"


def _beside_supervised(
    results: Results, run: Run, seeds: Sequence[int], tables: Sequence[Table], network: str
) -> list[str]:
    """Return the paired differences to supervised training, and the shares of the gap to the ceiling."""
    differences, gaps = [], []
    for table, measure in zip(tables, accuracy.MEASURES, strict=True):
        supervised = results.mean(run.task, run.baseline, seeds, measure)
        if supervised is None or (run.method == run.baseline and network == FIRST):
            differences.append("")
            gaps.append("")
            continue
        difference = table.minus(supervised).of_cases
        differences.append(_with_interval(difference, "+"))
        ceiling = None if run.ceiling is None else results.mean(*run.ceiling, seeds, measure)
        gaps.append("" if ceiling is None else gap_closed(difference.mean(), ceiling.minus(supervised).of_cases.mean()))
    return differences + gaps


def gap_closed(gain: float, gap: float) -> str:
    """Return the share of the gap between supervised training and the ceiling that a gain closes, and the gap.

    Args:
        gain: Mean difference to supervised training.
        gap: Mean difference of the ceiling to it.
    """
    return f"{gain / gap:+.2f} of {gap:.3f}" if gap >= HEADROOM else f"headroom {gap:+.3f}, too little"


def best_control(
    results: Results, task: str, seeds: Sequence[int], costs: float = 0
) -> tuple[str, str, Table, int] | None:
    """Return method, network and Dice of the control with the highest mean Dice, and among how many.

    Args:
        results: What is done.
        task: Name of the task.
        seeds: That all have to be done of a control.
        costs: Of what is compared with it: a long training is a control for those that cost as much.
    """
    found = [
        (method, network, table)
        for method in (*CONTROLS, *(["supervised_long"] if costs >= LONG_COSTS else []))
        for network in (FIRST, MEAN)
        if (table := results.mean(task, method, seeds, "dsc", network)) is not None
    ]
    if not found:
        return None
    return *max(found, key=lambda control: control[2].of_cases.mean()), len(found)


def equal_cost_table(results: Results, task: str) -> Iterator[str]:
    """Yield the lines of the table of methods, each against the best control."""
    yield from _head(
        [
            f"{task}, against the best control",
            "seed",
            "cost of a step",
            "cost of the training",
            "best control, its cost",
            "Dice minus it [95 %]",
            "NSD minus it [95 %]",
            "keeps to the rule",
        ]
    )
    for method, runs in results.methods(task).items():
        run = runs[0]
        if run.is_control or run.all_labels or run.baseline != "supervised":
            continue
        for seeds in groups_of_seeds(runs):
            control = best_control(results, task, seeds, cost(run))
            dice = results.mean(task, method, seeds, "dsc")
            if control is None or dice is None:
                continue
            name, network, table, choice = control
            factor, source = step_cost(run)
            other = results.runs[task, name, seeds[0]]
            gain = dice.minus(table).of_cases
            cells = [method, _seeds(seeds), f"{factor:.2f} ({source})", f"{cost(run):.2f}"]
            cells.append(f"{name}{'' if network == FIRST else f', {network}'}, {cost(other):.2f}; best of {choice}")
            cells.append(_with_interval(gain, "+"))
            nsd = results.mean(task, method, seeds, "nsd").minus(results.mean(task, name, seeds, "nsd", network))
            cells.append(_with_interval(nsd.of_cases, "+"))
            supervised = results.mean(task, "supervised", seeds, "dsc")
            reasons = broken_rules(gain, dice, supervised, list(TASKS[task].classes.values()), len(seeds))
            if choice < 2 * len(CONTROLS):
                reasons.append(f"{choice} of {2 * len(CONTROLS)} controls")
            yield _row([*cells, "; ".join(["no", *reasons]) if reasons else "yes"])


def broken_rules(
    gain: np.ndarray, dice: Table, supervised: Table | None, classes: Sequence[str], seeds: int
) -> list[str]:
    """Return why a method is not to be kept, empty if it is.

    Args:
        gain: Dice minus that of the best control, by case.
        dice: Of the method.
        supervised: Dice of supervised training of the same length, None if it is not done.
        classes: Names of the classes.
        seeds: How many the scores are a mean of.
    """
    reasons = [] if seeds > 1 else ["one seed"]
    if gain.mean() < LEAST_GAIN or accuracy.interval(gain)[0] <= 0:
        reasons.append("gain")
    if supervised is None:
        return [*reasons, "supervised not done"]
    reasons += [f"class {name}" for name in lost_classes(dice.minus(supervised), classes)]
    if dice.of_cases.min() < supervised.of_cases.min() - MOST_WORST_LOSS:
        reasons.append("worst case")
    return reasons


def lost_classes(difference: Table, classes: Sequence[str]) -> list[str]:
    """Return the classes that are more than a point of Dice below supervised training.

    Args:
        difference: Dice minus that of supervised training.
        classes: Their names.
    """
    means = np.nanmean(difference.values, 0)
    return [name for name, mean in zip(classes, means, strict=True) if mean < -MOST_CLASS_LOSS - 1e-9]


def classes_table(results: Results, task: str) -> Iterator[str]:
    """Yield the lines of the table of classes: differences of Dice to supervised training of the same length."""
    classes = list(TASKS[task].classes.values())
    yield from _head(
        [f"{task}, Dice minus supervised", "seed", *classes, f"no class more than {MOST_CLASS_LOSS:.3f} below"]
    )
    for method, runs in results.methods(task).items():
        if runs[0].all_labels or method == runs[0].baseline:
            continue
        for seeds in groups_of_seeds(runs):
            dice = results.mean(task, method, seeds, "dsc")
            supervised = results.mean(task, runs[0].baseline, seeds, "dsc")
            if dice is None or supervised is None:
                continue
            difference = dice.minus(supervised)
            lost = lost_classes(difference, classes)
            means = [f"{mean:+.3f}" for mean in np.nanmean(difference.values, 0)]
            yield _row([method, _seeds(seeds), *means, f"no: {', '.join(lost)}" if lost else "yes"])


def difference(first: Run, second: Run) -> str:
    """Return a line on what one run gains over another, whatever their lengths; both have to be done."""
    parts = []
    for measure, title in zip(accuracy.MEASURES, ("Dice", "NSD"), strict=True):
        tables = [table_of(run, measure) for run in (first, second)]
        gain = tables[0].minus(tables[1])
        parts.append(f"{title} {_with_interval(gain.of_cases, '+')}")
        if measure == accuracy.MEASURES[0]:
            worst = [f"{table.of_cases.min():.3f}" for table in reversed(tables)]
            names = TASKS[first.task].classes.values()
            by_class = zip(names, np.nanmean(gain.values, 0), strict=True)
            parts.append(f"worst case {' to '.join(worst)}")
            parts.append(", ".join(f"{name} {mean:+.3f}" for name, mean in by_class))
    return f"{first.name} minus {second.name}: {'; '.join(parts)}"


def cases_table(results: Results, task: str) -> Iterator[str]:
    """Yield the lines of the table of every test case, where there are too few for intervals to say much."""
    if TASKS[task].tests > FEW_TESTS:
        return
    for number, (method, runs) in enumerate(results.methods(task).items()):
        for seeds in groups_of_seeds(runs):
            dice = results.mean(task, method, seeds, "dsc")
            if dice is not None:
                if not number and seeds == groups_of_seeds(runs)[0]:
                    yield from _head([f"{task}, Dice of every case", "seed", *dice.cases])
                yield _row([method, _seeds(seeds), *(f"{value:.3f}" for value in dice.of_cases)])


def never_learned(results: Results, task: str) -> Iterator[str]:
    """Yield a line for each run that has not learned a class: means and gaps then say little of the others."""
    classes = list(TASKS[task].classes.values())
    for method, runs in results.methods(task).items():
        for run in runs:
            table = table_of(run, "dsc")
            means = np.full(len(classes), np.nan) if table is None else np.nanmean(table.values, 0)
            missed = [name for name, mean in zip(classes, means, strict=True) if mean < NOTHING]
            if missed:
                names = " and ".join(missed)
                yield f"Never learned (Dice below {NOTHING:g}): {names} by {method} with seed {run.seed}."


def owed(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the lines of the list of runs that are not done: the command of each, and about how long it takes."""
    missing = [run for run in runs if accuracy.recorded(run) is None]
    yield f"Owed: {len(missing)} of {len(runs)} runs." if missing else "Owed: nothing."
    bench = os.environ.get("NNUNET_EXT_BENCH")
    if missing:
        yield ""
    for run in missing:
        setting = f"NNUNET_EXT_BENCH={shlex.quote(bench)} " if bench else ""
        options = f" --atrium ${ATRIUM}" if run.task == "atrium8" else ""
        options += f" --seconds {run.seconds:g}" if run.seconds is not None else ""
        command = f"{setting}{Path(sys.executable).name} benchmarks/unlabelled.py run --only {run.name}{options}"
        yield f"- `{command}`: {expected(run, runs)}"


def expected(run: Run, runs: Sequence[Run]) -> str:
    """Return about how long a run takes, from those of its task that are done, or else from a rough figure."""
    if run.seconds is not None:
        return f"{run.seconds / 60:g} min of a GPU, and its preparation"
    known = [
        seconds / (cost(other) * EPOCHS * ITERATIONS)
        for other in runs
        if other.task == run.task and (seconds := training_seconds(other)) and not np.isnan(cost(other))
    ]
    a_step = float(np.median(known)) if known else TASKS[run.task].seconds_a_step
    minutes = a_step * cost(run) * EPOCHS * ITERATIONS / 60
    return f"about {minutes:.0f} min of one core ({'from those done' if known else 'a rough figure'})"


_EPOCH, _TIME = re.compile(r": Epoch (\d+)\s*$"), re.compile(r": Epoch time: ([\d.]+) s")


def training_seconds(run: Run) -> float | None:
    """Return the seconds that a run has trained, all parts together, None if nothing says.

    Records of older versions have those of the last part alone; for them the logs are read.
    """
    result = accuracy.recorded(run)
    if result is None or "seconds" in result:
        return result and result["seconds"]
    times, epoch = {}, ""
    for file in sorted((accuracy.WORK / "runs" / run.name).rglob("training_log_*.txt")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if found := _EPOCH.search(line):
                epoch = found[1]
            elif found := _TIME.search(line):
                times[epoch] = float(found[1])  # an epoch that was trained again counts once
    return sum(times.values()) or None
