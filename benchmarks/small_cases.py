"""Prediction of a hundred small cases (hippocampi, 35 x 50 x 35 voxels): start-up and what every case costs beside it.

    python benchmarks/small_cases.py run [--settings NAME ...] [--repeats 3] [--cases 100]
    python benchmarks/small_cases.py report

Model and images are those of benchmarks/accuracy.py (task hippocampus5; others: --model, --images). Each run
is a command of its own, settings are interleaved, stock runs without the plugin. Two figures of each run: seconds of
the whole command, and seconds until its first label map is there. What is done stays. Results:
benchmarks/results/small_cases.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accuracy import WORK as OF_ACCURACY
from dense import print_table, voxels_unlike

from nnunet_ext.evaluation.command import run_command
from nnunet_ext.files import whole, write_json

HERE, COMMANDS = Path(__file__).resolve().parent, Path(sys.executable).parent
WORK = Path(os.environ.get("NNUNET_EXT_BENCH", HERE / "results")) / "small_cases"
IMAGES = OF_ACCURACY / "raw" / "Dataset954_HippocampusFive" / "imagesUnlabeled"
MODEL = OF_ACCURACY / "runs" / "hippocampus5_supervised_seed0" / "Dataset954_HippocampusFive"
ONE_EACH = ["-npp", "1", "-nps", "1"]
SETTINGS = {
    "stock": [],
    "fast_export": ["--fast_export"],
    "openvino_bfloat16": ["--fast_export", "--engine", "openvino", "--precision", "bfloat16"],
    "auto": ["--fast_export", "--engine", "auto"],
}
MEASURES = ("seconds", "first")


def model_for_stock(source: Path) -> Path:
    """Return a copy of a trained model that loads without the plugin."""
    copy = WORK / "model"
    if not copy.is_dir():
        with whole(copy) as folder:
            shutil.copytree(source, folder)
            checkpoint_file = folder / "fold_all" / "checkpoint_final.pth"
            checkpoint = torch.load(checkpoint_file, map_location="cpu", weights_only=False)
            torch.save(checkpoint | {"trainer_name": "nnUNetTrainer"}, checkpoint_file)
    return copy


def run(a: argparse.Namespace) -> None:
    """Measure what is not measured yet."""
    source = WORK / "images" / str(a.cases)
    source.mkdir(parents=True, exist_ok=True)
    for image in sorted(a.images.glob("*_0000.nii.gz"))[: a.cases]:
        if not (source / image.name).exists():
            (source / image.name).symlink_to(image.resolve())
    model = model_for_stock(a.model or next(MODEL.glob("nnUNetTrainer*")))
    kinds = {
        f"{name}{suffix}": flags + more
        for suffix, more in (("", []), ("_one_process", ONE_EACH))
        for name, flags in SETTINGS.items()
    }
    chosen = a.settings or ["stock", "fast_export", "stock_one_process", "fast_export_one_process"]
    for repeat, name in ((r, n) for r in range(a.repeats) for n in np.random.default_rng(r).permutation(chosen)):
        record, output = WORK / "runs" / f"cases_{a.cases}" / f"{name}_{repeat}.json", WORK / "predicted" / str(name)
        if record.is_file():
            continue
        shutil.rmtree(output, ignore_errors=True)
        command = [
            str(COMMANDS / "nnUNetv2_predict_from_modelfolder"),
            "-m",
            str(model),
            "-f",
            "all",
            "-i",
            str(source),
        ]
        command += ["-o", str(output), "-device", "cpu", "--disable_progress_bar", *kinds[name]]
        environment = {"NNUNET_EXT_DISABLE": "1"} if name.startswith("stock") else {}
        log, began = WORK / f"{name}.log", time.time()
        log.unlink(missing_ok=True)
        seconds = run_command(command, log, environment)
        written = sorted(path.stat().st_mtime for path in output.glob("*.nii.gz"))
        if len(written) != a.cases:
            sys.exit(f"{output} holds {len(written)} of {a.cases} predictions; see {log}")
        figures = {"setting": str(name), "repeat": repeat, "date": time.strftime("%Y-%m-%d"), "seconds": seconds}
        figures |= {"first": written[0] - began, "voxels_unlike_stock": unlike(output)}
        write_json(record, figures, indent=1)
        print(f"{name} {repeat}: {seconds:.1f} s, the first after {figures['first']:.1f} s", flush=True)


def unlike(output: Path) -> int | None:
    """Return in how many voxels label maps differ from stock's, ``None`` where stock has not run."""
    stock = output.with_name("stock" if (output.with_name("stock")).is_dir() else "stock_one_process")
    counts = [voxels_unlike(path, stock / path.name) for path in output.glob("*.nii.gz")]
    return None if None in counts else sum(count or 0 for count in counts)


def report(_: argparse.Namespace) -> None:
    """Print what is done as Markdown, ratios paired by repeat."""
    for folder in sorted((WORK / "runs").glob("cases_*")):
        runs: dict[str, dict[int, dict]] = {}
        for path in sorted(folder.glob("*.json")):
            one = json.loads(path.read_text())
            runs.setdefault(one["setting"], {})[one["repeat"]] = one
        rows = {}
        for name, done in runs.items():
            stock = runs.get("stock_one_process" if name.endswith("_one_process") else "stock", {})
            rows[name] = [str(len(done))]
            for key in MEASURES:
                ratios = [stock[n][key] / one[key] for n, one in done.items() if n in stock] or [np.nan]
                rows[name] += [f"{np.median([one[key] for one in done.values()]):.1f}"]
                rows[name] += [f"{np.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"]
            rows[name] += [str(max((one["voxels_unlike_stock"] or 0) for one in done.values()))]
        columns = [column for key in MEASURES for column in (key, "stock / setting")]
        print_table(folder.name, ["runs", *columns, "voxels unlike stock"], rows)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "report"])
    names = [f"{name}{suffix}" for name in SETTINGS for suffix in ("", "_one_process")]
    parser.add_argument("--settings", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--model", type=Path, help="folder of a model trained with -f all")
    parser.add_argument("--images", type=Path, default=IMAGES)
    a = parser.parse_args()
    {"run": run, "report": report}[a.what](a)


if __name__ == "__main__":
    main()
