"""One call of a predictor: cases go through preprocessing, network and export, and a bad one costs no other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from nnunet_ext.data.in_flight import InFlight
from nnunet_ext.data.pool import WORKER_DIED, WorkerDiedError, map_isolated
from nnunet_ext.files import DiskFullError
from nnunet_ext.inference.background import Background
from nnunet_ext.inference.case import Model, Prepared
from nnunet_ext.inference.process_memory import total_memory_bytes
from nnunet_ext.inference.spacing import SpacingRule
from nnunet_ext.inference.spacing_report import SpacingReport, complete_record
from nnunet_ext.inference.writing import Exported, Handover, export

SHARE = 1 / 8  # of the memory, for cases that wait for the network, and again for those that have been there
AHEAD = 2  # times as many small cases as there are processes wait for the network
Result = np.ndarray | tuple[np.ndarray, np.ndarray | None] | None  # label map, with probabilities where wanted
CONTINUE = "Mend or remove them and run again, with --continue_prediction for these cases only."
OLDER = "an older result is still there; remove it before you use --continue_prediction"
REMEDY = "run again with -npp 0, or on a machine with more memory"


class PredictionFailedError(RuntimeError):
    """Some cases failed; all others are done.

    Attributes:
        failures: Case -> reason why it failed.
        results: Results of all cases in their order, ``None`` for those that failed or were written to files.
        not_begun: Names of the cases that were left, because they would have failed as well.
    """

    def __init__(
        self, failures: dict[str, str], results: list[Any], not_begun: Sequence[str] = (), remedy: str = CONTINUE
    ) -> None:
        self.failures, self.results, self.not_begun = failures, results, list(not_begun)
        others = "the others are done and kept" if not not_begun else f"{len(not_begun)} more were not begun"
        lines = [f"{len(failures)} of {len(results)} case(s) failed; {others}."]
        lines += [f"  {case}: {reason}" for case, reason in failures.items()]
        lines.append(remedy)
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Task:
    """A case to predict.

    Attributes:
        source: Image files, or an array ``(C, *S)`` and its properties.
        previous: Segmentation of the previous stage, a file or an array; ``None`` if there is none.
        output: Path of the result without its ending; ``None`` keeps the result.
    """

    source: tuple[Any, ...]
    previous: str | np.ndarray | None
    output: str | None


def name_cases(tasks: list[Task]) -> dict[str, Task]:
    """Name cases by their outputs, their first images or their numbers; by whole paths where names are taken."""
    paths = [
        task.output or (task.source[0] if isinstance(task.source[0], str) else f"image {number}")
        for number, task in enumerate(tasks)
    ]
    short = [Path(path).name for path in paths]
    names = short if len(set(short)) == len(short) else paths
    if len(set(names)) < len(names):
        names = [f"{path} ({number})" for number, path in enumerate(paths, 1)]
    return dict(zip(names, tasks, strict=True))


class PredictorOfCases(Protocol):
    """The part of a predictor that a run uses."""

    allow_tqdm: bool
    dataset_json: dict[str, Any]

    @property
    def rule(self) -> SpacingRule:
        """Rule that chooses the spacings of each case."""

    @property
    def model_of_cases(self) -> Model:
        """Trained model, as workers that prepare and export cases get it."""

    @property
    def export_device(self) -> torch.device:
        """Device that fast exports interpolate on."""

    @property
    def prepare_case(self) -> Callable[..., Prepared]:
        """Function that prepares a case of a source, a previous stage, a rule and a model; it can be pickled."""

    def predict_logits(self, prepared: Prepared, folder: Path | None, save_probabilities: bool) -> torch.Tensor:
        """Return the logits of a case, and complete its record; intermediate files may lie on the folder's disk."""

    def exports_fast(self, prepared: Prepared, logits: torch.Tensor, save_probabilities: bool) -> bool:
        """Whether a case is exported fast."""

    def say_spacing(self, name: str, record: dict[str, Any]) -> None:
        """Print which spacings a case got."""

    def say_agreement(self, name: str, record: dict[str, Any]) -> None:
        """Print what the networks agree about in a case, where that is wanted."""


class Run:
    """Preprocessing, network and export of named cases, each on its own.

    Args:
        predictor: Predictor whose network predicts the cases.
        tasks: Name -> case to predict.
        save_probabilities: Whether to write or return probabilities too.
        report: Report that gets the record of each case; ``None`` where results are returned instead of written.
        older: What is said of a case that failed and has a result of an earlier run.
    """

    def __init__(
        self,
        predictor: PredictorOfCases,
        tasks: dict[str, Task],
        save_probabilities: bool,
        report: SpacingReport | None,
        older: str = OLDER,
    ) -> None:
        self.predictor, self.tasks, self.report = predictor, tasks, report
        self.save_probabilities, self.older = save_probabilities, older
        self.results: dict[str, Any] = {}
        self.failures: dict[str, str] = {}
        self.suspects: list[str] = []
        self.records: dict[str, dict[str, Any]] = {}
        self.alone = False
        self.stopped = False
        share = int(SHARE * (total_memory_bytes() or 0))
        self.waiting = InFlight(share, _bytes_of, {name: _bytes_of_source(task) for name, task in tasks.items()})
        self.leaving = InFlight(share, _bytes_of)

    def work(self, names: list[str], preprocessing: int, exporting: int, alone: bool = False) -> None:
        """Predict cases.

        Args:
            names: Names of the cases to predict, in this order.
            preprocessing: Number of processes for preprocessing; 0 works in this process.
            exporting: Number of processes, or of threads for fast exports; 0 works in this process.
            alone: Whether a worker that dies is the fault of the case.
        """
        self.alone = alone
        stock_exports = Background(exporting, False, self._done, self._died, self.leaving)
        fast_exports = Background(exporting, True, self._done, self._died, self.leaving)
        predictor, model = self.predictor, self.predictor.model_of_cases
        try:
            bar = tqdm(self._prepared(names, preprocessing), "cases", len(names), disable=not predictor.allow_tqdm)
            for name, prepared, error in bar:
                if self.stopped:
                    break
                if error is not None:
                    self._fail(name, error)
                    continue
                print(f"\nPredicting {name}:")
                predictor.say_spacing(name, prepared.record)
                output = self.tasks[name].output
                size = _bytes_of_logits(prepared, model)
                fast_exports.make_room(size)
                stock_exports.make_room(size)
                self.leaving.begin(name, size)
                try:
                    folder = None if output is None else Path(output).parent
                    logits = predictor.predict_logits(prepared, folder, self.save_probabilities)
                    predictor.say_agreement(name, prepared.record)
                    is_fast = predictor.exports_fast(prepared, logits, self.save_probabilities)
                except Exception as failure:
                    self._fail(name, failure)
                    continue
                self.leaving.finished(name, logits)
                self.records[name] = prepared.record
                shared = (prepared, model, output, self.save_probabilities, is_fast)
                record = None if self.report is None else self.report.record_of(name)
                if is_fast:
                    fast_exports.submit(name, export, logits, *shared, predictor.export_device, record)
                else:
                    array = logits.numpy()
                    values = Handover(array) if exporting else array
                    stock_exports.submit(name, export, values, *shared, None, record)
                    del array, values
                del logits, prepared, shared
        finally:
            try:
                fast_exports.finish()
            finally:
                stock_exports.finish()

    def _prepared(self, names: list[str], processes: int) -> Iterator[tuple[str, Any, Exception | None]]:
        rule, model = self.predictor.rule, self.predictor.model_of_cases
        calls = {name: (self.tasks[name].source, self.tasks[name].previous, rule, model) for name in names}
        # There is nothing to be done beside one case, so it is prepared here, which saves the start of a process; not
        # where a worker has died of it.
        several = len(names) > 1 or self.alone
        # More than there are processes, so that they work while the network does.
        return map_isolated(
            self.predictor.prepare_case,
            calls,
            processes if several else 0,
            always_spawn=processes > 0 and several,
            handed_out=(1 + AHEAD) * processes,
            remedy=REMEDY,
            in_flight=self.waiting,
        )

    def _done(self, name: str, exported: Exported | None, error: Exception | None) -> None:
        self.leaving.end(name)
        if error is not None or exported is None:
            self._fail(name, error or RuntimeError("no result"))
            return
        record = complete_record(self.records.pop(name), exported.seconds, exported.peak_memory_mib)
        self.results[name] = nnunet_result(exported, self.save_probabilities)
        if self.report is not None:
            try:
                self.report.add(name, record)
            except OSError as failure:
                self.stopped = isinstance(failure, DiskFullError)
                self.failures[name] = f"its label map is there and whole, but not its record: {failure}"
                print(f"{name}: {self.failures[name]}")
                return
        print(f"done with {name}")

    def _died(self, name: str) -> None:
        self.leaving.end(name)
        if self.alone:
            self._fail(name, WorkerDiedError(f"{WORKER_DIED}; run again with -nps 0, or with --fast_export"))
        else:
            self.suspects.append(name)

    def _fail(self, name: str, error: Exception) -> None:
        self.leaving.end(name)
        self.stopped = self.stopped or isinstance(error, DiskFullError)  # the next ones would fail as well
        text = str(error).strip() or type(error).__name__
        output = self.tasks[name].output
        if output is not None and Path(output + self.predictor.dataset_json["file_ending"]).exists():
            text += f" ({self.older})"
        self.failures[name] = text
        print(f"{name} failed: {text}")


def _bytes_of(result: Prepared | torch.Tensor) -> int:
    """Return the bytes of a prepared case, or of logits."""
    if isinstance(result, torch.Tensor):
        return result.numel() * result.element_size()
    return int(result.data.nbytes) + (0 if result.carried is None else _bytes_of(result.carried))


def _bytes_of_source(task: Task) -> int:
    """Return the bytes of what a case is read from; 0 where that is not known."""
    images = task.source if isinstance(task.source[0], str) else ()
    try:
        return sum(Path(image).stat().st_size for image in images) or int(getattr(task.source[0], "nbytes", 0))
    except OSError:  # the case will fail by itself
        return 0


def _bytes_of_logits(prepared: Prepared, model: Model) -> int:
    """Return how many bytes the logits of a case will take."""
    heads = model.plans.get_label_manager(model.dataset_json).num_segmentation_heads
    return 2 * heads * math.prod(prepared.data.shape[1:])  # float16


def nnunet_result(exported: Exported, with_probabilities: bool) -> Result:
    """Return a result as nnU-Net's predictor does: the label map, with its probabilities where they are wanted."""
    if exported.segmentation is None or not with_probabilities:
        return exported.segmentation
    return exported.segmentation, exported.probabilities
