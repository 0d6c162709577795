"""Prediction of a dense CT, 512 x 512 x 600 voxels of 0.75 x 0.75 x 1.0 mm with 13 organs, by a small network.

    python benchmarks/dense.py prepare                       the phantoms: 12 for training, 3 dense ones for testing
    python benchmarks/dense.py train                         plans, preprocesses and trains
    python benchmarks/dense.py run [--settings NAME ...] [--repeats 3] [--cases 1] [--mirroring] [--air 192]
    python benchmarks/dense.py stages [--mirroring]          where the time of stock goes
    python benchmarks/dense.py report                        tables of what is done

What is done stays: a file has its name only when it is complete. Settings are interleaved, each run is a command of
its own, and stock runs without the plugin. Results: benchmarks/results/dense.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK
import torch
from _dense_phantom import ORGANS, render

from nnunet_ext.evaluation.command import run_command
from nnunet_ext.evaluation.usage import UsageSampler
from nnunet_ext.files import write_json
from nnunet_ext.training.precision import cpu_has_bf16_units

HERE, COMMANDS = Path(__file__).resolve().parent, Path(sys.executable).parent
WORK = Path(os.environ.get("NNUNET_EXT_BENCH", HERE / "results")) / "dense"
NAME = "Dataset920_DensePhantom"
RAW, MODEL = WORK / "raw" / NAME, WORK / "model"
# Trainer, learning rate, nnU-Net's changes of intensities, and the share of patches centred on an organ: without any 13
# organs are told apart in fewer steps, noise, blur and low resolution make the network robust, as in any nnU-Net
# training, and with nnU-Net's own share it learns what the rest of the body looks like.
ROBUST = ("GaussianNoiseTransform", "GaussianBlurTransform", "SimulateLowResolutionTransform")
STAGES_OF_TRAINING = (
    ("nnUNetTrainer_16epochs_200iterations", 5e-3, (), 1.0),
    ("nnUNetTrainer_10epochs_200iterations", 2e-3, ROBUST, 1.0),
    ("nnUNetTrainer_24epochs_200iterations", 2e-3, ROBUST, 0.33),
)
TRAINING, TESTS = 12, 3
# voxels and mm in the order z, y, x: the whole body in both
TRAINING_GRID = ((400, 176, 240), (1.5, 1.5, 1.5))
DENSE_GRID = ((600, 512, 512), (1.0, 0.75, 0.75))
MEASURES = ("seconds", "cpu_seconds", "peak_memory_mb")
STAGE_NAMES = ("reading", "preprocessing", "network", "resampling", "writing")


def prepare(_: argparse.Namespace) -> None:
    """Write the raw dataset."""
    for seed in [*range(100, 100 + TRAINING), *range(TESTS)]:
        kind, grid = ("Tr", TRAINING_GRID) if seed >= 100 else ("Ts", DENSE_GRID)
        targets = [RAW / f"images{kind}/case_{seed:03d}_0000.nii.gz", RAW / f"labels{kind}/case_{seed:03d}.nii.gz"]
        if all(target.is_file() for target in targets):
            continue
        for array, target in zip(render(seed, grid), targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            written = SimpleITK.GetImageFromArray(array)
            written.SetSpacing(grid[1][::-1])
            SimpleITK.WriteImage(written, str(WORK / f"tmp_{target.name}"), True, 1)
            (WORK / f"tmp_{target.name}").replace(target)
        print(targets[0].name, grid[0], flush=True)
    labels = {"background": 0} | {name: n for n, name in enumerate(ORGANS, 1)}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": TRAINING, "file_ending": ".nii.gz"}
    write_json(RAW / "dataset.json", content, indent=1)


TRAIN = """
import json
import sys
import torch
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
name, rate, wanted, share, before = json.loads(sys.argv[1])
def fewer(*args, **kwargs):
    composed = transforms(*args, **kwargs)
    composed.transforms = [
        one
        for one in composed.transforms
        if not isinstance(one, RandomTransform) or type(one.transform).__name__ in wanted
    ]
    return composed
def adam():  # takes many fewer steps than SGD here
    optimizer = torch.optim.Adam(trainer.network.parameters(), rate)
    return optimizer, PolyLRScheduler(optimizer, rate, trainer.num_epochs)
if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = get_trainer_from_args("920", "3d_small", "all", name, "nnUNetPlans", True, torch.device("cpu"))
    transforms, trainer.get_training_transforms = trainer.get_training_transforms, fewer
    trainer.configure_optimizers, trainer.oversample_foreground_percent = adam, share
    maybe_load_checkpoint(trainer, True, False)
    if before and trainer.current_epoch == 0:
        trainer.initialize()
        weights = torch.load(before, map_location="cpu", weights_only=False)["network_weights"]
        trainer.network.load_state_dict(weights)
    trainer.run_training()
"""


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a command."""
    folders = {f"nnUNet_{name}": str(WORK / name) for name in ("raw", "preprocessed", "results")}
    return os.environ | folders | {"nnUNet_compile": "0", "nnUNet_def_n_proc": "2"} | more


def train(_: argparse.Namespace) -> None:
    """Plan, preprocess and train; the model also loads where the plugin is switched off."""
    env = environment(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", nnUNet_n_proc_DA="1")
    env["nnUNet_ext_cpu_bf16"] = str(int(cpu_has_bf16_units()))
    plans_file = WORK / "preprocessed" / NAME / "nnUNetPlans.json"
    if not plans_file.is_file() or "3d_small" not in plans_file.read_text():
        flags = ["-d", "920", "-c", "3d_fullres", "-np", "1", "-npfp", "1"]
        subprocess.run([str(COMMANDS / "nnUNetv2_plan_and_preprocess"), *flags], env=env, check=True)
        plans = json.loads(plans_file.read_text())
        network = plans["configurations"]["3d_fullres"]["architecture"]
        narrow = {"n_stages": 4, "features_per_stage": [8, 16, 32, 64], "n_conv_per_stage": [2] * 4}
        narrow |= {"kernel_sizes": [[3] * 3] * 4, "strides": [[1] * 3] + [[2] * 3] * 3}
        # organs differ by their HU here, which instance normalisation takes out of a patch
        narrow |= {"n_conv_per_stage_decoder": [2] * 3, "norm_op": "torch.nn.modules.batchnorm.BatchNorm3d"}
        network = network | {"arch_kwargs": network["arch_kwargs"] | narrow}
        small = {"inherits_from": "3d_fullres", "batch_size": 10, "batch_dice": True, "patch_size": [32, 32, 32]}
        plans["configurations"]["3d_small"] = small | {"architecture": network}
        write_json(plans_file, plans, indent=1)
    final, before = Path("fold_all", "checkpoint_final.pth"), None
    for name, rate, wanted, share in STAGES_OF_TRAINING:
        trained = WORK / "results" / NAME / f"{name}__nnUNetPlans__3d_small"
        if not (trained / final).is_file():
            # what nnUNetv2_train -device cpu --c does, without the prediction of all training cases at its end
            (WORK / "train.py").write_text(TRAIN)
            arguments = json.dumps([name, rate, wanted, share, before and str(before)])
            subprocess.run([sys.executable, str(WORK / "train.py"), arguments], env=env, check=True)
        before = trained / final
    incomplete = WORK / "tmp_model"
    shutil.copytree(trained, incomplete, dirs_exist_ok=True)
    checkpoint = torch.load(trained / final, map_location="cpu", weights_only=False) | {"trainer_name": "nnUNetTrainer"}
    torch.save(checkpoint, incomplete / final)
    plans = json.loads((incomplete / "plans.json").read_text())
    plans["configurations"]["3d_small"]["patch_size"] = [64, 96, 96]  # batch normalisation sees no difference
    write_json(incomplete / "plans.json", plans)
    shutil.rmtree(MODEL, ignore_errors=True)
    incomplete.replace(MODEL)


STAGES = """
import collections, json, sys, time, torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference import export_prediction
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
seconds = collections.defaultdict(float)
def timed(stage, owner, name):
    function = getattr(owner, name)
    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        seconds[stage] += time.perf_counter() - start
        return result
    setattr(owner, name, wrapper)
if __name__ == "__main__":
    model, source, output, mirroring = sys.argv[1:]
    timed("reading", SimpleITKIO, "read_images")
    timed("preprocessing", DefaultPreprocessor, "run_case_npy")
    timed("network", nnUNetPredictor, "predict_logits_from_preprocessed_data")
    timed("resampling", export_prediction, "convert_predicted_logits_to_segmentation_with_correct_shape")
    timed("writing", SimpleITKIO, "write_seg")
    options = {"use_mirroring": mirroring == "1", "perform_everything_on_device": False, "allow_tqdm": False}
    predictor = nnUNetPredictor(device=torch.device("cpu"), **options)
    predictor.initialize_from_trained_model_folder(model, ("all",))
    torch.set_num_threads(torch.multiprocessing.cpu_count())
    predictor.predict_from_files_sequential(source, output)
    print("SECONDS" + json.dumps({"seconds": seconds}))
"""


def settings(a: argparse.Namespace) -> dict[str, list[str]]:
    """Return the flags of every setting, by the name its results have."""
    fast, spacing = ["--fast_export"], [f"{value:g}" for value in a.target_spacing]
    engine, reduced = ["--engine", "openvino"], ["--precision", "bfloat16"]
    coarse = ["--target_spacing", *(spacing * 3 if len(spacing) == 1 else spacing), *fast]
    spacing *= 3 if len(spacing) == 1 else 1
    named = spacing[0] if len(set(spacing)) == 1 else "_".join(spacing)
    return {
        "stock": [],
        "fast_export": fast,
        f"target_{named}": ["--target_spacing", *spacing, *fast],
        f"max_voxels_{a.max_voxels}": ["--max_voxels", str(a.max_voxels), *fast],
        "forced_paper": ["--forced_spacing", *fast],
        "forced_code": ["--forced_spacing", "1", "1", "1.5", *fast],
        "auto": ["--engine", "auto"],  # the default precision: never to be slower than stock
        "skip": [*fast, "--skip_background"],
        "engine_float32": [*fast, *engine],
        "engine_float32_skip": [*fast, *engine, "--skip_background"],
        "engine_bfloat16": [*fast, *engine, *reduced],
        "engine_bfloat16_step_0.7": [*fast, *engine, *reduced, "-step_size", "0.7"],
        "engine_bfloat16_skip": [*fast, *engine, *reduced, "--skip_background"],
        f"engine_target_{named}": [*coarse, *engine, *reduced, "--skip_background"],
    }


def folders(a: argparse.Namespace) -> tuple[Path, Path]:
    """Return the folder of results and the one with the test scans."""
    named = f"{a.cases}_air_{a.air}" if a.air else str(a.cases)
    source = WORK / "tests" / named
    source.mkdir(parents=True, exist_ok=True)
    for image in sorted((RAW / "imagesTs").glob("*.nii.gz"))[: a.cases]:
        if not (source / image.name).exists():
            if a.air:
                write_with_air(image, source / image.name, a.air)
            else:
                (source / image.name).symlink_to(image.resolve())
    return WORK / "runs" / f"cases_{named}_{'mirroring' if a.mirroring else 'no_mirroring'}", source


def write_with_air(image: Path, target: Path, margin: int) -> None:
    """Write the middle third of the slices of a scan as with a larger field of view: air with noise around it."""
    whole = SimpleITK.ReadImage(str(image))
    slices = whole.GetSize()[2] // 3
    array = SimpleITK.GetArrayFromImage(whole[:, :, slices : 2 * slices])
    wide = np.random.default_rng(0).normal(-1000, 20, (slices, *(n + 2 * margin for n in array.shape[1:])))
    wide = wide.clip(-1024, None).astype(array.dtype)
    wide[:, margin:-margin, margin:-margin] = array
    written = SimpleITK.GetImageFromArray(wide)
    written.SetSpacing(whole.GetSpacing())
    SimpleITK.WriteImage(written, str(WORK / f"tmp_{target.name}"), True, 1)
    (WORK / f"tmp_{target.name}").replace(target)


def measured(command: list[str], env: dict[str, str], log: Path) -> dict[str, float]:
    """Run a command; return its seconds, processor seconds, and the peak memory of its processes together."""
    log.unlink(missing_ok=True)
    with UsageSampler(gpu=False) as sampler:
        seconds = run_command(command, log, env, on_start=sampler.start)
        usage = sampler.stop()
    return {"seconds": seconds, "cpu_seconds": usage.cpu_seconds, "peak_memory_mb": usage.peak_memory_mb}


def dice(found: Path, truth: Path) -> dict[str, float]:
    """Return the Dice of every organ."""
    pair = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) for path in (found, truth)]
    size = len(ORGANS) + 1
    both = (one.ravel().astype(int) * size + other.ravel() for one, other in zip(*pair, strict=True))
    table = sum(np.bincount(part, minlength=size**2) for part in both).reshape(size, size)
    values = 2 * table.diagonal() / (table.sum(0) + table.sum(1)).clip(1)
    return dict(zip(ORGANS, values[1:].tolist(), strict=True))


def voxels_unlike(one: Path, other: Path) -> int | None:
    """Return in how many voxels two label maps differ, ``None`` where there is no other."""
    if not other.is_file():
        return None
    first, second = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) for path in (one, other))
    return int((first != second).sum())


def run(a: argparse.Namespace) -> None:
    """Measure what is not measured yet: every setting, ``repeats`` times, in changing order."""
    results, source = folders(a)
    known, truth = settings(a), RAW / "labelsTs"
    chosen = [name for name in known if not a.settings or any(f"{name}_".startswith(f"{s}_") for s in a.settings)]
    for repeat, name in ((r, n) for r in range(a.repeats) for n in np.random.default_rng(r).permutation(chosen)):
        record, output = results / f"{name}_{repeat}.json", WORK / "predicted" / results.name / name
        if record.is_file():
            continue
        shutil.rmtree(output, ignore_errors=True)
        command = [str(COMMANDS / "nnUNetv2_predict_from_modelfolder"), "-m", str(MODEL), "-f", "all"]
        command += ["-i", str(source), "-o", str(output), "-device", "cpu", "-npp", "1", "-nps", "1"]
        command += ["--disable_progress_bar", *([] if a.mirroring else ["--disable_tta"]), *known[name]]
        env = environment(**({"NNUNET_EXT_DISABLE": "1"} if name == "stock" else {}))
        figures = {"setting": str(name), "repeat": repeat, "date": time.strftime("%Y-%m-%d")}
        figures |= measured(command, env, WORK / f"{name}.log")
        predicted = sorted(output.glob("*.nii.gz"))
        found = {path.name: {} if a.air else dice(path, truth / path.name) for path in predicted}
        stock = output.with_name(a.against)
        figures["voxels_unlike_stock"] = {
            path.name: voxels_unlike(path, stock / path.name) for path in output.glob("*.nii.gz") if stock.is_dir()
        }
        if len(found) != a.cases:
            sys.exit(f"{output} holds {len(found)} of {a.cases} predictions; see {WORK / name}.log")
        reported = [json.loads(path.read_text())["cases"] for path in output.glob("spacing_report.json")]
        write_json(record, figures | {"dice": found, "cases": (reported or [{}])[0]}, indent=1)
        print(f"{name} {repeat}: {figures['seconds']:.0f} s, {figures['peak_memory_mb']:.0f} MB", flush=True)


def stages(a: argparse.Namespace) -> None:
    """Time the stages of stock, one after the other in one process."""
    results, source = folders(a)
    record, output = results / "stages.json", WORK / "predicted" / results.name / "stages"
    if not record.is_file():
        output.mkdir(parents=True, exist_ok=True)
        (WORK / "stages.py").write_text(STAGES)
        command = [sys.executable, str(WORK / "stages.py"), str(MODEL), str(source), str(output), str(int(a.mirroring))]
        figures = measured(command, environment(NNUNET_EXT_DISABLE="1"), WORK / "stages.log")
        figures["cases"] = {"all": json.loads((WORK / "stages.log").read_text().rpartition("SECONDS")[2])}
        write_json(record, figures, indent=1)
    print(record.read_text())


def report(_: argparse.Namespace) -> None:
    """Print what is done as Markdown: ratios to stock are paired by repeat, seconds of stages summed over the cases."""
    for folder in sorted((WORK / "runs").glob("cases_*")):
        runs: dict[str, dict[int, dict]] = {"stock": {}}
        for path in sorted(folder.glob("*_[0-9]*.json")):
            one = json.loads(path.read_text())
            runs.setdefault(one["setting"], {})[one["repeat"]] = one
        summary, organs, parts, patches = {}, {}, {}, {}
        for name, done in runs.items():
            tables = [list(table.values()) for one in done.values() for table in one["dice"].values() if table]
            organs[name] = np.mean(tables or [[np.nan] * len(ORGANS)], 0)
            summary[name] = [str(len(done))]
            for key in MEASURES:
                ratios = [runs["stock"][n][key] / one[key] for n, one in done.items() if n in runs["stock"]] or [np.nan]
                summary[name] += [f"{np.median([one[key] for one in done.values()] or [np.nan]):.0f}"]
                summary[name] += [f"{np.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"]
            mean, stock = organs[name].mean(), organs["stock"].mean()
            summary[name] += [f"{mean:.4f}", f"{mean - stock:+.4f}"]
            unlike = [n for one in done.values() for n in one["voxels_unlike_stock"].values() if n is not None]
            summary[name] += [f"{max(unlike) / np.prod(DENSE_GRID[0]) * 1e6:.1f}" if unlike else "-"]
            skipped = [case for one in done.values() for case in one["cases"].values() if "patches_skipped" in case]
            if skipped:
                shares = [case["patches_skipped"] / case["patches"] for case in skipped]
                patches[name] = [f"{skipped[0]['patches']}", f"{np.mean(shares):.3f}", skipped[0]["engine"]]
            apart = [json.loads(path.read_text()) for path in folder.glob("stages.json") if name == "stock"]
            timed = [one["cases"] for one in [*done.values(), *apart] if one.get("cases")]
            if timed:
                sums = [[sum(case["seconds"][s] for case in cases.values()) for s in STAGE_NAMES] for cases in timed]
                parts[name] = [f"{median:.1f}" for median in np.median(sums, 0)]
        columns = [column for key in MEASURES for column in (key, "stock / setting")]
        print_table(
            folder.name, ["runs", *columns, "mean Dice", "minus stock", "voxels unlike stock, of a million"], summary
        )
        print_table("Dice", list(ORGANS), {name: [f"{value:.4f}" for value in row] for name, row in organs.items()})
        print_table("seconds", list(STAGE_NAMES), parts)
        print_table("windows", ["of a case", "not run", "engine"], patches)


def print_table(title: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|" + "---|" * (1 + len(columns)))
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "train", "run", "stages", "report"])
    parser.add_argument("--settings", nargs="+", default=[], help="names or their beginnings; default: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", type=int, default=1, help="test scans in one command")
    parser.add_argument("--mirroring", action="store_true")
    parser.add_argument(
        "--air", type=int, default=0, metavar="N", help="a third of the slices, with N voxels of air on each side"
    )
    parser.add_argument("--against", default="stock", help="setting that label maps are compared with")
    parser.add_argument(
        "--target_spacing", type=float, nargs="+", default=[1.6], help="mm, one or three, of the setting target_..."
    )
    parser.add_argument("--max_voxels", type=int, default=21_600_000, help="of the setting max_voxels_...")
    a = parser.parse_args()
    {"prepare": prepare, "train": train, "run": run, "stages": stages, "report": report}[a.what](a)


if __name__ == "__main__":
    main()
