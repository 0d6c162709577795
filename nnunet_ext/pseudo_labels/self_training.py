"""Self-training: train, label the unlabelled scans by agreement, train with the certain ones, and so on.

Pham et al., FLARE 2022, section on pseudo-labels: accepted consensus labels join the labelled scans, and the cycle is
repeated. All work is done by commands that can be run by hand, or elsewhere.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_ext import files
from nnunet_ext.data.classes import classes_of
from nnunet_ext.data.dataset_json import check_raw_dataset, load_dataset_json
from nnunet_ext.data.splits import load_splits
from nnunet_ext.data.unlabeled import find_unlabeled_cases
from nnunet_ext.evaluation.command import CommandError, run_command
from nnunet_ext.evaluation.progress import CountBar, StageBar, TrainingBar
from nnunet_ext.figures.self_training import draw_cycles
from nnunet_ext.pseudo_labels import cycles as steps
from nnunet_ext.pseudo_labels.cycle_scores import (
    PICTURE,
    RECORD,
    CycleScores,
    best_of,
    has_stopped_gaining,
    read_cycle,
    refuse_other_cases,
    write_cycles,
)
from nnunet_ext.pseudo_labels.cycles import Cycles, Machine, Scheme, Step
from nnunet_ext.pseudo_labels.dataset import Roots, output_name, refuse_existing
from nnunet_ext.pseudo_labels.provenance import pseudo_labelled, read_record

FOLDER = "self_train"
_LAST = 999  # number of a dataset
_MEMBERS = (
    "agreement needs two networks or more: train several folds (-f 0 1), take a trainer with two networks "
    "(nnUNetTrainerSemi), or name other models with -m"
)


@dataclass(frozen=True)
class Result:
    """What came of a self-training.

    Attributes:
        cycles: That are done.
        folder: Of record, table, picture and logs.
        ended: Why there are no more cycles.
    """

    cycles: list[CycleScores]
    folder: Path
    ended: str

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
        cycles: Commands of all cycles.

    Raises:
        FileExistsError: If a dataset of a number that is wanted is there, and none of this self-training.
        FileNotFoundError: If dataset or plans are missing.
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
        raw = check_raw_dataset(scheme.source)
        self.dataset_json = load_dataset_json(raw)
        learns_unlabelled = check_scheme(scheme, number, roots)
        self.folder = results / scheme.source / name
        before = files.read_json(self.folder / RECORD) if (self.folder / RECORD).is_file() else {}
        self._refuse_other_scheme(before)
        outputs = choose_outputs(scheme.source, number, first, before.get("datasets", ()), roots)
        self.cycles = Cycles(scheme, outputs, roots, machine or Machine(), learns_unlabelled)

    def commands(self) -> list[tuple[Step, str]]:
        """Return what is left to do, as commands for a shell, as far as it is known now."""
        left = []
        for cycle in range(self.number + 1):
            for step in self.cycles.steps(cycle):
                if not self._is_done(step, cycle):
                    left.append((step, shlex.join(step.words())))
        return left

    def _is_done(self, step: Step, cycle: int) -> bool:
        there = cycle == 0 or (self.roots.raw / self.cycles.dataset(cycle)).is_dir()
        return there and step.is_done()

    def run(self, patience: int = 1, progress_bar: bool = True) -> Result:
        """Do what is left, cycle by cycle, and write what came of each.

        Args:
            patience: Cycles without a gain after which there are no more.
            progress_bar: Show one for each command.

        Raises:
            BusyError: If another process does the same.
            CommandError: If a command fails; names it and its log.
            ValueError: If cycles cannot be compared.
        """
        with files.only_here(self.folder, "self-trained"):
            files.sweep(self.folder)
            done: list[CycleScores] = []
            self._write(done)
            ended = f"all {self.number} cycle(s) are done"
            for cycle in range(self.number + 1):
                for step in self.cycles.steps(cycle):
                    self._do(step, cycle, progress_bar)
                    if step.name.endswith("pseudo_label"):
                        self._refuse_none_left(cycle)
                done.append(self._read(cycle))
                refuse_other_cases(done[0], done[-1])
                self._write(done)
                if cycle < self.number and cycle > 0 and has_stopped_gaining(done, patience):
                    ended = f"the last {patience} cycle(s) gained nothing (--patience {patience})"
                    break
            return Result(done, self.folder, ended)

    def _do(self, step: Step, cycle: int, progress_bar: bool) -> None:
        if self._is_done(step, cycle):
            tqdm.write(f"{step.title}: done", file=sys.stderr)
            return
        words = step.words()
        tqdm.write(f"$ {shlex.join(words)}", file=sys.stderr)
        log = self.folder / "logs" / f"{step.name}.log"
        bar = _bar(step, self.scheme, cycle, progress_bar)
        finished = False
        try:
            run_command(words, log, on_line=bar.line, on_tick=lambda _: bar.tick())
            finished = True
        except CommandError:
            # pseudo_label says by its exit status that some scans cannot be read; the others are labelled all the same
            if not (step.kind == steps.COUNTED and self._is_done(step, cycle)):
                raise
            tqdm.write(f"{step.title}: some scans failed, the others are done; see {log}", file=sys.stderr)
        finally:
            bar.close(finished)
        if finished and not self._is_done(step, cycle):
            raise CommandError(f"{shlex.join(words)} ended without what it should have made; its output is in {log}")

    def _refuse_none_left(self, cycle: int) -> None:
        raw = self.roots.raw / self.cycles.dataset(cycle)
        cases, _ = find_unlabeled_cases(raw, load_dataset_json(raw))
        if self.cycles.learns_unlabelled and not cases:
            raise ValueError(
                f"all scans of {raw.name} got labels, and {self.scheme.student} needs some without: train the cycles "
                "with a supervised trainer (--student nnUNetTrainer), or accept fewer (--min_score, --top)"
            )

    def _read(self, cycle: int) -> CycleScores:
        model = self.cycles.model(cycle)
        plans = files.read_json(model / "plans.json", "train again")
        names = classes_of(plans, self.dataset_json).regions
        summaries = [self.cycles.summary(cycle, fold) for fold in self.scheme.folds]
        accepted = len(pseudo_labelled(read_record(self.roots.raw / self.cycles.dataset(cycle)))) if cycle else 0
        ending = self.dataset_json["file_ending"]
        return read_cycle(cycle, self.cycles.dataset(cycle), model, accepted, summaries, names, ending)

    def _write(self, done: Sequence[CycleScores]) -> None:
        record = self.scheme.describe()
        write_cycles(self.folder, done, record, self.cycles.outputs)
        if len(done) > 1:
            drawn = [_drawn(scores, done[0]) for scores in done]
            title = f"{self.scheme.source}, {self.scheme.student}, {self.scheme.configuration}"
            draw_cycles(self.folder / PICTURE, title, drawn, best_of(done).cycle)

    def _refuse_other_scheme(self, record: dict[str, Any]) -> None:
        before, now = record.get("scheme"), self.scheme.describe()
        if before is None or before == now:
            return
        key = next(key for key in now if before.get(key) != now[key])
        raise ValueError(
            f"{self.folder} holds a self-training whose {key.replace('_', ' ')} is {_said(before.get(key))}, now it is "
            f"{_said(now[key])}: its cycles do not go on from each other. Ask for the same, or begin another one with "
            "--name NAME"
        )


def _said(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def find_results() -> Path:
    """Return nnU-Net's folder of results.

    Raises:
        ValueError: If it is not set.
    """
    from nnunetv2.paths import nnUNet_results

    if not nnUNet_results.is_set():
        raise ValueError("nnUNet_results is not set, one of nnU-Net's folders; set the environment variable")
    return Path(str(nnUNet_results))


def check_scheme(scheme: Scheme, cycles: int, roots: Roots) -> bool:
    """Check what would otherwise fail after hours.

    Args:
        scheme: What is trained.
        cycles: Number of cycles after the first training.
        roots: nnU-Net's folders.

    Returns:
        Whether the student learns from unlabelled scans.

    Raises:
        FileNotFoundError: If the plans are missing.
        ValueError: If configuration, trainer or folds are wrong, or fewer than two networks would label.
    """
    preprocessed, number = roots.preprocessed / scheme.source, steps.number_of(scheme.source)
    plans = files.read_json(
        preprocessed / f"{scheme.plans}.json",
        f"run nnUNetv2_plan_and_preprocess -d {number}, or name other plans with -p",
    )
    if scheme.configuration not in plans.get("configurations", {}):
        known = ", ".join(plans.get("configurations", {}))
        raise ValueError(f"-c is {scheme.configuration}, expected one of the plans {scheme.plans}: {known}")
    stage = PlansManager(plans).get_configuration(scheme.configuration).previous_stage_name
    if stage is not None:
        raise ValueError(f"-c is {scheme.configuration}, which needs predictions of {stage}; take 3d_fullres instead")
    splits = load_splits(preprocessed)
    for fold in scheme.folds:
        if fold >= (len(splits) or 5):
            raise ValueError(
                f"-f is {fold}, expected 0 to {(len(splits) or 5) - 1}: of any other fold nnU-Net draws a split of its "
                "own, which may validate with pseudo-labels"
            )
    networks = [_networks(name) for name in (scheme.trainer, scheme.student)]
    label = networks[:cycles]  # those of the last cycle do not
    if not scheme.others and min(count for count, _ in label) * len(scheme.folds) < 2:
        raise ValueError(f"one network cannot agree with itself; {_MEMBERS}")
    return networks[1][1]


def _networks(trainer: str) -> tuple[int, bool]:
    """Return how many networks a trainer leaves, and whether it learns from unlabelled scans."""
    from nnunet_ext.trainers.cps import CPSPart
    from nnunet_ext.trainers.mean_teacher import MeanTeacherPart

    try:
        found = recursive_find_trainer_class_by_name(trainer)
    except RuntimeError as error:  # nnU-Net's names the folders where it looked
        raise ValueError(f"there is no trainer {trainer}; see nnUNetv2_ext trainers") from error
    semi = issubclass(found, (CPSPart, MeanTeacherPart))
    return (2 if semi else 1), semi


def choose_outputs(source: str, number: int, first: int | None, before: Sequence[str], roots: Roots) -> tuple[str, ...]:
    """Return the names of the datasets of cycles 1, 2, ...

    Args:
        source: Name of the dataset with the true labels.
        number: Of cycles.
        first: Number of the first dataset; None takes the first free numbers after that of ``source``.
        before: Names that an earlier run chose.
        roots: nnU-Net's folders.

    Raises:
        FileExistsError: If one that is wanted is there, and is of nobody's cycle.
        ValueError: If there are no numbers left, or ``first`` is another one than before.
    """
    names = list(before)
    if names and first is not None and output_name(str(first), source) != names[0]:
        raise ValueError(
            f"-o is {first}, but cycle 1 of this self-training is {names[0]}; leave out -o, or name another --name"
        )
    candidate = int(names[-1][7:10]) + 1 if names else first or int(source[7:10]) + 1
    fixed = bool(names) or first is not None
    while len(names) < number:
        if candidate > _LAST:
            raise ValueError(
                f"there are no {number} free dataset numbers in a row up to {_LAST}; name the first with -o"
            )
        name = output_name(str(candidate), source)
        try:
            refuse_existing(name, roots)
            names.append(name)
        except FileExistsError:
            if fixed:
                raise
            names.clear()
        candidate += 1
    return tuple(names)


def _bar(step: Step, scheme: Scheme, cycle: int, shown: bool) -> StageBar:
    if step.kind == steps.TRAINING:
        return TrainingBar(step.title, _epochs(scheme.student if cycle else scheme.trainer), shown)
    return CountBar(step.title, shown) if step.kind == steps.COUNTED else StageBar(step.title, shown=shown)


def _epochs(trainer: str) -> int:
    found = re.search(r"_(\d+)epochs?(?:_|$)", trainer)
    return int(found[1]) if found else 1000


def _drawn(scores: CycleScores, first: CycleScores) -> dict[str, Any]:
    means = [scores.mean_of(case) for case in sorted(first.cases)]
    return {
        "cycle": scores.cycle,
        "pseudo_labels": scores.accepted,
        "dice": scores.dice,
        "worst_case": scores.worst,
        "classes": scores.classes,
        "cases": means,
        "interval": scores.gain_over(first)[1:],
    }
