"""Self-training: train, label the unlabelled scans by agreement, train with the certain ones, and so on.

Pham et al., FLARE 2022, section on pseudo-labels: accepted consensus labels join the labelled scans, and the cycle is
repeated. All work is done by commands that can be run by hand, or elsewhere.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_ext import files
from nnunet_ext.data.classes import classes_of
from nnunet_ext.data.dataset_json import check_raw_dataset, load_dataset_json
from nnunet_ext.data.signature import plans_signature
from nnunet_ext.data.splits import load_splits
from nnunet_ext.data.unlabeled import find_unlabeled_cases
from nnunet_ext.evaluation.command import CommandError, run_command
from nnunet_ext.evaluation.progress import CountBar, StageBar, TrainingBar
from nnunet_ext.figures.self_training import draw_cycles
from nnunet_ext.pseudo_labels import cycles as steps
from nnunet_ext.pseudo_labels.cycle_checks import check_scheme
from nnunet_ext.pseudo_labels.cycle_datasets import RECORD, choose_names, reserved_elsewhere
from nnunet_ext.pseudo_labels.cycle_scores import (
    PICTURE,
    CycleScores,
    best_of,
    has_stopped_gaining,
    read_cycle,
    write_cycles,
)
from nnunet_ext.pseudo_labels.cycles import Cycles, Machine, Scheme, Step
from nnunet_ext.pseudo_labels.dataset import Roots
from nnunet_ext.pseudo_labels.provenance import pseudo_labelled
from nnunet_ext.pseudo_labels.run import NONE_ACCEPTED

FOLDER = "self_train"
_LOCK_SECONDS = 20  # choosing names takes a moment
_CLOCK_SECONDS = 60


@dataclass(frozen=True)
class Result:
    """What came of a self-training.

    Attributes:
        cycles: That are done.
        folder: Of record, table, picture and logs.
        ended: Why there are no more cycles.
        complete: Whether that is how it should end; no scan may have been accepted in cycle 1.
    """

    cycles: list[CycleScores]
    folder: Path
    ended: str
    complete: bool = True

    @property
    def best(self) -> CycleScores:
        """The best cycle."""
        return best_of(self.cycles)


class SelfTraining:
    """A self-training, as far as it has come.

    Args:
        scheme: What is trained.
        number: Of cycles after the first training.
        roots: nnU-Net's folders.
        results: ``nnUNet_results``.
        first: Number of the dataset of cycle 1, the others follow; None takes free ones.
        machine: Where the commands run.
        name: Of its folder in the results of the dataset.

    Attributes:
        folder: Of record, table, picture and logs.
        cycles: Commands of all cycles; the names of their datasets are reserved.

    Raises:
        FileExistsError: If ``first`` is taken.
        FileNotFoundError: If dataset, plans, scans or models are missing.
        ValueError: If the scheme is impossible, or the folder holds a self-training by another one.
    """

    def __init__(
        self,
        scheme: Scheme,
        number: int,
        roots: Roots,
        results: Path,
        first: int | None = None,
        machine: Machine | None = None,
        name: str = FOLDER,
    ) -> None:
        self.scheme, self.number, self.roots = scheme, number, roots
        self.dataset_json = load_dataset_json(check_raw_dataset(scheme.source))
        machine = machine or Machine()
        learns_unlabelled = check_scheme(scheme, number, roots, machine)
        self.folder = results / scheme.source / name
        with _locked(results / FOLDER):
            self.record = files.read_json(self.folder / RECORD) if (self.folder / RECORD).is_file() else {}
            self._refuse_other_scheme()
            before, reserved = self.record.get("datasets", ()), reserved_elsewhere(results, self.folder)
            names = choose_names(scheme.source, number, first, before, reserved, roots)
            self.record |= {"scheme": scheme.describe(), "datasets": list(names)}
            files.write_json(self.folder / RECORD, self.record, 1)
        self.cycles = Cycles(scheme, names, roots, machine, learns_unlabelled)

    def commands(self, patience: int = 1) -> list[tuple[Step, str]]:
        """Return what is left to do, as commands for a shell, as far as it is known now.

        Args:
            patience: Cycles without a gain after which there are no more.
        """
        left: list[tuple[Step, str]] = []
        done: list[CycleScores] = []
        for cycle in range(self.number + 1):
            found = [(step, shlex.join(step.words())) for step in self._left(cycle)]
            if found and not left and len(done) > 1 and has_stopped_gaining(done, patience):
                break
            left += found
            if not left:
                done.append(self._read(cycle))
        return left

    def _left(self, cycle: int) -> Iterator[Step]:
        for step in self.cycles.steps(cycle):
            if not self._is_done(step, cycle):
                yield step

    def _is_done(self, step: Step, cycle: int) -> bool:
        there = cycle == 0 or (self.roots.raw / self.cycles.dataset(cycle)).is_dir()
        return there and step.is_done()

    def run(self, patience: int = 1, progress_bar: bool = True) -> Result:
        """Do what is left, cycle by cycle, and write what came of each.

        Args:
            patience: Cycles without a gain after which there are no more.
            progress_bar: Show one for each command.

        Raises:
            BusyError: If another process does the same, or a command of an earlier call is still running.
            CommandError: If a command fails; names it and its log.
            ValueError: If cycles cannot be compared.
        """
        with files.only_here(self.folder, "self-trained"):
            files.sweep(self.folder)
            done: list[CycleScores] = []
            for cycle in range(self.number + 1):
                if len(done) > 1 and has_stopped_gaining(done, patience) and not self.cycles.is_finished(cycle):
                    return Result(done, self.folder, f"{patience} cycle(s) gained nothing (--patience {patience})")
                why = self._do_cycle(cycle, progress_bar)
                if why is not None:
                    return Result(done, self.folder, why, complete=len(done) > 1)
                done.append(self._read(cycle))
                self._write(done)
            return Result(done, self.folder, f"all {self.number} cycle(s) are done")

    def _do_cycle(self, cycle: int, progress_bar: bool) -> str | None:
        """Do a cycle, or return why there is nothing to train with."""
        if self.cycles.is_finished(cycle):
            tqdm.write(f"cycle {cycle}: done", file=sys.stderr)
        for step in self.cycles.steps(cycle):
            try:
                self._do(step, cycle, progress_bar)
            except CommandError as error:
                if step.kind == steps.LABELLING and error.status == NONE_ACCEPTED:
                    return f"no scan is accepted in cycle {cycle}. {error}"
                raise
            if step.kind == steps.LABELLING:
                self._refuse_none_left(cycle)
                self.cycles.restore_splits(cycle)
        return None

    def _do(self, step: Step, cycle: int, progress_bar: bool) -> None:
        if self._is_done(step, cycle):
            tqdm.write(f"{step.title}: done", file=sys.stderr)
            return
        words, log = step.words(), self.folder / "logs" / f"{step.name}.log"
        running = log.with_suffix(".running.json")
        _refuse_running(running)
        tqdm.write(f"$ {shlex.join(words)}", file=sys.stderr)
        bar = _bar(step, self.scheme, cycle, progress_bar)
        finished = False
        try:
            with files.only_here(step.place, "made by self_train"):
                run_command(
                    words, log, None, bar.line, lambda _: bar.tick(), lambda process: _note_running(running, process)
                )
            finished = True
        except CommandError:
            # commands say by their exit status that some scans cannot be read; the others are done all the same
            if step.kind not in (steps.COUNTED, steps.LABELLING) or not self._is_done(step, cycle):
                raise
            tqdm.write(f"{step.title}: some scans failed, the others are done; see {log}", file=sys.stderr)
        finally:
            bar.close(finished)
            running.unlink(missing_ok=True)  # it stays where this process is killed, and the command may live on
        if finished and not self._is_done(step, cycle):
            raise CommandError(f"{shlex.join(words)} ended without what it should have made; its output is in {log}")

    def _refuse_none_left(self, cycle: int) -> None:
        raw = self.roots.raw / self.cycles.dataset(cycle)
        cases, _ = find_unlabeled_cases(raw, load_dataset_json(raw))
        if self.cycles.learns_unlabelled and not cases:
            raise ValueError(
                f"all scans of {raw.name} got labels, and {self.scheme.student} needs some without: train the cycles "
                "with a supervised trainer (--student nnUNetTrainer), or accept fewer (--min_score, --top), each with "
                "--name NAME"
            )

    def _read(self, cycle: int) -> CycleScores:
        model, dataset = self.cycles.model(cycle), self.cycles.dataset(cycle)
        plans = files.read_json(model / "plans.json", "train again")
        self._refuse_other_plans(model, plans)
        splits = load_splits(self.roots.preprocessed / self.scheme.source)
        validated = {fold: splits[fold]["val"] for fold in self.scheme.folds}
        names, ending = classes_of(plans, self.dataset_json).regions, self.dataset_json["file_ending"]
        return read_cycle(cycle, dataset, model, self._accepted(cycle), validated, names, ending)

    def _accepted(self, cycle: int) -> int:
        """Return how many pseudo-labels a cycle has, also where its dataset was removed since."""
        if cycle == 0:
            return 0
        record = self.cycles.refuse_others_labels(cycle)
        known = {entry["cycle"]: entry["pseudo_labels"] for entry in self.record.get("cycles", ())}
        return len(pseudo_labelled(record)) if record else known.get(cycle, 0)

    def _refuse_other_plans(self, model: Path, plans: dict[str, Any]) -> None:
        """Raise where a model was trained with other patches or preprocessing than the plans say now."""
        now = files.read_json(self.roots.preprocessed / self.scheme.source / f"{self.scheme.plans}.json")
        for content in (plans, now):
            content.pop("continue_training", None)
        trained, wanted = (_decisive(content, self.scheme.configuration) for content in (plans, now))
        if trained != wanted:
            key = next(key for key in wanted if trained.get(key) != wanted[key])
            raise ValueError(
                f"{model} was trained with other plans than {self.scheme.plans} are now ({key} differs), so that "
                "cycles would compare plans as well; train it anew, or restore the plans"
            )

    def _write(self, done: Sequence[CycleScores]) -> None:
        write_cycles(self.folder, done, self.record)
        if len(done) > 1:
            drawn = [_drawn(scores, done[0]) for scores in done]
            title = f"{self.scheme.source}, {self.scheme.student}, {self.scheme.configuration}"
            draw_cycles(self.folder / PICTURE, title, drawn, best_of(done).cycle)

    def _refuse_other_scheme(self) -> None:
        before, now = self.record.get("scheme"), self.scheme.describe()
        if not isinstance(before, dict):
            return
        for key, value in now.items():
            if key in before and before[key] != value:
                raise ValueError(
                    f"{self.folder} holds a self-training whose {key.replace('_', ' ')} is {_said(before[key])} and "
                    f"now {_said(value)}: its cycles do not go on from each other. Ask for the same, or begin another "
                    "one with --name NAME"
                )


def _decisive(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    manager = PlansManager(plans)
    wanted = manager.get_configuration(configuration)
    more = {"patch_size": list(wanted.patch_size), "batch_size": wanted.batch_size}
    return plans_signature(manager, wanted) | more


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time choose names."""
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.only_here(folder, "reserved for self-training"))
            except files.BusyError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
                continue
            yield
            return


def _note_running(file: Path, process: int) -> None:
    with contextlib.suppress(psutil.Error):
        created = psutil.Process(process).create_time()
        files.write_json(file, {"host": socket.gethostname(), "pid": process, "created": created})


def _refuse_running(file: Path) -> None:
    """Raise where a command of an earlier call lives on, whose caller was killed."""
    try:
        noted = files.read_json(file)
        process = psutil.Process(noted["pid"])
        # the time of a start is reckoned from the clock, which may have been set since
        same = noted["host"] == socket.gethostname() and abs(process.create_time() - noted["created"]) < _CLOCK_SECONDS
        alive = same and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return
    if alive:
        raise files.BusyError(
            f"process {noted['pid']} of an earlier call is still at it ({file.name.partition('.')[0]}); wait until it "
            "is done, or stop it"
        )


def find_results() -> Path:
    """Return nnU-Net's folder of results.

    Raises:
        ValueError: If it is not set.
    """
    from nnunetv2.paths import nnUNet_results

    if not nnUNet_results.is_set():
        raise ValueError("nnUNet_results is not set, one of nnU-Net's folders; set the environment variable")
    return Path(str(nnUNet_results))


def _bar(step: Step, scheme: Scheme, cycle: int, shown: bool) -> StageBar:
    if step.kind == steps.TRAINING:
        return TrainingBar(step.title, _epochs(scheme.student if cycle else scheme.trainer), shown)
    return StageBar(step.title, shown=shown) if step.kind == steps.TIMED else CountBar(step.title, shown)


def _epochs(trainer: str) -> int:
    found = re.search(r"_(\d+)epochs?(?:_|$)", trainer)
    return int(found[1]) if found else 1000


def _drawn(scores: CycleScores, first: CycleScores) -> dict[str, Any]:
    return {
        "cycle": scores.cycle,
        "pseudo_labels": scores.accepted,
        "dice": scores.dice,
        "worst_case": scores.worst,
        "classes": scores.classes,
        "cases": [scores.mean_of(case) for case in sorted(first.cases)],
        "interval": scores.gain_over(first)[1:],
    }
