"""The command line of benchmarks that train a list of runs, each in a process of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import accuracy
from unlabelled import one, run_all


def train_list(
    description: str | None,
    file: str,
    runs: Sequence[Any],
    train: Callable[[Any], None],
    report: Callable[[], None],
    prepare: Callable[[Sequence[Any]], None],
    more: Mapping[str, Callable[[Any], None]] = MappingProxyType({}),
) -> None:
    """Parse the arguments of this process, and do what they ask for.

    Args:
        description: What the benchmark says of itself.
        file: Its script, which is run for each training.
        runs: All of its runs, in the order in which they are trained.
        train: Trains a run and writes its record.
        report: Prints what is done and owed.
        prepare: Makes what the runs that are asked for need, or ends saying what is missing.
        more: Further commands, and what they do with the first run that is named.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "one", *more])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of runs")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    arguments = parser.parse_args()
    by_name = {run.name: run for run in runs}
    unknown = [name for name in arguments.only or () if name not in by_name]
    if unknown:
        parser.error(f"unknown run {unknown[0]!r}; there are {', '.join(by_name)}")
    chosen = [by_name[name] for name in arguments.only or by_name]
    if arguments.command == "report":
        report()
    elif arguments.command in more:
        more[arguments.command](chosen[0])
    elif arguments.command == "one":
        sys.exit(one(chosen[0], train))
    else:
        prepare(chosen)
        left = run_all(chosen, arguments.jobs, lambda run: _begin(file, run))
        if left:
            sys.exit(f"not done: {', '.join(run.name for run in left)}; run the same command again")


def _begin(file: str, run: Any) -> subprocess.Popen:
    """Begin to train a run in a process of its own."""
    return subprocess.Popen([sys.executable, file, "one", "--only", run.name], env=accuracy.environment(run))
