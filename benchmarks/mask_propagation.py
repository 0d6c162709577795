"""Dice of mask propagation in 2D: what it makes of a coarse prediction, and of a few true slices; narrow networks.

    python benchmarks/mask_propagation.py run [--only NAME ...] [--jobs 2]
        train and evaluate what is not done yet, in this order; resumable
    python benchmarks/mask_propagation.py report
        tables of what is done, differences, and what is owed

Tasks, plans and 2D models are those of reference_2d.py, whose run of CPS with the same seed has to be done before, 3D
models those of unlabelled.py. A propagation network is trained on the few labelled scans. On test cases that nothing
was chosen with,

refine    CPS of two U-Nets (network 1) on all slices; the same on sampled slices, of which the largest of each class
          (the paper), or each that has a class, are propagated; beside them the record of the 3D model of these labels
annotate  1, 2, 3, 5, 10 and 20 % of the slices given as they truly are (at least one, spread evenly over those that
          have a class), the others by propagation, by the nearest slice, and by shapes interpolated between slices
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import accuracy
import numpy as np
import reference_2d
from _command import train_list
from _sparse_baselines import interpolated_shapes, nearest_slice
from _unlabelled_runs import TASKS
from reference_2d import with_interval
from unlabelled import done_file, epoch_seconds

from nnunet_ext.files import write_json

CONFIGURATION, TRIPLES = "2d", 4
EPOCHS, LONG, ITERATIONS = 15, 50, 100
SETTINGS: dict[str, Any] = {
    "propagation_key_stages": (16, 32, 64),
    "propagation_key_blocks": (1, 2, 2),
    "propagation_value_stages": (16, 32, 64),
    "propagation_value_blocks": (1, 1, 1),
    "propagation_key_dim": 32,
    "propagation_value_dim": 64,
    "propagation_decoder_channels": (64, 32, 32),
    # the paper's 1e-4 is for full widths and 60,000 steps
    "propagation_initial_lr": 1e-3,
}
PERCENT = (1, 2, 3, 5, 10, 20)
FILLED_BY = ("propagation", "nearest slice", "shapes")
REFINED = ("CPS", "largest", "uniform")


@dataclass(frozen=True)
class Run:
    """One training and what it is judged by.

    Attributes:
        name: Of the run and its record.
        task: What is trained on.
        seed: Of everything that is drawn.
        enlarge: By how much images are enlarged at the input; None for the trainer's choice.
        epochs: Length of the training.
        bf16: Train in bfloat16.
        device: Where.
    """

    name: str
    task: str
    seed: int
    enlarge: int | None = None
    epochs: int = EPOCHS
    bf16: bool = True
    device: str = "cpu"

    @property
    def trainer(self) -> str:
        """The trainer's name."""
        return f"nnUNetTrainerPropagation_{self.epochs}epochs_{ITERATIONS}iterations"

    @property
    def coarse(self) -> reference_2d.Run:
        """Run of reference_2d.py whose network 1 segments the slices."""
        return next(
            run for run in reference_2d.RUNS if (run.task, run.seed, run.parts) == (self.task, self.seed, "CPS")
        )


def _runs() -> list[Run]:
    found = []
    for seed, more in ((0, {}), (1, {}), (0, {"enlarge": 1}), (0, {"enlarge": 4})):
        for task in ("phantoms4", "hippocampus5"):
            change = "".join(f"_enlarge{value}" for value in more.values())
            if not change:
                found.append(Run(f"propagation_{task}_long_seed{seed}", task, seed, epochs=LONG))
            found.append(Run(f"propagation_{task}{change}_seed{seed}", task, seed, **more))
    return found


RUNS = _runs()


def plans_of(run: Run) -> dict[str, Any]:
    """Return the plans of a run: those of the reference module, with its small batch."""
    return reference_2d.small_plans(run.coarse)


def train_and_evaluate(run: Run) -> None:
    """Train one run (continuing where it was stopped) and write its result; runs in a process of its own."""
    import torch

    from nnunet_ext.trainers.names import find_trainer

    torch.set_num_threads(1)
    task = TASKS[run.task]
    found = find_trainer(run.trainer)
    settings = SETTINGS | {"__module__": found.__module__, "propagation_enlarge": run.enlarge}
    trainer_class = type(found.__name__, (found,), settings)
    dataset_json = json.loads((accuracy.WORK / "preprocessed" / task.dataset / "dataset.json").read_text())
    trainer = trainer_class(plans_of(run), CONFIGURATION, "all", dataset_json, torch.device(run.device))
    trainer.propagation_triples = TRIPLES
    trainer.initialize()
    checkpoints = [Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("final", "latest")]
    checkpoint = next((file for file in checkpoints if file.is_file()), None)
    if checkpoint is not None:
        trainer.load_checkpoint(str(checkpoint))
    if checkpoint != checkpoints[0]:
        trainer.run_training()
    result = {"run": asdict(run), "steps": trainer.num_epochs * trainer.num_iterations_per_epoch, "device": "CPU"}
    result |= {"seconds": epoch_seconds(trainer), "enlarge": trainer.network.enlarge}
    result["parameters"] = sum(parameter.numel() for parameter in trainer.network.parameters())
    write_json(done_file(run), result | evaluate(run, Path(trainer.output_folder_base)), indent=1)


def evaluate(run: Run, folder: Path) -> dict[str, Any]:
    """Return Dice and NSD of each test case and class, by what was given and how the rest was found."""
    import torch

    from nnunet_ext.inference.propagation_model import open_model

    device = torch.device(run.device)
    model = open_model(folder)
    networks = model.load(device)
    file = accuracy.WORK / "runs" / run.name / "annotated.json"
    if not file.is_file():
        write_json(file, _annotated(run, model, networks, device))
    annotated = json.loads(file.read_text())
    return {"annotate": annotated, "refine": _refined(run, folder)}


def _annotated(run: Run, model: Any, networks: list, device: Any) -> dict[str, Any]:
    from tqdm import tqdm

    from nnunet_ext.inference.case import prepare
    from nnunet_ext.inference.propagated import Carrier, GivenSlices
    from nnunet_ext.inference.spacing import PlansSpacing
    from nnunet_ext.inference.writing import export
    from nnunet_ext.propagation.driver import PropagationSettings
    from nnunet_ext.propagation.references import choose

    carrier = Carrier(networks, model.model, device, PropagationSettings())
    found: dict[str, Any] = {}
    for case, image, truth, spacing in tqdm(list(_test_cases(run)), "annotate"):
        prepared = prepare((str(image),), None, PlansSpacing(), model.model)
        along = np.moveaxis(truth, model.axis, 0)
        for percent in PERCENT:
            number = max(1, round(percent / 100 * len(along)))
            indices = tuple(choose(along, list(range(len(along))), number))
            given = GivenSlices(model.axis, indices, truth.take(indices, model.axis))
            carried = carrier.carry(prepared, given)
            prepared.exported = carried.exported
            label_map = export(carried.logits, prepared, model.model, None).segmentation
            references = {index: along[index] for index in indices}
            label_maps = {"propagation": label_map}
            for name, fill in (("nearest slice", nearest_slice), ("shapes", interpolated_shapes)):
                label_maps[name] = np.moveaxis(fill(references, len(along)), 0, model.axis)
            row = {name: _scores(run, truth, one, spacing) for name, one in label_maps.items()}
            found.setdefault(str(percent), {})[case] = {"slices": [len(indices), len(along)]} | row
    return found


def _refined(run: Run, folder: Path) -> dict[str, Any]:
    """Predict the test cases by the stock command, with the coarse model alone and with propagation."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the cores of other trainings
    coarse = accuracy.WORK / "runs" / run.coarse.name / TASKS[run.task].dataset
    coarse /= f"{run.coarse.trainer}__{run.coarse.plans}__{CONFIGURATION}"
    images = accuracy.WORK / "raw" / TASKS[run.task].dataset / "imagesTs"
    found: dict[str, Any] = {}
    for name in REFINED:
        output = accuracy.WORK / "runs" / run.name / "predicted" / name
        options = "--fast_export" if name == "CPS" else f"--propagate {folder} --propagate_references {name}"
        accuracy.stock(
            f"nnUNetv2_predict_from_modelfolder -i {images} -o {output} -m {coarse} -f all -device cpu -npp 0 -nps 0 "
            f"--disable_progress_bar --continue_prediction {options}"
        )
        report = json.loads((output / "spacing_report.json").read_text())["cases"]
        for case, _, truth, spacing in _test_cases(run):
            label_map = _read(output / f"{case}.nii.gz")
            found.setdefault(name, {})[case] = _scores(run, truth, label_map, spacing)
            found[name][case]["seconds"] = report[case]["seconds"].get("network")
            found[name][case]["propagation"] = report[case].get("propagation")
    return found


def _test_cases(run: Run) -> Iterator[tuple[str, Path, np.ndarray, list[float]]]:
    """Yield name, image, true labels and spacing, in array order."""
    import SimpleITK

    for label in sorted((accuracy.WORK / "raw" / TASKS[run.task].dataset / "labelsTs").glob("*.nii.gz")):
        case = label.name.removesuffix(".nii.gz")
        spacing = [float(value) for value in SimpleITK.ReadImage(str(label)).GetSpacing()[::-1]]
        yield case, label.parent.parent / "imagesTs" / f"{case}_0000.nii.gz", _read(label), spacing


def _read(file: Path) -> np.ndarray:
    import SimpleITK

    values: np.ndarray = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))).astype(np.int16)
    return values


def _scores(run: Run, truth: np.ndarray, label_map: np.ndarray, spacing: list[float]) -> dict[str, Any]:
    from nnunet_ext.evaluation.metrics import Classes, compare

    task = TASKS[run.task]
    classes = Classes({name: label for label, name in task.classes.items()}, None)
    scores = compare(truth.astype(int), label_map.astype(int), spacing, classes, task.tolerance_mm)
    return {measure: [values[measure] for values in scores.values()] for measure in accuracy.MEASURES}


def mean_over_classes(cases: dict[str, Any], measure: str, title: str | None = None) -> np.ndarray:
    """Return the mean of each case, in order of their names."""
    rows = [cases[case] if title is None else cases[case][title] for case in sorted(cases)]
    return np.nanmean(np.array([row[measure] for row in rows], float), 1)


def report() -> None:
    """Print what is done as Markdown, and what is owed."""
    done = [(run, accuracy.recorded(run)) for run in RUNS]
    for run, record in done:
        if record is not None:
            print(f"\n{run.name}: {record['steps']} steps, {record['parameters'] / 1e6:.2f} M parameters", end="")
            print(f", images enlarged {record['enlarge']} times\n")
            report_refined(run, record)
            report_annotated(record)
    print("\nOwed:", ", ".join(run.name for run, record in done if record is None) or "nothing")


def report_refined(run: Run, record: dict[str, Any]) -> None:
    """Print what propagation made of the predictions of CPS."""
    print("| | Dice [95 %] | worst case | NSD [95 %] | minus CPS on all slices [95 %] |")
    print("|---" * 5 + "|")
    alone = mean_over_classes(record["refine"]["CPS"], "dsc")
    titles = ("CPS on all slices", "largest slices propagated", "sampled slices propagated")
    for name, title in zip(REFINED, titles, strict=True):
        dice, nsd = (mean_over_classes(record["refine"][name], measure) for measure in accuracy.MEASURES)
        more = "" if name == "CPS" else with_interval(dice - alone, "+")
        print(f"| {title} | {with_interval(dice)} | {dice.min():.3f} | {with_interval(nsd)} | {more} |")
    volume = accuracy.recorded(accuracy.Run(f"{run.task}_supervised_seed{run.seed}", ""))
    if volume is not None:
        dice, nsd = (reference_2d_means(volume, measure) for measure in accuracy.MEASURES)
        more = with_interval(dice - alone, "+")
        title = f"3D U-Net of the same labels, {volume['steps']} steps"
        print(f"| {title} | {with_interval(dice)} | {dice.min():.3f} | {with_interval(nsd)} | {more} |")


def reference_2d_means(record: dict[str, Any], measure: str) -> np.ndarray:
    """Return the mean over classes of each test case of network 1 in a record of unlabelled.py."""
    cases = record[measure]["network 1"]
    return np.nanmean(np.array([cases[case] for case in sorted(cases)], float), 1)


def report_annotated(record: dict[str, Any]) -> None:
    """Print the Dice of whole volumes by the true slices given."""
    print(
        "\n| true slices | of them each scan has | propagation [95 %] | nearest slice | shapes between slices |", end=""
    )
    print(" propagation minus the better one [95 %] |")
    print("|---" * 6 + "|")
    for percent, cases in record["annotate"].items():
        dice = {name: mean_over_classes(cases, "dsc", name) for name in FILLED_BY}
        given = [cases[case]["slices"][0] for case in cases]
        better = max(FILLED_BY[1:], key=lambda name: dice[name].mean())
        gain = with_interval(dice["propagation"] - dice[better], "+")
        cells = [f"{percent} %", f"{min(given)} to {max(given)}" if min(given) < max(given) else str(given[0])]
        cells += [with_interval(dice["propagation"]), *(f"{dice[name].mean():.3f}" for name in FILLED_BY[1:]), gain]
        print("| " + " | ".join(cells) + " |")


def refuse_without_coarse(runs: Sequence[Run]) -> None:
    """End if a 2D model whose slices are propagated is not trained yet."""
    lacking = dict.fromkeys(run.coarse.name for run in runs if not done_file(run.coarse).is_file())
    if lacking:
        sys.exit(f"train first: python benchmarks/reference_2d.py run --only {' '.join(lacking)}")


if __name__ == "__main__":
    train_list(__doc__, __file__, RUNS, train_and_evaluate, report, refuse_without_coarse)
