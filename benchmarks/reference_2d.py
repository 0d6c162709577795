"""Dice and NSD of the reference module in 2D: pairs of networks, windows and position; narrow networks, few labels.

hippocampus5  Dataset904 with 5 labelled and 155 unlabelled scans; needs the folder of NNUNET_EXT_DATA
phantoms4     phantoms like an abdominal CT with 4 labelled and 36 unlabelled scans, generated

    python benchmarks/reference_2d.py run [--only NAME ...] [--jobs 2]
        train and evaluate what is not done yet, in this order; resumable
    python benchmarks/reference_2d.py report
        tables of what is done, differences, and what is owed

Scans and test cases are those of unlabelled.py, plans those of ReferencePlanner with narrow networks and small
batches. All take as many steps; the last weights are judged on test cases that nothing was chosen with, of a pair each
network and both (mean softmax of each window). Each run is a process of its own with one thread and its own seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import accuracy
import numpy as np
from _command import train_list
from _unlabelled_data import prepare, waiting
from _unlabelled_runs import TASKS
from unlabelled import done_file, epoch_seconds

from nnunet_ext.files import write_json

CONFIGURATION, BATCH = "2d", 4
EPOCHS, ITERATIONS = 20, 100
SETTINGS: dict[str, Any] = {
    "transunet_stem_channels": 16,
    "transunet_channels": (32, 64, 128),
    "transunet_blocks": (1, 1, 2),
    "transunet_groups": 8,
    "transunet_embed_dim": 96,
    "transunet_depth": 3,
    "transunet_num_heads": 4,
    "transunet_bridge_channels": 64,
    "transunet_decoder_channels": (64, 32, 16, 8),
    "deeplab_encoder": "efficientnet-b0",
    "deeplab_decoder_channels": 64,
    # the paper's 1e-4 is for full widths and 50,000 steps
    "transunet_initial_lr": 1e-3,
    "deeplab_initial_lr": 1e-3,
}
FEATURES = (16, 32, 64, 96, 128, 128, 128, 128)  # of the plans' U-Net
PAIR = "CPS_TransUNet_DeepLabV3Plus"
TITLES = {"network 1": "1", "network 2": "2", "average": "both"}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Of the run and its record.
        parts: Of the trainer's name, without the length.
        task: What is trained on.
        seed: Of everything that is drawn.
        windows: Whether networks see CT in windows, or as it is in Hounsfield units / 1000.
        position: Whether networks get the position of the slice.
        bf16: Train in bfloat16.
        device: Where.
    """

    name: str
    parts: str
    task: str
    seed: int
    windows: bool = True
    position: bool = True
    bf16: bool = True
    device: str = "cpu"

    @property
    def trainer(self) -> str:
        """The trainer's name."""
        return f"nnUNetTrainer{self.parts}_{EPOCHS}epochs_{ITERATIONS}iterations"

    @property
    def plans(self) -> str:
        """Name of the plans."""
        return "ReferencePlans" if self.position else "ReferencePlansWithoutPosition"


def _runs() -> list[Run]:
    found = []
    for seed in (0, 1):
        for task in ("phantoms4", "hippocampus5"):
            for parts in ("", "TransUNet", "DeepLabV3Plus", "CPS", "CPS_UNet_TransUNet", PAIR):
                found.append(Run(parts or "supervised", parts, task, seed))
        for change in ("windows", "position"):
            found.append(Run(f"{PAIR}_no_{change}", PAIR, "phantoms4", seed, **{change: False}))
    return [Run(**asdict(run) | {"name": f"reference_{run.task}_{run.name}_seed{run.seed}"}) for run in found]


RUNS = _runs()


def prepare_plans(run: Run) -> None:
    """Plan and preprocess with ReferencePlanner, where that is not done yet."""
    prepare(run.task)
    task = TASKS[run.task]
    folder = accuracy.WORK / "preprocessed" / task.dataset
    with waiting(folder / run.plans, "planned"):
        if not (folder / f"{run.plans}.json").is_file():
            command = [sys.executable, __file__, "plan", "--only", run.name]
            subprocess.run(command, env=accuracy.environment(), check=True)
        plans = json.loads((folder / f"{run.plans}.json").read_text())
        if not (folder / plans["configurations"][CONFIGURATION]["data_identifier"]).is_dir():
            accuracy.stock(f"nnUNetv2_preprocess -d {task.number} -plans_name {run.plans} -c {CONFIGURATION} -np 1")


def plan(run: Run) -> None:
    """Write the plans of a run; in a process whose environment has the folders."""
    from nnunet_ext.planners.reference import ReferencePlanner

    planner = type("ReferencePlanner", (ReferencePlanner,), {"use_position": run.position})
    planner(TASKS[run.task].dataset, plans_name=run.plans).plan_experiment()


def small_plans(run: Run) -> dict[str, Any]:
    """Return the plans of a run with a narrow U-Net and a small batch."""
    file = accuracy.WORK / "preprocessed" / TASKS[run.task].dataset / f"{run.plans}.json"
    plans = json.loads(file.read_text()) | {"continue_training": False}
    configuration = plans["configurations"][CONFIGURATION]
    configuration["batch_size"] = BATCH
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = list(FEATURES[: arguments["n_stages"]])
    if not run.windows:
        arguments["windows"] = None
    return plans


def train_and_evaluate(run: Run) -> None:
    """Train one run (continuing where it was stopped) and write its result; runs in a process of its own."""
    import torch

    from nnunet_ext.networks.averaging import AverageOfNetworks
    from nnunet_ext.trainers.names import find_trainer

    torch.set_num_threads(1)
    task = TASKS[run.task]
    found = find_trainer(run.trainer)
    trainer_class = type(found.__name__, (found,), {"__module__": found.__module__, **SETTINGS})
    dataset_json = json.loads((accuracy.WORK / "preprocessed" / task.dataset / "dataset.json").read_text())
    trainer = trainer_class(small_plans(run), CONFIGURATION, "all", dataset_json, torch.device(run.device))
    trainer.validate_second_network = False
    trainer.initialize()
    checkpoints = [Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("final", "latest")]
    checkpoint = next((file for file in checkpoints if file.is_file()), None)
    if checkpoint is not None:
        trainer.load_checkpoint(str(checkpoint))
    if checkpoint != checkpoints[0]:
        trainer.run_training()
    trainer.set_deep_supervision_enabled(False)
    networks = {"network 1": trainer.network}
    if hasattr(trainer, "network_2"):
        networks |= {"network 2": trainer.network_2, "average": AverageOfNetworks(trainer.network, trainer.network_2)}
    scores = {title: accuracy.evaluate(trainer, network.eval(), task) for title, network in networks.items()}
    steps = trainer.num_epochs * trainer.num_iterations_per_epoch
    result = {"run": asdict(run), "steps": steps, "device": "CPU", "seconds": epoch_seconds(trainer)}
    result["parameters"] = {
        title: sum(parameter.numel() for parameter in network.parameters()) for title, network in networks.items()
    }
    for measure in accuracy.MEASURES:
        result[measure] = {
            title: {case: [values[measure] for values in classes.values()] for case, classes in cases.items()}
            for title, cases in scores.items()
        }
    write_json(done_file(run), result, indent=1)


def means_of(run: Run, measure: str) -> dict[str, np.ndarray]:
    """Return the mean over classes of each test case, by network, empty where the run is owed."""
    result = accuracy.recorded(run) or {}
    return {
        title: np.nanmean(np.array([cases[case] for case in sorted(cases)]), 1)
        for title, cases in result.get(measure, {}).items()
    }


def with_interval(values: np.ndarray, sign: str = "") -> str:
    """Return mean and 95 % interval over cases."""
    low, high = accuracy.interval(values)
    return f"{values.mean():{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def report() -> None:
    """Print what is done as Markdown, differences from supervised training, and what is owed."""
    for name in dict.fromkeys(run.task for run in RUNS):
        print(f"\n| {name} | seed | network | parameters |", end="")
        print(" Dice [95 %] | worst case | NSD [95 %] | Dice minus supervised [95 %] |")
        print("|---" * 8 + "|")
        for run in (run for run in RUNS if run.task == name):
            record, nsd = accuracy.recorded(run), means_of(run, "nsd")
            baseline = next(r for r in RUNS if (r.task, r.seed, r.parts) == (run.task, run.seed, ""))
            supervised = means_of(baseline, "dsc").get("network 1")
            for title, dice in means_of(run, "dsc").items():
                more = "" if supervised is None or run == baseline else with_interval(dice - supervised, "+")
                method = run.name.removeprefix(f"reference_{name}_").removesuffix(f"_seed{run.seed}")
                cells = [method, run.seed, TITLES[title], f"{record['parameters'][title] / 1e6:.2f} M"]
                cells += [with_interval(dice), f"{dice.min():.3f}", with_interval(nsd[title]), more]
                print("| " + " | ".join(map(str, cells)) + " |")
    report_differences()
    owed = [run.name for run in RUNS if accuracy.recorded(run) is None]
    print("\nOwed:", ", ".join(owed) or "nothing")


def report_differences() -> None:
    """Print what partner, windows and position gain, paired by case, and the Dice of each class."""
    pairs = [((PAIR, title), (f"{PAIR}_no_{change}", title)) for change in ("windows", "position") for title in TITLES]
    pairs += [
        (("CPS_UNet_TransUNet", "network 2"), ("TransUNet", "network 1")),
        ((PAIR, "network 1"), ("TransUNet", "network 1")),
        ((PAIR, "network 2"), ("DeepLabV3Plus", "network 1")),
    ]
    by_name = {run.name: run for run in RUNS}
    print("\nDice, paired by case:\n")
    for task, seed in dict.fromkeys((run.task, run.seed) for run in RUNS):
        for (first, title), (second, other) in pairs:
            runs = [by_name.get(f"reference_{task}_{method}_seed{seed}") for method in (first, second)]
            dice = [means_of(run, "dsc") if run else {} for run in runs]
            if title in dice[0] and other in dice[1]:
                gain = with_interval(dice[0][title] - dice[1][other], "+")
                print(f"- {task} seed {seed}, {first} {TITLES[title]} minus {second} {TITLES[other]}: {gain}")
    print("\nDice by class:\n")
    for run in RUNS:
        for title, cases in (accuracy.recorded(run) or {}).get("dsc", {}).items():
            values = np.nanmean(np.array(list(cases.values())), 0)
            names = TASKS[run.task].classes.values()
            by_class = ", ".join(f"{name} {value:.2f}" for name, value in zip(names, values, strict=True))
            print(f"- {run.name} {TITLES[title]}: {by_class}")


def prepare_all(runs: Sequence[Run]) -> None:
    """Plan and preprocess for runs."""
    for run in runs:
        prepare_plans(run)


if __name__ == "__main__":
    train_list(__doc__, __file__, RUNS, train_and_evaluate, report, prepare_all, {"plan": plan})
