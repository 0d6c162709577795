"""DSC and NSD of trainings, small networks, on the test cases of two datasets.

hippocampus  Dataset904, 10 labelled scans; needs the folder of NNUNET_EXT_DATA (default ../shared/data)
imbalance    phantoms like an abdominal CT, 20 for training and 40 for testing, generated; of the volume 3.4 % is liver
             and 0.09 % gallbladder

    python benchmarks/accuracy.py run [--only NAME ...]     train and evaluate what is not done yet; resumable. Without
                                                            names all runs on the CPU, or with --gpu all on a GPU
    python benchmarks/accuracy.py report                    tables of what is done, and what is owed

Each run is a process of its own with one thread, loader in the same process (repeatable), and its own seed. Those on a
GPU run side by side, in fp16 as nnU-Net, not compiled, each with one loader process. Results:
benchmarks/results/accuracy; those behind docs/benchmarks.md lie in benchmarks/records.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nnunet_ext.demo.phantom import LABELS, make_phantom

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("NNUNET_EXT_DATA", HERE.parent.parent / "shared" / "data"))
WORK = Path(os.environ.get("NNUNET_EXT_BENCH", HERE / "results")) / "accuracy"
MEASURES = ("dsc", "nsd")


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Attributes:
        dataset: Name of the dataset; its number is in it.
        planner: Made with nnUNetv2_plan_and_preprocess -pl.
        plans: Name of its plans.
        classes: Names by label.
        tolerance_mm: Of the NSD: about one voxel.
        patch: Patch size, None for that of the plans.
        mirroring: Predict with it.
    """

    dataset: str
    planner: str
    plans: str
    classes: dict[int, str]
    tolerance_mm: float
    patch: list[int] | None = None
    mirroring: bool = True

    @property
    def number(self) -> str:
        """The dataset's number."""
        return self.dataset[7:10]


ORGANS = {number: organ for organ, number in LABELS.items() if number}
TASKS = {
    "hippocampus": Task(
        "Dataset904_HippocampusSSL",
        "SemiSupervisedPlanner",
        "SemiSupervisedPlans",
        {1: "anterior", 2: "posterior"},
        1.0,
    ),
    "imbalance": Task(
        "Dataset922_ImbalancedPhantom", "ExperimentPlanner", "nnUNetPlans", ORGANS, 5.0, [24, 32, 32], False
    ),
}
PHANTOMS = {"Tr": 20, "Ts": 40}
AIR_VOXELS = 8  # on each side, in plane: a scan with a large field of view


@dataclass(frozen=True)
class Run:
    """One training: trainer, seed, bfloat16 or not, attributes that differ, data, configuration, device."""

    name: str
    trainer: str
    seed: int = 0
    bf16: bool = True
    attributes: dict = field(default_factory=dict)
    task: str = "hippocampus"
    configuration: str = "3d_small"
    device: str = "cpu"


SUP, CPS = "nnUNetTrainer_20epochs_250iterations", "nnUNetTrainerCPS_20epochs_250iterations"
CWCD, CPS_CWCD_SHORT = "nnUNetTrainerCWCD_20epochs_250iterations", "nnUNetTrainerCPS_CWCD_15epochs_100iterations"
IFE, SCORES = "nnUNetTrainerIFE{}_20epochs_250iterations", ("Curvature", "Entropy")
ANU, ANU_SHORT = "nnUNetTrainerANUNet_20epochs_250iterations", "nnUNetTrainerANUNet_15epochs_100iterations"
SUP_SHORT, CPS_SHORT = "nnUNetTrainer_15epochs_100iterations", "nnUNetTrainerCPS_15epochs_100iterations"
RUNS = [
    Run("supervised_5000_seed0", SUP, 0),
    Run("cps_5000_seed0", CPS, 0),
    Run("supervised_5000_seed1", SUP, 1),
    Run("cps_5000_seed1", CPS, 1),
    Run("supervised_1500_bf16", SUP_SHORT, 0),
    Run("supervised_1500_fp32", SUP_SHORT, 0, bf16=False),
    Run("cps_1500_ramp050", CPS_SHORT, 0),
    Run("cps_1500_ramp100", CPS_SHORT, 0, attributes={"ramp_fraction": 1.0}),
    Run("cps_1500_ramp000", CPS_SHORT, 0, attributes={"ramp_fraction": 0.0}),
    Run("cps_1500_weight010", CPS_SHORT, 0, attributes={"cps_weight": 0.1}),
    Run("cwcd_5000_seed0", CWCD, 0),
    Run("cwcd_5000_seed1", CWCD, 1),
    Run("cps_cwcd_1500", CPS_CWCD_SHORT, 0),
    Run("cps_cwcd_1500_pseudo", CPS_CWCD_SHORT, 0, attributes={"contour_pseudo_labels": True}),
    *[
        Run(f"imbalance_{name}_seed{seed}", trainer, seed, attributes=attributes, task="imbalance")
        for seed in (0, 1)
        for name, trainer, attributes in (
            ("supervised", SUP, {}),
            ("cwcd", CWCD, {}),
            ("cwcd_adaptive", CWCD, {"contour_min_interior": 0.25}),
            ("cwcd_10mm", CWCD, {"contour_thickness_mm": 10.0}),
            ("cwcd_six", CWCD, {"contour_iterations": 6}),
        )
    ],
    *[Run(f"ife_{score.lower()}_5000_seed{seed}", IFE.format(score), seed) for seed in (0, 1) for score in SCORES],
    Run("supervised_1500_fp32_seed1", SUP_SHORT, 1, bf16=False),
    Run("anu_1500_seed0", ANU_SHORT, 0),
    *[Run(f"anu_1500_fp32_seed{seed}", ANU_SHORT, seed, bf16=False) for seed in (0, 1)],
    *[
        Run(f"{name}_gpu_5000_seed{seed}", trainer, seed, False, configuration=configuration, device="cuda")
        for seed in (0, 1)
        for name, trainer, configuration in (
            ("supervised", SUP, "3d_small"),
            ("anu", ANU, "3d_small"),
            ("supervised_full", SUP, "3d_fullres"),
            ("anu_full", ANU, "3d_fullres"),
        )
    ],
    *[
        Run(f"{name}_2d_5000_seed{seed}", trainer, seed, configuration="2d_small")
        for seed in (0, 1)
        for name, trainer in (
            ("supervised", SUP),
            *((f"ife_{score.lower()}", IFE.format(score)) for score in SCORES),
        )
    ],
]


def environment(run: Run | None = None) -> dict[str, str]:
    """Return the environment of a run, folders and seeds included."""
    env = os.environ | {
        "nnUNet_raw": str(WORK / "raw"),
        "nnUNet_preprocessed": str(WORK / "preprocessed"),
        "nnUNet_results": str(WORK / "runs" / (run.name if run else "none")),
        "nnUNet_def_n_proc": "2",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    if run is not None:
        # No loader processes, so that a run can be repeated; stock planning would not take 0.
        env |= {
            "nnUNet_n_proc_DA": str(int(run.device == "cuda")),
            "nnUNet_compile": "f",
            "nnUNet_ext_seed": str(run.seed),
            "nnUNet_ext_cpu_bf16": str(int(run.bf16)),
        }
    return env


def write_phantoms(folder: Path) -> None:
    """Write the raw dataset of phantoms."""
    import SimpleITK

    for kind, number in PHANTOMS.items():
        for index in range(number):
            images = make_phantom(7 if kind == "Tr" else 8, index).to_images()
            for image, value, name, end in zip(images, (-1000, 0), ("images", "labels"), ("_0000", ""), strict=True):
                target = folder / f"{name}{kind}" / f"phantom_{index:03d}{end}.nii.gz"
                target.parent.mkdir(parents=True, exist_ok=True)
                margin = [AIR_VOXELS, AIR_VOXELS, 0]
                SimpleITK.WriteImage(SimpleITK.ConstantPad(image, margin, margin, value), str(target))
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": PHANTOMS["Tr"], "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def prepare(task: Task, configuration: str) -> None:
    """Plan and preprocess with the stock commands, then add the small configuration."""
    raw = WORK / "raw" / task.dataset
    raw.parent.mkdir(parents=True, exist_ok=True)
    if task.dataset.startswith("Dataset904"):
        if not (DATA / task.dataset).is_dir():
            sys.exit(f"{DATA / task.dataset} is missing; set NNUNET_EXT_DATA to the folder that has it")
        if not raw.exists():
            raw.symlink_to((DATA / task.dataset).resolve())
    elif not (raw / "dataset.json").is_file():
        write_phantoms(raw)
    full = {"3d_small": "3d_fullres", "2d_small": "2d"}.get(configuration, configuration)
    plans_file = WORK / "preprocessed" / task.dataset / f"{task.plans}.json"
    if not plans_file.is_file():
        stock(f"nnUNetv2_plan_and_preprocess -d {task.number} -pl {task.planner} -c {full} -np 2 -npfp 2")
    plans = json.loads(plans_file.read_text())
    if not (plans_file.parent / plans["configurations"][full]["data_identifier"]).is_dir():
        stock(f"nnUNetv2_preprocess -d {task.number} -plans_name {task.plans} -c {full} -np 2")
    if configuration in plans["configurations"]:
        return
    plans["configurations"][configuration] = small_configuration(task, full, plans["configurations"][full])
    plans_file.with_suffix(".tmp").write_text(json.dumps(plans, indent=1))
    plans_file.with_suffix(".tmp").replace(plans_file)


def stock(command: str) -> None:
    """Run one of nnU-Net's commands."""
    program, *arguments = command.split()
    subprocess.run([str(Path(sys.executable).parent / program), *arguments], env=environment(), check=True)


def small_configuration(task: Task, full: str, configuration: dict) -> dict:
    """Return a configuration with fewer features, in 3D a quarter and in 2D half of the plans', and smaller patches."""
    architecture = copy.deepcopy(configuration["architecture"])
    kwargs = architecture["arch_kwargs"]
    if full == "2d":
        kwargs["features_per_stage"] = [features // 2 for features in kwargs["features_per_stage"]]
        return {"inherits_from": full, "architecture": architecture}
    kwargs["features_per_stage"] = [min(8 * 2**stage, 64) for stage in range(kwargs["n_stages"])]
    small = {"inherits_from": full, "batch_size": 2, "architecture": architecture}
    if task.patch:
        # shallower as well, as nnU-Net does for smaller patches
        for key, value in kwargs.items():
            if isinstance(value, list):
                kwargs[key] = value[: 3 if key == "n_conv_per_stage_decoder" else 4]
        kwargs["n_stages"] = 4
        small["patch_size"] = task.patch
    return small


def train_and_evaluate(run: Run) -> None:
    """Train one run (continuing where it was stopped) and write its result; runs in a process of its own."""
    import torch
    from batchgenerators.utilities.file_and_folder_operations import load_json

    from nnunet_ext.trainers.names import find_trainer

    torch.set_num_threads(1)
    task = TASKS[run.task]
    preprocessed = WORK / "preprocessed" / task.dataset
    plans = load_json(str(preprocessed / f"{task.plans}.json")) | {"continue_training": False}
    dataset_json = load_json(str(preprocessed / "dataset.json"))
    # All labelled cases are for training; nothing is selected on validation cases.
    trainer = find_trainer(run.trainer)(plans, run.configuration, "all", dataset_json, torch.device(run.device))
    for key, value in run.attributes.items():
        setattr(trainer, key, value)
    checkpoint = Path(trainer.output_folder) / "checkpoint_latest.pth"
    final = Path(trainer.output_folder) / "checkpoint_final.pth"
    seconds = time.time()
    trainer.initialize()
    if final.is_file():
        trainer.load_checkpoint(str(final))
    else:
        if checkpoint.is_file():
            trainer.load_checkpoint(str(checkpoint))
        trainer.run_training()
    seconds = time.time() - seconds
    networks = {"network 1": trainer.network}
    if hasattr(trainer, "network_2"):
        from nnunet_ext.networks.averaging import AverageOfNetworks

        average = AverageOfNetworks(trainer.network, trainer.network_2, regions=trainer.label_manager.has_regions)
        networks |= {"network 2": trainer.network_2, "average": average}
    trainer.set_deep_supervision_enabled(False)
    networks |= {
        f"depth {depth}": cut(trainer, depth) for depth in range(getattr(trainer.network, "depth", 1) - 1, 0, -1)
    }
    scores = {title: evaluate(trainer, network.eval(), task) for title, network in networks.items()}
    steps = trainer.num_epochs * trainer.num_iterations_per_epoch
    on = torch.cuda.get_device_name() if run.device == "cuda" else "CPU"
    result = {"run": run.__dict__, "steps": steps, "device": on, "seconds_last_part": seconds}
    for measure in MEASURES:
        result[measure] = {
            title: {case: [one[measure] for one in classes.values()] for case, classes in cases.items()}
            for title, cases in scores.items()
        }
    target = WORK / "done" / f"{run.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".tmp").write_text(json.dumps(result, indent=1))
    target.with_suffix(".tmp").replace(target)


def cut(trainer, depth: int):
    """Return the nested network of a trainer, cut at a depth."""
    from nnunet_ext.training.architecture import build

    architecture = copy.deepcopy(trainer.configuration_manager.configuration["architecture"])
    architecture["arch_kwargs"]["depth"] = depth
    network = build(architecture, trainer.num_input_channels, trainer.label_manager.num_segmentation_heads, False)
    weights = trainer.network.state_dict()
    network.load_state_dict({key: weights[key] for key in network.state_dict()})
    return network.to(trainer.device)


def evaluate(trainer, network, task: Task) -> dict[str, dict[str, dict[str, float]]]:
    """Return DSC and NSD of each test case and class, predicted as nnU-Net does (step 0.5)."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from tqdm import tqdm

    from nnunet_ext.evaluation.metrics import Classes, compare

    options = {"perform_everything_on_device": False, "allow_tqdm": False, "use_mirroring": task.mirroring}
    predictor = nnUNetPredictor(device=trainer.device, **options)
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    reader = trainer.plans_manager.image_reader_writer_class()
    classes = Classes({name: label for label, name in task.classes.items()}, None)
    scores = {}
    for label in tqdm(sorted((WORK / "raw" / task.dataset / "labelsTs").glob("*.nii.gz")), "test cases"):
        case = label.name[: -len(".nii.gz")]
        image, properties = reader.read_images([str(label.parent.parent / "imagesTs" / f"{case}_0000.nii.gz")])
        truth = reader.read_seg(str(label))[0][0]
        found = predictor.predict_single_npy_array(image, properties)
        scores[case] = compare(truth.astype(int), found.astype(int), properties["spacing"], classes, task.tolerance_mm)
    return scores


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean over cases."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (10000, len(values)))].mean(1)
    return tuple(np.percentile(means, [2.5, 97.5]))


def recorded(run: Run) -> dict | None:
    """Return the result of a run made here, or else the one that was published with the project."""
    for folder in (WORK / "done", HERE / "records"):
        if (folder / f"{run.name}.json").is_file():
            return json.loads((folder / f"{run.name}.json").read_text())
    return None


def report() -> None:
    """Print what is done as Markdown, and name what is owed."""
    owed, means = [], {}
    for measure, (name, task) in ((m, t) for t in TASKS.items() for m in MEASURES):
        print(f"\n| {name}, {measure.upper()} | seed | steps | network |", end="")
        print(f" {' [95 %] | '.join(task.classes.values())} [95 %] | mean [95 %] | worst case |")
        print("|---" * (6 + len(task.classes)) + "|")
        for run in (run for run in RUNS if run.task == name):
            result = recorded(run) or {}
            # the first records hold the DSC alone, under its other name
            tables = result.get(measure, result.get("dice") if measure == "dsc" else None)
            if not tables:
                owed.append(f"{run.name} ({measure.upper()})")
                continue
            for network, cases in tables.items():
                table = np.array([cases[case] for case in sorted(cases)])
                means[measure, run.name, network] = table.mean(1)
                cells = []
                for values in (*table.T, table.mean(1)):
                    low, high = interval(values)
                    cells.append(f"{values.mean():.3f} [{low:.3f}, {high:.3f}]")
                print(f"| {run.name} | {run.seed} | {result['steps']} | {network} | {' | '.join(cells)} ", end="")
                print(f"| {table.mean(1).min():.3f} |")
    print("\nPaired differences of the means over the cases:\n")
    for first, second in PAIRS:
        for measure in MEASURES:
            if (measure, *first) in means and (measure, *second) in means:
                difference = means[(measure, *second)] - means[(measure, *first)]
                low, high = interval(difference)
                print(f"- {measure.upper()}, {' '.join(second)} minus {' '.join(first)}: ", end="")
                print(f"{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    print("\nOwed:", ", ".join(owed) or "nothing")


PAIRS = [
    (("supervised_5000_seed0", "network 1"), ("cps_5000_seed0", "network 1")),
    (("supervised_5000_seed0", "network 1"), ("cps_5000_seed0", "average")),
    (("supervised_5000_seed1", "network 1"), ("cps_5000_seed1", "network 1")),
    (("supervised_5000_seed1", "network 1"), ("cps_5000_seed1", "average")),
    (("supervised_1500_fp32", "network 1"), ("supervised_1500_bf16", "network 1")),
    (("supervised_1500_bf16", "network 1"), ("cps_1500_ramp050", "network 1")),
    (("cps_1500_ramp050", "network 1"), ("cps_1500_ramp100", "network 1")),
    (("cps_1500_ramp050", "network 1"), ("cps_1500_ramp000", "network 1")),
    (("cps_1500_ramp050", "network 1"), ("cps_1500_weight010", "network 1")),
    (("supervised_5000_seed0", "network 1"), ("cwcd_5000_seed0", "network 1")),
    (("supervised_5000_seed1", "network 1"), ("cwcd_5000_seed1", "network 1")),
    (("cps_1500_ramp050", "network 1"), ("cps_cwcd_1500", "network 1")),
    *[(("cps_cwcd_1500", network), ("cps_cwcd_1500_pseudo", network)) for network in ("network 1", "average")],
    *[
        ((f"imbalance_{first}_seed{seed}", "network 1"), (f"imbalance_{second}_seed{seed}", "network 1"))
        for seed in (0, 1)
        for first, second in (
            ("supervised", "cwcd"),
            ("supervised", "cwcd_adaptive"),
            *(("cwcd", f"cwcd_{band}") for band in ("adaptive", "10mm", "six")),
        )
    ],
    *[
        (
            (f"supervised{mode}_5000_seed{seed}", "network 1"),
            (f"ife_{score.lower()}{mode}_5000_seed{seed}", "network 1"),
        )
        for mode in ("", "_2d")
        for seed in (0, 1)
        for score in SCORES
    ],
    (("supervised_1500_bf16", "network 1"), ("anu_1500_seed0", "network 1")),
    (("supervised_1500_fp32", "network 1"), ("anu_1500_fp32_seed0", "network 1")),
    (("supervised_1500_fp32_seed1", "network 1"), ("anu_1500_fp32_seed1", "network 1")),
    *[
        ((f"supervised_{how}_seed{seed}", "network 1"), (f"anu_{how}_seed{seed}", "network 1"))
        for how in ("gpu_5000", "full_gpu_5000")
        for seed in (0, 1)
    ],
    *[
        ((f"anu_{how}", "network 1"), (f"anu_{how}", f"depth {depth}"))
        for how in (
            "1500_seed0",
            *(f"{kind}_seed{seed}" for kind in ("1500_fp32", "gpu_5000", "full_gpu_5000") for seed in (0, 1)),
        )
        for depth in (2, 1)
    ],
]


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "one"])
    parser.add_argument("--only", nargs="+", help="names of runs")
    parser.add_argument("--gpu", action="store_true", help="all runs on a GPU instead of all on the CPU")
    arguments = parser.parse_args()
    by_name = {run.name: run for run in RUNS}
    unknown = [name for name in arguments.only or () if name not in by_name]
    if unknown:
        parser.error(f"unknown run {unknown[0]!r}; there are {', '.join(by_name)}")
    chosen = [by_name[name] for name in arguments.only or ()]
    chosen = chosen or [run for run in RUNS if (run.device == "cuda") is arguments.gpu]
    if arguments.command == "report":
        report()
    elif arguments.command == "one":
        train_and_evaluate(chosen[0])
    elif not run_all(chosen):
        sys.exit("not all runs were finished; run the same command again")


def run_all(runs: list[Run]) -> bool:
    """Train and evaluate what is not done yet; return whether all is."""
    owed = [run for run in runs if not (WORK / "done" / f"{run.name}.json").is_file()]
    for run in owed:
        prepare(TASKS[run.task], run.configuration)
    done, beside = True, []
    for run in owed:
        print(f"=== {run.name}", flush=True)
        command = [sys.executable, __file__, "one", "--only", run.name]
        process = subprocess.Popen(command, env=environment(run))
        if run.device == "cuda":
            beside.append(process)
        else:
            done &= not process.wait()
    failed = [process for process in beside if process.wait()]
    return done and not failed


if __name__ == "__main__":
    main()
