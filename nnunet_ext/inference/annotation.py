"""Whole segmentations from a few annotated slices of each scan: cases are found, carried through and written."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_ext import files
from nnunet_ext.inference.case import Model, Prepared
from nnunet_ext.inference.image_folder import list_inputs
from nnunet_ext.inference.prediction_run import PredictionFailedError, Run, Task
from nnunet_ext.inference.propagated import Carrier, nothing
from nnunet_ext.inference.propagation_model import PropagationModel
from nnunet_ext.inference.spacing import PlansSpacing, SpacingRule
from nnunet_ext.inference.spacing_report import SpacingReport
from nnunet_ext.inference.sparse_case import CHANNEL, SparseCase, case_of, missing_classes, prepare_sparse
from nnunet_ext.inference.writing import why_not_fast
from nnunet_ext.model_sharing.folders import sha256_of
from nnunet_ext.propagation.driver import NoReferenceError, Propagated, PropagationSettings, suggest

REPORT = "propagation_report"
RECORDED = 5  # suggestions of a case that its record has, where no number is asked for
_OLDER = "an older result is still there"
_REMEDY = "Mend or remove them and run again; what is done is kept."


@dataclass(frozen=True)
class Options:
    """What is carried, and how.

    Attributes:
        images: Folder of images, or the first channel of one.
        labels: Folder of label maps that are called as their cases, or the one of the only image.
        output: Folder to write to.
        named: Numbers of the annotated slices, from 1 in the order of the file; none where an ignore label tells.
        suggestions: How many slices to annotate next are named for each case; 0 for none.
        settings: Of the driver.
        overwrite: Whether cases that are there are made again.
        preprocessing: Number of processes for preprocessing; 0 works in this process.
        exporting: Number of processes for resampling and writing; 0 works in this process.
        progress: Whether bars are shown.
    """

    images: Path
    labels: Path
    output: Path
    named: tuple[int, ...] = ()
    suggestions: int = 0
    settings: PropagationSettings = field(default_factory=PropagationSettings)
    overwrite: bool = False
    preprocessing: int = 1
    exporting: int = 1
    progress: bool = True


Done = Callable[[SparseCase, np.ndarray, Propagated], None]


class Annotator:
    """Carries annotated slices through cases, as a run of cases asks a predictor.

    Args:
        found: The propagation model.
        device: Device of the networks.
        options: What is carried, and how.
        done: Called with each case, its image on the grid of the model ``(C, T, H, W)``, and what became of it.
    """

    def __init__(
        self, found: PropagationModel, device: torch.device, options: Options, done: Done | None = None
    ) -> None:
        self.found, self.device, self.options, self.done = found, device, options, done
        self.allow_tqdm, self.dataset_json = options.progress, found.model.dataset_json
        self._carrier: Carrier | None = None

    @property
    def rule(self) -> SpacingRule:
        """Rule that chooses the spacings of each case: the plans'."""
        return PlansSpacing()

    @property
    def model_of_cases(self) -> Model:
        """Trained model, as workers that prepare and export cases get it."""
        return self.found.model

    @property
    def export_device(self) -> torch.device:
        """Device that fast exports interpolate on."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    @property
    def prepare_case(self) -> Callable[..., Prepared]:
        """Function that prepares a case; it can be pickled."""
        return partial(prepare_sparse, named=self.options.named)

    def describe_options(self) -> dict[str, Any]:
        """Return the options that change a result, for reports."""
        settings = self.options.settings
        return {"model": self.found.describe(), "weighting": settings.weighting, "slices": list(self.options.named)}

    def predict_logits(self, prepared: Prepared, folder: Path | None, save_probabilities: bool) -> torch.Tensor:
        """Return the logits of a case, and complete its record."""
        if not isinstance(prepared, SparseCase):
            raise TypeError(f"expected a case with annotated slices, got {type(prepared).__name__}")
        print("\n".join(prepared.notes), end="\n" if prepared.notes else "")
        numbers, given = prepared.numbers, prepared.given
        record: dict[str, Any] = {"references": sorted(numbers.number(index) for index in given.indices)}
        prepared.record |= {"propagation": record, "predicted_with": self.describe_options()}
        record |= {"slices": numbers.total, "labels_sha256": sha256_of(Path(prepared.file))}
        if numbers.total == 1:
            start = time.perf_counter()
            logits, prepared.exported = nothing(prepared, self.model_of_cases, given)
            record["seconds"] = round(time.perf_counter() - start, 3)
            return logits
        missing = missing_classes(prepared, self.model_of_cases)
        record["missing_classes"] = missing
        if missing:
            names = ", ".join(f"{label} ({name})" for label, name in missing.items())
            print(
                f"Warning: {prepared.case}: no annotated slice has the class {names}, which cannot be found then; "
                "annotate a slice in which it is, if there is one"
            )
        try:
            carried = self.networks().carry(prepared, given, prepared.voxels)
        except NoReferenceError as error:
            raise ValueError(
                f"{prepared.file}: no class of its annotated slices is left on the grid of the model: where they have "
                "one, the image is 0 all around, or it is smaller than a voxel there; annotate other slices"
            ) from error
        prepared.exported = carried.exported
        first = prepared.properties["bbox_used_for_cropping"][0][0]
        wanted = record["suggestions_asked"] = self.options.suggestions or RECORDED
        record["suggestions"] = [
            {"slice": numbers.number(first + index), "agreement": round(float(carried.result.agreement[index]), 4)}
            for index in suggest(carried.result, wanted)
        ]
        record["seconds"] = round(carried.seconds, 3)
        if self.done is not None:
            self.done(prepared, prepared.data, carried.result)
        prepared.data = np.empty(0, np.float32)
        return carried.logits

    def networks(self) -> Carrier:
        """Return the networks of the model, which are loaded once.

        Raises:
            ValueError: If weights are not those of the network in the plans.
        """
        if self._carrier is None:
            networks = self.found.load(self.device)
            self._carrier = Carrier(
                networks, self.found.model, self.device, self.options.settings, self.options.progress
            )
        return self._carrier

    def exports_fast(self, prepared: Prepared, logits: torch.Tensor, save_probabilities: bool) -> bool:
        """Whether a case is exported fast: wherever that is possible."""
        model = self.model_of_cases if prepared.exported is None else prepared.exported.model
        return why_not_fast(model, prepared, logits.shape[1:], save_probabilities) is None

    def say_spacing(self, name: str, record: dict[str, Any]) -> None:
        """Say nothing: the spacing is that of the plans."""

    def say_agreement(self, name: str, record: dict[str, Any]) -> None:
        """Say nothing: there is no agreement of networks."""


def annotate(annotator: Annotator) -> tuple[dict[str, dict[str, Any]], PredictionFailedError | None]:
    """Carry the annotated slices of all cases, and write label maps and a report.

    Cases that are there already are kept, unless they are to be overwritten.

    Args:
        annotator: Model and options.

    Returns:
        Record of each case that was asked for and is done, by name; and what to raise if others failed.

    Raises:
        FileNotFoundError: If images or label maps are missing.
    """
    options, ending = annotator.options, annotator.dataset_json["file_ending"]
    images, failures = _images(options.images, ending)
    annotator.networks()
    tasks, without_image = _tasks(images, options, ending)
    failures |= without_image
    options.output.mkdir(parents=True, exist_ok=True)
    files.sweep(options.output)
    report = SpacingReport(options.output, name=REPORT)
    outputs = [str(task.output) for task in tasks.values()]
    to_do, messages = report.resume(outputs, ending, False, True, annotator.describe_options())
    kept = [] if options.overwrite else [name for n, name in enumerate(tasks) if n not in to_do]
    if kept:
        _say_kept({name: tasks[name] for name in kept}, report, messages)
    run = Run(annotator, {name: task for name, task in tasks.items() if name not in kept}, False, report, _OLDER)
    run.work(list(run.tasks), options.preprocessing, options.exporting)
    while run.suspects and not run.stopped:  # whichever of them made a worker die does so alone now
        run.work([run.suspects.pop(0)], options.preprocessing, min(options.exporting, 1), alone=True)
    failures |= run.failures
    records = {name: report.content["cases"][name] for name in tasks if name in report.content["cases"]}
    if not failures:
        return records, None
    not_begun = [name for name in run.tasks if name not in run.results and name not in failures]
    total = len(set(tasks) | set(failures))
    records = {name: record for name, record in records.items() if name not in failures}
    return records, PredictionFailedError(failures, [None] * total, not_begun, _REMEDY)


def _say_kept(kept: dict[str, Task], report: SpacingReport, messages: list[str]) -> None:
    lines = [line for line in messages if line.startswith("Kept")]
    print(f"{len(kept)} case(s) are done already and kept; --overwrite makes them again.")
    changed = [
        name
        for name, task in kept.items()
        if _record(report, name).get("labels_sha256", "") not in ("", sha256_of(Path(str(task.previous))))
    ]
    if changed:
        lines.append(f"Kept, though their label maps were changed since (--overwrite): {', '.join(changed)}")
    print("\n".join(lines), end="\n" if lines else "")


def _record(report: SpacingReport, name: str) -> dict[str, Any]:
    found = report.content["cases"].get(name, {}).get("propagation", {})
    return found if isinstance(found, dict) else {}


def _images(path: Path, ending: str) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return the images of each case, and what is wrong with files that are none.

    Raises:
        FileNotFoundError: If there are none.
    """
    if not path.is_file():
        found, wrong = list_inputs(path, ending)
        return {case_of(images[0], ending): tuple(images) for images in found}, wrong
    stem = path.name.removesuffix(ending)
    if stem == path.name or stem[-CHANNEL:] != "_0000" or stem == "_0000":
        raise ValueError(f"-i {path} is called otherwise than an image of this model, expected CASE_0000{ending}")
    pattern = f"{glob.escape(stem[:-CHANNEL])}_[0-9][0-9][0-9][0-9]{glob.escape(ending)}"
    return {stem[:-CHANNEL]: tuple(str(file) for file in sorted(path.parent.glob(pattern)))}, {}


def _tasks(images: dict[str, tuple[str, ...]], options: Options, ending: str) -> tuple[dict[str, Task], dict[str, str]]:
    """Return the cases that have a label map, and the label maps that have no images.

    Raises:
        FileNotFoundError: If there are no label maps.
        ValueError: If one label map is named for several cases, or a result would replace a label map.
    """
    if options.labels.is_file():
        if len(images) != 1:
            raise ValueError(f"-l {options.labels} is one label map for {len(images)} cases; name a folder, or one -i")
        labels = dict.fromkeys(images, options.labels)
    elif options.labels.is_dir():
        there = sorted(file for file in options.labels.iterdir() if file.is_file() and file.name.endswith(ending))
        labels = {file.name.removesuffix(ending): file for file in there if not file.name.startswith(".")}
    else:
        raise FileNotFoundError(f"-l {options.labels} is not there, expected label maps named CASE{ending}; name them")
    if not labels or not set(labels) & set(images):
        raise FileNotFoundError(
            f"-l {options.labels} has no label map named as a case of -i {options.images}, e.g. "
            f"{next(iter(images), 'CASE')}{ending}"
        )
    without = {case: f"{labels[case]} has no image in {options.images}" for case in sorted(set(labels) - set(images))}
    alone = sorted(set(images) - set(labels))
    if alone and options.images.is_dir():
        print(f"Left out, as they have no label map in {options.labels}: {', '.join(alone)}")
    tasks = {
        case: Task(images[case], str(labels[case]), str(options.output / case))
        for case in sorted(set(labels) & set(images))
    }
    for case, file in labels.items():
        if case in tasks and (options.output / f"{case}{ending}").resolve() == file.resolve():
            raise ValueError(
                f"-o {options.output} is where {file} lies, so that the result would take the place of the annotated "
                "slices; name another folder"
            )
    return tasks, without if options.images.is_dir() else {}
