"""What unlabelled scans give: semi-supervised trainings against every control that costs as much, small networks.

hippocampus5   Dataset904 with 5 labelled and 155 unlabelled scans; needs the folder of NNUNET_EXT_DATA
hippocampus10  the same with its 10 labelled and 150 unlabelled scans
phantoms4      phantoms like an abdominal CT with 4 labelled and 36 unlabelled scans, generated
multiorgan4    Dataset907, MR of the abdomen in thick slices, 4 labelled and 10 unlabelled scans, 6 test cases; needs
               the folder of NNUNET_EXT_DATA. It has no labels of its unlabelled scans, so no ceiling
atrium8        100 crops of left atria in a folder of yours (--atrium or NNUNET_EXT_ATRIUM), by name 8 labelled, 72
               unlabelled, 20 test cases, at half resolution; needs a GPU, and is trained for a time, not for steps

    python benchmarks/unlabelled.py run [--only NAME ...] [--jobs 2] [--seconds S] [--atrium FOLDER]
        train and evaluate what is not done yet, in this order; resumable. A second one beside it leaves out what the
        first one is training
    python benchmarks/unlabelled.py report
        tables of what is done, gap closed, against the best control, by class; and what is owed
    python benchmarks/unlabelled.py minus --only ONE OTHER
        what one run gains over another, whatever their lengths
    python benchmarks/unlabelled.py scores [--dataset NAME ...]
        what the scores of agreement of each self-training are worth: rank correlation with true Dice, and the true Dice
        of accepted and rejected scans

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
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import accuracy
from _unlabelled_data import ATRIUM, annotate_scans, atrium_folder, label_scans, prepare
from _unlabelled_report import difference, report
from _unlabelled_runs import EPOCHS, PLANS, RUNS, SMALL, TASKS, Run

from nnunet_ext.files import BusyError, only_here, write_json

BUSY = 75  # exit status of a run that another process is training
WARM_UP, TIMED_STEPS = 10, 50


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
            self.mean_weights = {key: value.to(self.device) for key, value in checkpoint["mean_weights"].items()}
            self.mean_steps = checkpoint["mean_steps"]

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


def trainer_class_of(run: Run) -> type:
    """Return the class of a run's trainer, or end saying that there is none."""
    from nnunet_ext.trainers.names import find_trainer

    try:
        found = find_trainer(run.trainer)
    except ValueError as error:
        sys.exit(f"{run.name}: {error}")
    if found is None:
        sys.exit(f"{run.name} needs the trainer {run.trainer}, which there is not; nnunetv2_ext trainers lists them")
    return with_strong_intensities(found) if run.strong else found


def set_attributes(trainer: Any, run: Run) -> None:
    """Set what a run changes, or end naming what its trainer does not have."""
    for key in run.attributes:
        if not hasattr(trainer, key):
            sys.exit(
                f"{run.name} sets {key}, which {type(trainer).__name__} does not have; train it with a version of the "
                "project whose trainer has it"
            )
    for key, value in run.attributes.items():
        setattr(trainer, key, value)


def make_trainer(run: Run, trainer_class: type) -> Any:
    """Return the trainer of a run, not initialised."""
    import torch

    task = TASKS[run.task]
    preprocessed = accuracy.WORK / "preprocessed" / run.dataset
    plans = json.loads((preprocessed / f"{PLANS}.json").read_text()) | {"continue_training": False}
    if run.batch is not None:
        plans["configurations"][SMALL]["batch_size"] = run.batch
    dataset_json = json.loads((preprocessed / "dataset.json").read_text())
    # All labelled cases are for training; nothing is selected on validation cases.
    trainer = trainer_class(plans, task.configuration, "all", dataset_json, torch.device(run.device))
    set_attributes(trainer, run)
    return trainer


def fold_of(run: Run) -> Path:
    """Return where the checkpoints of a run lie."""
    model = f"{run.trainer}__{PLANS}__{TASKS[run.task].configuration}"
    return accuracy.WORK / "runs" / run.name / run.dataset / model / "fold_all"


def set_length(trainer: Any, iterations: int) -> None:
    """Let a trainer take as many steps an epoch as fit into its time; what is validated meanwhile costs little."""
    trainer.num_epochs, trainer.save_every = EPOCHS, 2
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = iterations, 2


def iterations_in(run: Run, trainer_class: type) -> int:
    """Return how many steps an epoch has so that a run takes its seconds, measured once where a step costs most."""
    file = accuracy.WORK / "runs" / run.name / "length.json"
    if not file.is_file():
        trainer = make_trainer(run, trainer_class)
        set_length(trainer, TIMED_STEPS)
        trainer.initialize()
        trainer.on_train_start()
        trainer.current_epoch = EPOCHS // 2  # where pseudo-labels have their full weight
        trainer.network.train()
        begin = 0.0
        for step in range(WARM_UP + TIMED_STEPS):
            if step == WARM_UP:
                begin = time.perf_counter()
            trainer.train_step(next(trainer.dataloader_train))
        seconds = (time.perf_counter() - begin) / TIMED_STEPS
        for loader in (trainer.dataloader_train, trainer.dataloader_val):
            if hasattr(loader, "_finish"):
                loader._finish()
        iterations = max(1, int(run.seconds / (EPOCHS * seconds)))
        write_json(file, {"iterations": iterations, "seconds_a_step": seconds}, indent=1)
    return json.loads(file.read_text())["iterations"]


def epoch_seconds(trainer: Any) -> float:
    """Return the time of all epochs. It goes on with the checkpoint, and an epoch that is trained again counts once."""
    begins, ends = (trainer.logger.get_value(f"epoch_{end}_timestamps", None) for end in ("start", "end"))
    return float(sum(end - begin for begin, end in zip(begins, ends, strict=False)))


def train_and_evaluate(run: Run) -> None:
    """Train one run (continuing where it was stopped) and write its result; runs in a process of its own."""
    import torch

    torch.set_num_threads(1)
    if run.labelled_by:
        label_scans(run, [fold_of(run.other(method)) for method in run.labelled_by])
    if run.annotated:
        annotate_scans(run)
    trainer_class = trainer_class_of(run)
    iterations = None if run.seconds is None else iterations_in(run, trainer_class)
    if not run.parts:
        trainer_class = with_mean_weights(trainer_class)
    trainer = make_trainer(run, trainer_class)
    if iterations is not None:
        set_length(trainer, iterations)
    seconds = time.time()
    trainer.initialize()
    checkpoints = [Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("final", "latest")]
    checkpoint = next((file for file in checkpoints if file.is_file()), None)
    if checkpoint is not None:
        trainer.load_checkpoint(str(checkpoint))
    elif run.begins_with:
        from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

        load_pretrained_weights(trainer.network, str(fold_of(run.other(run.begins_with)) / checkpoints[0].name))
    if checkpoint != checkpoints[0]:
        trainer.run_training()
    seconds = time.time() - seconds
    write_result(run, trainer, seconds)


def write_result(run: Run, trainer: Any, seconds: float) -> None:
    """Evaluate the networks of a training, and write its record."""
    import torch

    networks = {"network 1": trainer.network}
    trainer.set_deep_supervision_enabled(False)
    if hasattr(trainer, "network_2"):
        networks["network 2"] = trainer.network_2
    if hasattr(trainer, "teacher"):
        networks = {"network 1": trainer.teacher.network, "student": trainer.network}
    if not run.parts:
        networks["mean weights"] = copy.deepcopy(trainer.network)
        networks["mean weights"].load_state_dict(trainer.mean_weights)
    task = TASKS[run.task]
    scores = {title: accuracy.evaluate(trainer, network.eval(), task) for title, network in networks.items()}
    on = torch.cuda.get_device_name() if run.device == "cuda" else "CPU"
    steps = trainer.num_epochs * trainer.num_iterations_per_epoch
    result = {"run": run.__dict__, "steps": steps, "device": on}
    result |= {"seconds": epoch_seconds(trainer), "seconds_last_part": seconds}
    for measure in accuracy.MEASURES:
        result[measure] = {
            title: {case: [values[measure] for values in classes.values()] for case, classes in cases.items()}
            for title, cases in scores.items()
        }
    write_json(done_file(run), result, indent=1)


def done_file(run: Run) -> Path:
    """Return the record of a run."""
    return accuracy.WORK / "done" / f"{run.name}.json"


def one(run: Any, train: Callable[[Any], None] | None = None) -> int:
    """Train and evaluate a run unless another process does, and return an exit status."""
    try:
        with only_here(accuracy.WORK / "runs" / run.name, "trained"):
            if not done_file(run).is_file():
                (train or train_and_evaluate)(run)
    except BusyError as error:
        print(error, flush=True)
        return BUSY
    return 0


def start(run: Run, options: Sequence[str]) -> subprocess.Popen:
    """Begin to train a run in a process of its own."""
    environment = accuracy.environment(run)
    if run.device == "cuda":
        environment["nnUNet_n_proc_DA"] = str(max(1, min(12, (os.cpu_count() or 2) - 2)))
    command = [sys.executable, __file__, "one", "--only", run.name, *options]
    return subprocess.Popen(command, env=environment)


def run_all(runs: Sequence[Run], jobs: int, begin: Callable[[Run], subprocess.Popen]) -> list[Run]:
    """Train and evaluate what is not done yet, in this order, and return what is not done afterwards.

    Args:
        runs: What is wanted.
        jobs: How many processes train side by side.
        begin: Begins a run in a process.
    """
    waiting, active = deque(run for run in runs if not done_file(run).is_file()), {}
    for task in dict.fromkeys(run.task for run in waiting):
        prepare(task)  # all of them first: what is missing is told before hours of training
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                run = waiting.popleft()
                if not done_file(run).is_file():  # nor meanwhile by another process
                    print(f"=== {run.name}", flush=True)
                    active[run.name] = begin(run)
            ended = [name for name, process in active.items() if process.poll() is not None]
            for name in ended:
                del active[name]
            if active and not ended:
                time.sleep(0.2)
    finally:
        for process in active.values():
            process.terminate()
            process.wait()
    return [run for run in runs if not done_file(run).is_file()]


def chosen_runs(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Run]:
    """Return the runs that are asked for, or let the parser end naming what is wrong."""
    by_name = {run.name: run for run in RUNS}
    unknown = [name for name in arguments.only or () if name not in by_name]
    timed = [run for run in RUNS if arguments.seconds and run.timed(arguments.seconds).name in unknown]
    unknown = [name for name in unknown if name not in {run.timed(arguments.seconds).name for run in timed}]
    if unknown:
        parser.error(f"unknown run {unknown[0]!r}; there are {', '.join(by_name)}")
    by_name |= {run.timed(arguments.seconds).name: run for run in timed}
    runs = [by_name[name] for name in arguments.only] if arguments.only else list(RUNS)
    if not arguments.only and arguments.command == "run" and not os.environ.get(ATRIUM):
        runs = [run for run in runs if run.task != "atrium8"]
    return [run.timed(arguments.seconds) if arguments.seconds else run for run in runs]


def refuse_without_gpu(runs: Sequence[Run]) -> None:
    """End if a run needs what this machine does not have."""
    on_gpu = [run for run in runs if run.device == "cuda" and not done_file(run).is_file()]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"{on_gpu[0].name} needs a GPU, and there is none here; name other runs by --only")
    if any(not (accuracy.WORK / "raw" / TASKS[run.task].dataset / "dataset.json").is_file() for run in on_gpu):
        atrium_folder()


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "minus", "scores", "one"])
    parser.add_argument("--only", nargs="+", help="names of runs, in the order in which they are trained")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, each with one thread")
    parser.add_argument(
        "--dataset", nargs="+", default=[], help="of scores: more datasets of nnUNetv2_ext pseudo_label, made by hand"
    )
    parser.add_argument("--seconds", type=float, help="train for this time instead of steps, measured beforehand")
    parser.add_argument("--atrium", help=f"folder of left atria; default: {ATRIUM} of the environment")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error(f"--jobs must be 1 or more, got {arguments.jobs}")
    if arguments.seconds is not None and arguments.seconds <= 0:
        parser.error(f"--seconds must be more than 0, got {arguments.seconds:g}")
    if arguments.atrium:
        os.environ[ATRIUM] = arguments.atrium
    runs = chosen_runs(parser, arguments)
    if arguments.command == "report":
        report(runs)
    elif arguments.command == "minus":
        if len(runs) != 2:
            parser.error("minus needs two runs after --only")
        print(difference(*runs))
    elif arguments.command == "scores":
        from _agreement_worth import worth

        found = {run.dataset: run.name for run in runs if run.labelled_by} | {name: name for name in arguments.dataset}
        print("\n\n".join("\n".join(lines) for item in found.items() if (lines := worth(*item))))
    elif arguments.command == "one":
        sys.exit(one(runs[0]))
    else:
        refuse_without_gpu(runs)
        options = ["--seconds", f"{arguments.seconds:g}"] if arguments.seconds else []
        left = run_all(runs, arguments.jobs, lambda run: start(run, options))
        if left:
            sys.exit(f"not done: {', '.join(run.name for run in left)}; run the same command again")


if __name__ == "__main__":
    main()
