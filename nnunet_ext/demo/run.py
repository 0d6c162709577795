"""The demo from nothing to a report: phantoms, planning, two trainings with stock commands, prediction, evaluation."""

import copy
import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nnunet_ext import files
from nnunet_ext.demo.dataset import DATASET_ID, DATASET_NAME, write_dataset
from nnunet_ext.demo.folder import (
    DEFAULT_EPOCHS,
    DEFAULT_ITERATIONS,
    DemoError,
    DemoSettings,
    claim_folder,
    read_record,
)
from nnunet_ext.demo.process import Usage, run_command
from nnunet_ext.demo.report import Method, write_report
from nnunet_ext.evaluation.command import CommandError
from nnunet_ext.evaluation.progress import PredictionBar, StageBar, TrainingBar
from nnunet_ext.training.precision import cpu_has_bf16_units

PLANNER = "SemiSupervisedPlanner"
PLANS = "SemiSupervisedPlans"
CONFIGURATION = "3d_demo"
FOLD = 0
# What lets a CPU train in minutes: small patches, which also show the small organs more often than whole scans would,
# and half of nnU-Net's widths with fewer convolutions where the resolution is high.
_PLANNING_MEMORY_GB = "1.35"
_LARGEST_WIDTH = 64
_SHALLOW_STAGES = 2


def run_demo(
    output: Path,
    seed: int = 0,
    epochs: int | None = None,
    iterations: int | None = None,
    overwrite: bool = False,
    device: str | None = None,
) -> int:
    """Run the demo, or continue it: finished stages are kept, a training goes on at its last checkpoint.

    Args:
        output: Folder for everything; nnU-Net's three folders lie in it, so nothing else is touched.
        seed: Seed of the phantoms and the trainings.
        epochs: Number of epochs of both trainings; ``None`` takes the default.
        iterations: Number of iterations an epoch; ``None`` takes the default.
        overwrite: Begin anew, whatever demo the folder holds; files that no demo wrote stay.
        device: Device that trains: ``cpu``, ``cuda`` or ``mps``; ``None`` takes CUDA where there is one, else the CPU.

    Returns:
        Exit status: 0 when the report is written, 1 after an error that is printed, 130 when interrupted.
    """
    try:
        settings = DemoSettings(
            seed=seed,
            epochs=DEFAULT_EPOCHS if epochs is None else epochs,
            iterations=DEFAULT_ITERATIONS if iterations is None else iterations,
            device=device or detect_device(),
        )
        run_stages(output.absolute(), settings, overwrite)
    except (DemoError, CommandError, files.DiskFullError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command, without --overwrite, continues", file=sys.stderr)
        return 130
    return 0


def run_stages(output: Path, settings: DemoSettings, overwrite: bool = False) -> None:
    """Do what ``run_demo`` does, for any settings, and raise its errors.

    Args:
        output: Folder for everything.
        settings: Settings of the demo.
        overwrite: Begin anew, whatever demo the folder holds.

    Raises:
        CommandError: If a command is missing or fails.
        DemoError: If the folder is taken or a setting is out of range.
    """
    for name in ("epochs", "iterations"):
        if getattr(settings, name) < 1:
            raise DemoError(f"{name} must be at least 1, got {getattr(settings, name)}")
    claim_folder(output, settings, overwrite)
    _Demo(output, settings).run()


def detect_device() -> str:
    """Name the device to train on: ``cuda`` where there is one, else ``cpu``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _version(package: str) -> str:
    """Return the version of a package, also where a source tree without metadata is used."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


class _Demo:
    """The stages, and where they lie in the output folder."""

    def __init__(self, output: Path, settings: DemoSettings) -> None:
        self.output = output
        self.settings = settings
        self.dataset = output / "raw" / DATASET_NAME
        self.preprocessed = output / "preprocessed" / DATASET_NAME
        self.environment = {
            "nnUNet_raw": str(output / "raw"),
            "nnUNet_preprocessed": str(output / "preprocessed"),
            "nnUNet_results": str(output / "results"),
            "nnUNet_def_n_proc": "2",
            "nnUNet_n_proc_DA": str(min(4, max(1, (os.cpu_count() or 1) - 1))),
            "nnUNet_compile": "0",  # compiling takes longer than it saves in a training this short
            # Threads that spin while they wait for each other are very slow where something else uses the cores, too.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            "nnUNet_ext_seed": str(settings.seed),
            "nnUNet_ext_cpu_bf16": str(int(cpu_has_bf16_units())),  # for both trainings alike
        }
        self.stages: list[tuple[str, Callable[[str, Usage], None]]] = [
            ("phantoms", self._phantoms),
            ("plan", self._plan),
        ]
        for method in ("supervised", "semi"):
            self.stages += [
                (f"train_{method}", self._train),
                (f"predict_{method}", self._predict),
                (f"evaluate_{method}", self._evaluate),
            ]

    def run(self) -> None:
        for name, action in self.stages:
            self._stage(name, action)
        self._report()

    def _stage(self, name: str, action: Callable[[str, Usage], None]) -> None:
        record = self._record(name)
        if record.get("finished"):
            print(f"{self._title(name)}: kept", file=sys.stderr)
            return
        usage = Usage(record.get("seconds", 0.0), record.get("peak_memory_mb", 0.0))
        action(name, usage)
        usage.save(self._record_path(name), finished=True)

    def _record_path(self, name: str) -> Path:
        return self.output / "stages" / f"{name}.json"

    def _record(self, name: str) -> dict[str, Any]:
        """What is known of a stage: nothing where it never ran."""
        path = self._record_path(name)
        return read_record(path, "remove it: the stage is then done again") if path.is_file() else {}

    def _title(self, name: str) -> str:
        names = [stage for stage, _ in self.stages]
        return f"[{names.index(name) + 1}/{len(names) + 1}] {name.replace('_', ' ').replace('semi', 'Semi')}"

    def _call(self, name: str, usage: Usage, bar: StageBar, *arguments: str) -> None:
        environment = dict(self.environment)
        if arguments[0] == "nnUNetv2_train" and self.settings.device == "cpu":
            # Loader processes would take the cores from the training; without them it can be repeated.
            environment["nnUNet_n_proc_DA"] = "0"

        def tick() -> None:
            bar.tick()
            usage.save(self._record_path(name), finished=False)

        finished = False
        try:
            run_command(arguments, environment, self.output / "logs" / f"{name}.log", usage, bar.line, tick)
            finished = True
        finally:
            bar.close(finished)

    def _phantoms(self, name: str, usage: Usage) -> None:
        settings = self.settings
        print(self._title(name), file=sys.stderr)
        write_dataset(self.output / "raw", settings.seed, settings.labeled, settings.unlabeled, settings.test)

    def _plan(self, name: str, usage: Usage) -> None:
        self._call(
            name,
            usage,
            StageBar(self._title(name) + " and preprocess"),
            *("nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-pl", PLANNER, "-c", "3d_fullres"),
            *("-gpu_memory_target", _PLANNING_MEMORY_GB),
            *("-np", "2", "-npfp", "2", "--verify_dataset_integrity"),
        )
        plans = self.preprocessed / f"{PLANS}.json"
        if not plans.is_file():
            log = self.output / "logs" / f"{name}.log"
            raise DemoError(f"planning ended without {plans}; what it printed is in {log}")
        files.write_json(plans, with_demo_configuration(read_record(plans, "remove it and run again")), indent=4)
        cases = [f"labeled_{number:03d}" for number in range(self.settings.labeled)]
        split = [{"train": cases[:-1], "val": cases[-1:]}]
        files.write_json(self.preprocessed / "splits_final.json", split, indent=4)

    def _train(self, name: str, usage: Usage) -> None:
        trainer = self.settings.trainer(_method(name))
        checkpoint = any(self._model_folder(trainer).glob("checkpoint_*.pth"))
        self._call(
            name,
            usage,
            TrainingBar(self._title(name), self.settings.epochs),
            *("nnUNetv2_train", str(DATASET_ID), CONFIGURATION, str(FOLD), "-p", PLANS, "-tr", trainer),
            *("-device", self.settings.device),
            *(("--c",) if checkpoint else ()),
        )

    def _model_folder(self, trainer: str) -> Path:
        return self.output / "results" / DATASET_NAME / f"{trainer}__{PLANS}__{CONFIGURATION}" / f"fold_{FOLD}"

    def _predict(self, name: str, usage: Usage) -> None:
        method = _method(name)
        self._call(
            name,
            usage,
            PredictionBar(self._title(name), self.settings.test),
            *(
                "nnUNetv2_predict",
                "-i",
                str(self.dataset / "imagesTs"),
                "-o",
                str(self.output / "predictions" / method),
            ),
            *("-d", str(DATASET_ID), "-c", CONFIGURATION, "-f", str(FOLD), "-p", PLANS),
            *("-tr", self.settings.trainer(method), "-device", self.settings.device, "-npp", "1", "-nps", "1"),
        )

    def _evaluate(self, name: str, usage: Usage) -> None:
        predictions = self.output / "predictions" / _method(name)
        self._call(
            name,
            usage,
            StageBar(self._title(name)),
            *("nnUNetv2_evaluate_folder", str(self.dataset / "labelsTs"), str(predictions)),
            *("-djfile", str(predictions / "dataset.json"), "-pfile", str(predictions / "plans.json")),
            *("-o", str(predictions / "summary.json"), "-np", "1"),
        )

    def _report(self) -> None:
        methods = []
        for method, title in (("supervised", "supervised"), ("semi", "Semi")):
            trainer = self.settings.trainer(method)
            record = self._record(f"train_{method}")
            methods.append(
                Method(
                    title=title,
                    trainer=trainer,
                    predictions=self.output / "predictions" / method,
                    seconds=record["seconds"],
                    peak_memory_mb=record["peak_memory_mb"],
                    curves=self._model_folder(trainer) / "progress.png",
                )
            )
        setup = {
            **asdict(self.settings),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
            "nnunetv2": _version("nnunetv2"),
            "torch": _version("torch"),
            "precision": "bfloat16" if self.settings.device == "cpu" and cpu_has_bf16_units() else "nnU-Net's own",
            "commands": [
                shlex.join(
                    ["nnUNetv2_train", str(DATASET_ID), CONFIGURATION, str(FOLD), "-p", PLANS, "-tr", method.trainer]
                )
                for method in methods
            ],
        }
        write_report(self.output / "report", self.dataset, methods[0], methods[1], setup)


def _method(stage: str) -> str:
    return stage.partition("_")[2]


def with_demo_configuration(plans: dict[str, Any]) -> dict[str, Any]:
    """Add the small configuration of the demo to plans: it inherits all but batch size, widths and convolutions.

    Args:
        plans: Content of a plans file with the configuration ``3d_fullres``; is not changed.

    Returns:
        The plans with the configuration ``3d_demo``.
    """
    architecture = copy.deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
    network = architecture["arch_kwargs"]
    network["features_per_stage"] = [min(width // 2, _LARGEST_WIDTH) for width in network["features_per_stage"]]
    network["n_conv_per_stage"][:_SHALLOW_STAGES] = [1] * _SHALLOW_STAGES
    network["n_conv_per_stage_decoder"] = [1] * len(network["n_conv_per_stage_decoder"])
    configuration = {"inherits_from": "3d_fullres", "batch_size": 2, "architecture": architecture}
    return {**plans, "configurations": {**plans["configurations"], CONFIGURATION: configuration}}
