"""What unlabelled scans give: semi-supervised trainings against every control that costs as much, small networks.

hippocampus5  Dataset904 with 5 labelled and 155 unlabelled scans; needs the folder of NNUNET_EXT_DATA
phantoms4     phantoms like an abdominal CT with 4 labelled and 36 unlabelled scans, generated

    python benchmarks/unlabelled.py run [--only NAME ...]   train and evaluate what is not done yet; resumable
    python benchmarks/unlabelled.py report                  tables of what is done, gap closed, and what is owed

Controls: supervised on all labels (the ceiling), on the few, with the intensities of the strong views, with twice the
labelled batch, with as much computation as a mean teacher; a running mean of the weights is judged beside each of them.
Dice and NSD are those of the last weights on test cases that nothing was chosen with. No training but the ceiling's has
labels of unlabelled scans at hand.
Each run is a process of its own with one thread and its own seed. Results: benchmarks/results/accuracy; those behind
docs/benchmarks.md lie in benchmarks/records.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import accuracy
import numpy as np
from accuracy import DATA, MEASURES, WORK, Task, interval, small_configuration, stock

FEW = {"hippocampus5": 5, "phantoms4": 4}  # labelled scans
PHANTOMS, PHANTOM_TESTS = 40, 40
PLANS, FULL, SMALL = "SemiSupervisedPlans", "3d_fullres", "3d_small"
TASKS = {
    "hippocampus5": replace(accuracy.TASKS["hippocampus"], dataset="Dataset954_HippocampusFive"),
    "phantoms4": replace(
        accuracy.TASKS["imbalance"],
        dataset="Dataset956_PhantomsFour",
        planner="SemiSupervisedPlanner",
        plans=PLANS,
    ),
}
ALL_LABELS = {"hippocampus5": "Dataset955_HippocampusAll", "phantoms4": "Dataset957_PhantomsAll"}
EPOCHS, ITERATIONS = 20, 250
EQUAL_COST = 47  # epochs of supervised training that cost what 20 of a mean teacher do: 1 + 1 + 1/3 steps


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Of the run and its record.
        parts: Of the trainer's name, without the length.
        task: What is trained on.
        seed: Of everything that is drawn.
        epochs: Length, of 250 iterations each.
        all_labels: Train with the labels of all scans.
        batch: Labelled patches a step, None for that of the configuration.
        strong: Augment labelled patches as a student's strong views.
        attributes: Settings of the trainer that differ.
        bf16: Train in bfloat16.
        device: Where.
    """

    name: str
    parts: str
    task: str
    seed: int = 0
    epochs: int = EPOCHS
    all_labels: bool = False
    batch: int | None = None
    strong: bool = False
    attributes: dict = field(default_factory=dict)
    bf16: bool = True
    device: str = "cpu"

    @property
    def trainer(self) -> str:
        """The trainer's name."""
        return f"nnUNetTrainer{self.parts}_{self.epochs}epochs_{ITERATIONS}iterations"


def _runs() -> list[Run]:
    runs = []
    for seed in (0, 1):
        for task in TASKS:
            controls = [
                Run("supervised", "", task, seed),
                Run("ceiling", "", task, seed, all_labels=True),
                Run("supervised_batch4", "", task, seed, batch=4),
                Run("supervised_strong", "", task, seed, strong=True),
                Run("supervised_equal_cost", "", task, seed, epochs=EQUAL_COST),
            ]
            teacher = ["MeanTeacher", "MeanTeacher_CutMix", "MeanTeacher_CutMix_Confidence"]
            if task == "phantoms4":
                teacher.append("MeanTeacher_CutMix_Confidence_ClassBalance")
            methods = [Run(parts, parts, task, seed) for parts in ("CPS", "CPS_CutMix", *teacher)]
            runs += [replace(run, name=f"{task}_{run.name}_seed{seed}") for run in (*controls, *methods)]
    return runs


RUNS = _runs()


def prepare(name: str) -> None:
    """Write the datasets of a task, preprocess them with the stock commands, and add the small configuration."""
    task = TASKS[name]
    raw = WORK / "raw" / task.dataset
    if not (raw / "dataset.json").is_file():
        (_write_hippocampus if name == "hippocampus5" else _write_phantoms)(task, FEW[name], ALL_LABELS[name])
    plans_file = WORK / "preprocessed" / task.dataset / f"{PLANS}.json"
    if not plans_file.is_file():
        stock(f"nnUNetv2_plan_and_preprocess -d {task.number} -pl {task.planner} -c {FULL} -np 1 -npfp 1")
    plans = json.loads(plans_file.read_text())
    if SMALL not in plans["configurations"]:
        plans["configurations"][SMALL] = small_configuration(task, FULL, plans["configurations"][FULL])
        _write(plans_file, plans)
    # The ceiling is planned as the others are: labels are all that differs.
    ceiling = WORK / "preprocessed" / ALL_LABELS[name]
    if not (ceiling / "gt_segmentations").is_dir():
        ceiling.mkdir(parents=True, exist_ok=True)
        for file in ("dataset.json", "dataset_fingerprint.json"):
            _write(ceiling / file, json.loads((plans_file.parent / file).read_text()))
        _write(ceiling / f"{PLANS}.json", plans | {"dataset_name": ALL_LABELS[name]})
        stock(f"nnUNetv2_preprocess -d {ALL_LABELS[name][7:10]} -plans_name {PLANS} -c {FULL} -np 1")


def _write_hippocampus(task: Task, few: int, all_labels: str) -> None:
    source = DATA / "Dataset904_HippocampusSSL"
    if not source.is_dir():
        sys.exit(f"{source} is missing; set NNUNET_EXT_DATA to the folder that has it")
    raw, ceiling = WORK / "raw" / task.dataset, WORK / "raw" / all_labels
    labels = sorted((source / "labelsTr").iterdir())
    hidden = sorted((source / "labelsUnlabeled").iterdir())
    for number, label in enumerate([*labels, *hidden]):
        scan = label.name.replace(".nii.gz", "_0000.nii.gz")
        image = source / ("imagesTr" if number < len(labels) else "imagesUnlabeled") / scan
        _link(image, raw / ("imagesTr" if number < few else "imagesUnlabeled") / scan)
        if number < few:
            _link(label, raw / "labelsTr" / label.name)
        _link(image, ceiling / "imagesTr" / scan)
        _link(label, ceiling / "labelsTr" / label.name)
    for folder in ("imagesTs", "labelsTs"):
        for file in sorted((source / folder).iterdir()):
            _link(file, raw / folder / file.name)
    content = json.loads((source / "dataset.json").read_text())
    _write(ceiling / "dataset.json", content | {"numTraining": len(labels) + len(hidden)})
    _write(raw / "dataset.json", content | {"numTraining": few})


def _write_phantoms(task: Task, few: int, all_labels: str) -> None:
    import SimpleITK

    from nnunet_ext.demo.phantom import LABELS, make_phantom

    raw, ceiling = WORK / "raw" / task.dataset, WORK / "raw" / all_labels
    margin = [accuracy.AIR_VOXELS, accuracy.AIR_VOXELS, 0]
    for kind, number in (("Tr", PHANTOMS), ("Ts", PHANTOM_TESTS)):
        for index in range(number):
            image, label = make_phantom(7 if kind == "Tr" else 8, index).to_images()
            case, holder = f"phantom_{index:03d}", ceiling if kind == "Tr" else raw
            for volume, air, target in (
                (image, -1000, holder / f"images{kind}" / f"{case}_0000.nii.gz"),
                (label, 0, holder / f"labels{kind}" / f"{case}.nii.gz"),
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                SimpleITK.WriteImage(SimpleITK.ConstantPad(volume, margin, margin, air), str(target))
            if kind == "Tr":
                scan = ceiling / "imagesTr" / f"{case}_0000.nii.gz"
                _link(scan, raw / ("imagesTr" if index < few else "imagesUnlabeled") / scan.name)
                if index < few:
                    _link(ceiling / "labelsTr" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    _write(ceiling / "dataset.json", content | {"numTraining": PHANTOMS})
    _write(raw / "dataset.json", content | {"numTraining": few})


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve())


def _write(file: Path, content: Any) -> None:
    from nnunet_ext.files import write_json

    write_json(file, content, indent=1)


def with_mean_weights(trainer_class: type) -> type:
    """Return a class of trainers that keep a running mean of the weights, which the training does not see."""

    class WithMeanWeights(trainer_class):
        def train_step(self, batch: dict) -> dict:
            outputs = super().train_step(batch)
            weights = self.network.state_dict()
            steps = self.num_epochs * self.num_iterations_per_epoch
            decay = min(max(1 - 1 / (0.02 * steps), 0.99), 0.9995)
            decay = min(decay, 1 - 1 / (self.mean_steps + 1))
            if not self.mean_weights:
                self.mean_weights = {key: value.detach().clone() for key, value in weights.items()}
            for key, value in weights.items():
                if value.is_floating_point():
                    self.mean_weights[key].lerp_(value.detach(), 1 - decay)
                else:
                    self.mean_weights[key].copy_(value)
            self.mean_steps += 1
            return outputs

        def extra_state(self) -> dict:
            return super().extra_state() | {"mean_weights": self.mean_weights, "mean_steps": self.mean_steps}

        def load_extra_state(self, checkpoint: dict) -> None:
            super().load_extra_state(checkpoint)
            self.mean_weights, self.mean_steps = checkpoint["mean_weights"], checkpoint["mean_steps"]

    WithMeanWeights.mean_weights, WithMeanWeights.mean_steps = {}, 0
    WithMeanWeights.__name__ = WithMeanWeights.__qualname__ = trainer_class.__name__
    return WithMeanWeights


def with_strong_intensities(trainer_class: type) -> type:
    """Return a class of trainers that augment labelled patches as the strong views of unlabelled ones."""
    from nnunet_ext.data.views import strong_training_transforms

    class WithStrongIntensities(trainer_class):
        @staticmethod
        def get_training_transforms(*arguments: Any, **options: Any) -> Any:
            return strong_training_transforms(trainer_class, *arguments, **options)

    WithStrongIntensities.__name__ = WithStrongIntensities.__qualname__ = trainer_class.__name__
    return WithStrongIntensities


def train_and_evaluate(run: Run) -> None:
    """Train one run (continuing where it was stopped) and write its result; runs in a process of its own."""
    import torch

    from nnunet_ext.trainers.names import find_trainer

    torch.set_num_threads(1)
    task = TASKS[run.task]
    preprocessed = WORK / "preprocessed" / (ALL_LABELS[run.task] if run.all_labels else task.dataset)
    plans = json.loads((preprocessed / f"{PLANS}.json").read_text()) | {"continue_training": False}
    if run.batch is not None:
        plans["configurations"][SMALL]["batch_size"] = run.batch
    dataset_json = json.loads((preprocessed / "dataset.json").read_text())
    # All labelled cases are for training; nothing is selected on validation cases.
    trainer_class = find_trainer(run.trainer)
    if run.strong:
        trainer_class = with_strong_intensities(trainer_class)
    if not run.parts:
        trainer_class = with_mean_weights(trainer_class)
    trainer = trainer_class(plans, SMALL, "all", dataset_json, torch.device(run.device))
    for key, value in run.attributes.items():
        setattr(trainer, key, value)
    seconds = time.time()
    trainer.initialize()
    checkpoints = [Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("final", "latest")]
    checkpoint = next((file for file in checkpoints if file.is_file()), None)
    if checkpoint is not None:
        trainer.load_checkpoint(str(checkpoint))
    if checkpoint != checkpoints[0]:
        trainer.run_training()
    seconds = time.time() - seconds
    networks = {"network 1": trainer.network}
    trainer.set_deep_supervision_enabled(False)
    if hasattr(trainer, "network_2"):
        networks["network 2"] = trainer.network_2
    if hasattr(trainer, "teacher"):
        networks = {"network 1": trainer.teacher.network, "student": trainer.network}
    if not run.parts:
        networks["mean weights"] = copy.deepcopy(trainer.network)
        networks["mean weights"].load_state_dict(trainer.mean_weights)
    scores = {title: accuracy.evaluate(trainer, network.eval(), task) for title, network in networks.items()}
    on = torch.cuda.get_device_name() if run.device == "cuda" else "CPU"
    steps = trainer.num_epochs * trainer.num_iterations_per_epoch
    result = {"run": run.__dict__, "steps": steps, "device": on, "seconds_last_part": seconds}
    for measure in MEASURES:
        result[measure] = {
            title: {case: [values[measure] for values in classes.values()] for case, classes in cases.items()}
            for title, cases in scores.items()
        }
    _write(WORK / "done" / f"{run.name}.json", result)


def table_of(run: Run, measure: str, network: str = "network 1") -> np.ndarray | None:
    """Return the scores (cases, classes) of a run, None if it is not done."""
    result = accuracy.recorded(run)
    if result is None or network not in result[measure]:
        return None
    cases = result[measure][network]
    return np.array([cases[case] for case in sorted(cases)])


def report() -> None:
    """Print what is done as Markdown, and name what is owed."""
    by_name = {run.name: run for run in RUNS}
    for measure, name in ((measure, name) for name in TASKS for measure in MEASURES):
        classes = list(TASKS[name].classes.values())
        print(f"\n| {name}, {measure.upper()} | steps | network | {' | '.join(classes)} | mean [95 %] | ", end="")
        print("worst case | minus supervised [95 %] | gap closed |\n" + "|---" * (7 + len(classes)) + "|")
        for run in (run for run in RUNS if run.task == name):
            result = accuracy.recorded(run)
            for network in result[measure] if result else ():
                table = table_of(run, measure, network)
                low, high = interval(table.mean(1))
                cells = [f"{value:.3f}" for value in table.mean(0)]
                cells += [f"{table.mean():.3f} [{low:.3f}, {high:.3f}]", f"{table.mean(1).min():.3f}"]
                cells += _against(table, by_name, f"{name}_{{}}_seed{run.seed}", measure)
                print(f"| {run.name} | {result['steps']} | {network} | {' | '.join(cells)} |")
    print("\nOwed:", ", ".join(run.name for run in RUNS if accuracy.recorded(run) is None) or "nothing")


def _against(table: np.ndarray, by_name: dict[str, Run], pattern: str, measure: str) -> list[str]:
    """Return the paired difference to supervised training, and the share of the gap to the ceiling that is closed."""
    supervised = table_of(by_name[pattern.format("supervised")], measure)
    ceiling = table_of(by_name[pattern.format("ceiling")], measure)
    if supervised is None:
        return ["", ""]
    difference = (table - supervised).mean(1)
    low, high = interval(difference)
    cells = [f"{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]"]
    gap = None if ceiling is None else (ceiling - supervised).mean()
    return [*cells, "" if gap is None else f"{difference.mean() / gap:+.2f} of {gap:.3f}"]


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "one"])
    parser.add_argument("--only", nargs="+", help="names of runs")
    arguments = parser.parse_args()
    by_name = {run.name: run for run in RUNS}
    unknown = [name for name in arguments.only or () if name not in by_name]
    if unknown:
        parser.error(f"unknown run {unknown[0]!r}; there are {', '.join(by_name)}")
    chosen = [by_name[name] for name in arguments.only or by_name]
    if arguments.command == "report":
        report()
    elif arguments.command == "one":
        train_and_evaluate(chosen[0])
    elif not run_all(chosen):
        sys.exit("not all runs were finished; run the same command again")


def run_all(runs: list[Run]) -> bool:
    """Train and evaluate what is not done yet, one after the other; return whether all is."""
    done = True
    for run in runs:
        if (WORK / "done" / f"{run.name}.json").is_file():
            continue
        prepare(run.task)
        print(f"=== {run.name}", flush=True)
        command = [sys.executable, __file__, "one", "--only", run.name]
        done &= not subprocess.run(command, env=accuracy.environment(run)).returncode
    return done


if __name__ == "__main__":
    main()
