"""Profile of several ways to predict the same images: time, memory and accuracy of each.

The measures are those that FLARE 2022 compares methods by: DSC, NSD, running time, and the areas under the curves of
GPU memory over time and of CPU utilisation over time (Ma et al., "Unleashing the strengths of unlabelled data in deep
learning-assisted pan-cancer abdominal organ quantification: the FLARE22 challenge", Lancet Digital Health 2024). Here a
folder of images is predicted by one command, whose start-up they share, and sums are divided by their number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_ext.data.completeness import check_complete
from nnunet_ext.evaluation.budget import find_trade
from nnunet_ext.evaluation.command import CommandError, run_command
from nnunet_ext.evaluation.inputs import ProfileInputs, files_digest
from nnunet_ext.evaluation.record import PICTURE, ProfileRecord, hardware, versions, without_nan
from nnunet_ext.evaluation.settings import Setting
from nnunet_ext.evaluation.usage import Curve, Usage, UsageSampler
from nnunet_ext.figures.profile import draw_profile
from nnunet_ext.inference.checks import OUR_FLAGS, TRUST_FLAG, check_device, check_model
from nnunet_ext.inference.spacing_report import STAGES

COMMAND = ("nnUNetv2_predict_from_modelfolder",)
REPORT = "spacing_report.json"
_DONE = re.compile(r"^done with \S+")


@dataclass(frozen=True)
class ProfileOptions:
    """Output folder, device and tolerance of a profile.

    Attributes:
        output: Folder of the profile, its predictions and logs.
        tolerance_mm: Distance in mm up to which surfaces agree for the surface Dice.
        device: Device to predict on, ``cuda``, ``cpu`` or ``mps``, as nnU-Net takes it.
        npp: Number of processes for preprocessing.
        nps: Number of processes for resampling and writing.
        overwrite: Whether to run every setting again, even if it is measured already.
        command: Stock command and its first arguments.
        progress_bar: Whether to show progress over settings and cases.
        trust_model: Whether the command loads the model with whatever code is in its checkpoints and plans.
        budget: How much mean DSC the best trade may lose; None looks for none.
    """

    output: Path
    tolerance_mm: float = 2.0
    device: str = "cuda"
    npp: int = 3
    nps: int = 3
    overwrite: bool = False
    command: tuple[str, ...] = COMMAND
    progress_bar: bool = True
    trust_model: bool = False
    budget: float | None = None


def predict_command(inputs: ProfileInputs, setting: Setting, options: ProfileOptions) -> list[str]:
    """Return the command that predicts with a setting, whose flags stand last so that they win."""
    return [
        *options.command,
        *("-i", str(inputs.folder.resolve()), "-o", str((options.output / setting.name).resolve())),
        *("-m", str(inputs.model.resolve()), "-f", *map(str, inputs.folds), "-chk", inputs.checkpoint),
        *("-device", options.device, "-npp", str(options.npp), "-nps", str(options.nps)),
        "--disable_progress_bar",
        # without one of our options the command is nnU-Net's own, which checks nothing
        *((TRUST_FLAG,) if options.trust_model and OUR_FLAGS & set(setting.flags) else ()),
        *setting.flags,
    ]


def measures(seconds: float, usage: Usage, cases: int, stages: dict[str, float] | None = None) -> dict[str, Any]:
    """Return the measures of one setting.

    Args:
        seconds: Wall time of the command in seconds.
        usage: Processor time and memory sampled from the command.
        cases: Number of cases that the command predicted.
        stages: Mean seconds a case of each stage, if known.

    Returns:
        ``seconds`` and ``seconds_per_case``; ``stages``; ``peak_memory_mb`` and ``peak_gpu_memory_mb`` in 10^6 bytes;
        ``gpu_memory_area_mb_s`` and ``cpu_area_percent_s``, areas over the whole run, and the same ``..._per_case``.
        What was not measured is None.
    """
    gpu = usage.gpu_memory_mb
    gpu_area = None if gpu is None else gpu.area()
    return {
        "seconds": round(seconds, 3),
        "seconds_per_case": round(seconds / cases, 3),
        "stages": stages,
        "peak_memory_mb": round(usage.peak_memory_mb, 1),
        "peak_gpu_memory_mb": None if gpu is None else round(gpu.peak(), 1),
        "gpu_memory_area_mb_s": None if gpu_area is None else round(gpu_area, 1),
        "gpu_memory_area_mb_s_per_case": None if gpu_area is None else round(gpu_area / cases, 1),
        "cpu_area_percent_s": round(usage.cpu_area, 1),
        "cpu_area_percent_s_per_case": round(usage.cpu_area / cases, 1),
    }


def read_stages(report: Path) -> dict[str, float] | None:
    """Return the mean seconds a case of each stage from a report of a prediction; None where it has none."""
    try:
        cases = json.loads(report.read_text(encoding="utf-8"))["cases"].values()
        seconds = [case["seconds"] for case in cases]
        stages = [stage for stage in STAGES if all(stage in of_case for of_case in seconds)]
        means = {stage: round(sum(float(of_case[stage]) for of_case in seconds) / len(seconds), 4) for stage in stages}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None
    return means or None


def profile(inputs: ProfileInputs, settings: Sequence[Setting], options: ProfileOptions) -> dict[str, Any]:
    """Predict with each setting, measure, compare with the labels if there are any, and draw.

    What an earlier call measured with the same command, files and machine is kept; new labels or another tolerance need
    no new prediction. A setting that fails does not stop the others: its entry has an ``"error"``.

    Args:
        inputs: Model, images and labels to predict and compare.
        settings: Settings to run, in this order.
        options: Output folder, device and tolerance of the profile.

    Returns:
        The content of ``profile.json``: ``versions``, ``device``, ``options``, ``inputs``, ``cases``, and for each of
        the ``settings`` its ``flags``, ``summary``, ``command``, ``measured`` (see :func:`measures`), ``curves`` and,
        with labels, ``quality``; with a budget ``trade``, see :func:`find_trade`. NaN is None in it.

    Raises:
        FileExistsError: If the folder holds something else, without ``overwrite``.
        ValueError: If there is no such device, the folder holds what is read, the model holds code, or there is a
            budget without labels.
    """
    if options.budget is not None and inputs.labels is None:
        raise ValueError(
            f"--budget {options.budget:g} is of Dice, which takes label maps of the images; pass --labels FOLDER, or "
            "leave out --budget"
        )
    check_device(options.device)
    _check_place(inputs, options.output)
    check_model(inputs.model, inputs.folds, inputs.checkpoint, options.trust_model)
    record = ProfileRecord(options.output, _made_with(inputs, options), options.overwrite)
    names = [setting.name for setting in settings]
    with _progress(settings, len(inputs.cases), options.progress_bar) as bar:
        for setting in settings:
            _run_setting(record, setting, inputs, options, bar)
            record.order(names)
            record.save()
    quality = _quality_key(inputs, options)
    if options.budget is not None and quality is not None:
        record.document["trade"] = find_trade(record.settings, options.budget, quality["labels"])
        record.save()
    document = without_nan(record.document)
    draw_profile(options.output / PICTURE, document)
    return document


def failed(document: dict[str, Any], settings: Sequence[Setting]) -> dict[str, str]:
    """Return the settings of this run that failed, and why."""
    entries = document["settings"]
    return {setting.name: entries[setting.name]["error"] for setting in settings if "error" in entries[setting.name]}


class _Bar:
    """Progress over the cases of all settings; follows what nnU-Net prints."""

    def __init__(self, bar: tqdm, cases: int) -> None:
        self.bar, self.cases, self.begun = bar, cases, 0

    def begin(self, name: str) -> None:
        self.bar.set_description(name)

    def line(self, text: str) -> None:
        if _DONE.match(text) and self.bar.n < self.begun + self.cases:
            self.bar.update(1)

    def end(self) -> None:
        self.begun += self.cases
        self.bar.update(self.begun - self.bar.n)


@contextmanager
def _progress(settings: Sequence[Setting], cases: int, shown: bool) -> Iterator[_Bar]:
    with tqdm(total=len(settings) * cases, unit="case", disable=not shown, dynamic_ncols=True) as bar:
        yield _Bar(bar, cases)


def _run_setting(
    record: ProfileRecord, setting: Setting, inputs: ProfileInputs, options: ProfileOptions, bar: _Bar
) -> None:
    folder = options.output / setting.name
    command = predict_command(inputs, setting, options)
    quality = _quality_key(inputs, options)
    entry = record.settings.get(setting.name, {})
    bar.begin(setting.name)
    predicted = all(file.is_file() for file in inputs.predictions(folder).values())
    compares = quality is not None and not quality.items() <= entry.get("quality", {}).items()
    if not record.is_measured(setting.name, command) or (compares and not predicted):
        entry = {"flags": list(setting.flags), "summary": setting.summary, "command": command}
        record.claim(setting.name, entry)
        entry.update(_measure(command, folder, inputs, options, bar))
        record.settings[setting.name] = entry
        record.save()  # comparing takes time too
        compares = quality is not None
    if "measured" in entry:
        entry.pop("error", None)
    if compares and quality is not None and "measured" in entry:
        bar.begin(f"{setting.name}: comparing")
        try:
            entry["quality"] = quality | _quality(inputs, folder, options.tolerance_mm)
        except ValueError as error:
            entry["error"] = str(error)
    bar.end()


def _measure(
    command: list[str], folder: Path, inputs: ProfileInputs, options: ProfileOptions, bar: _Bar
) -> dict[str, Any]:
    try:
        with UsageSampler(gpu=options.device == "cuda") as sampler:
            log = folder.with_name(f"{folder.name}.log")
            seconds = run_command(command, log, on_line=bar.line, on_start=sampler.start)
            usage = sampler.stop()
    except CommandError as error:
        return {"error": str(error)}
    missing = [file for file in inputs.predictions(folder).values() if not file.is_file()]
    if missing:
        return {"error": f"{missing[0]} is missing although the command ended well; its output is in {log}"}
    try:
        for file in inputs.predictions(folder).values():
            check_complete(file)
    except ValueError as error:  # nnU-Net's own export says nothing of a full disk
        return {"error": f"{error}; is the disk full? The output of the command is in {log}"}
    curves = {"cpu_percent": usage.cpu_percent, "memory_mb": usage.memory_mb, "gpu_memory_mb": usage.gpu_memory_mb}
    return {
        "measured": measures(seconds, usage, len(inputs.cases), read_stages(folder / REPORT)),
        "curves": {name: None if curve is None else _points(curve) for name, curve in curves.items()},
    }


def _points(curve: Curve) -> dict[str, list[float]]:
    points = curve.thinned()
    return {"seconds": [round(x, 2) for x in points.seconds], "values": [round(y, 1) for y in points.values]}


def _quality_key(inputs: ProfileInputs, options: ProfileOptions) -> dict[str, Any] | None:
    """Return what a comparison depends on besides the predictions, None where there are no labels."""
    if inputs.labels is None:
        return None
    return {"labels": files_digest(inputs.labels.values()), "tolerance_mm": options.tolerance_mm}


def _quality(inputs: ProfileInputs, folder: Path, tolerance_mm: float) -> dict[str, Any]:
    from nnunet_ext.data.classes import classes_of
    from nnunet_ext.data.reading import choose_reader
    from nnunet_ext.evaluation.metrics import evaluate, means

    labels = inputs.labels or {}
    reader = choose_reader(inputs.dataset_json, [str(file) for file in labels.values()])()
    classes = classes_of(inputs.plans, inputs.dataset_json)
    cases = dict(evaluate(labels, inputs.predictions(folder), reader, classes, tolerance_mm))
    by_class, mean = means(cases)
    return {"mean": mean, "classes": by_class, "cases": cases}


def _made_with(inputs: ProfileInputs, options: ProfileOptions) -> dict[str, Any]:
    return {
        "versions": versions(),
        "device": hardware(options.device),
        "options": {
            "images": str(inputs.folder),
            "model": str(inputs.model),
            "folds": list(inputs.folds),
            "checkpoint": inputs.checkpoint,
            "device": options.device,
            "npp": options.npp,
            "nps": options.nps,
            "tolerance_mm": options.tolerance_mm,
        },
        "inputs": inputs.signature(),
        "cases": list(inputs.cases),
    }


def _check_place(inputs: ProfileInputs, output: Path) -> None:
    """Refuse an output that the profile would clear although it reads from it."""
    labels = next(iter((inputs.labels or {}).values()), None)
    sources = {"-i": inputs.folder, "model": inputs.model, "--labels": labels.parent if labels else None}
    for name, folder in sources.items():
        if folder is not None and folder.resolve().is_relative_to(output.resolve()):
            raise ValueError(
                f"{output} holds what is read ({name}: {folder}), expected another folder; pass another -o"
            )
