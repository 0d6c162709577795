"""The fast export alone: time and memory against nnU-Net's own, for few and for many classes.

    python benchmarks/export.py [--classes 2 14 104] [--pairs 5] [--shape 150 256 256] [--factor 2] [--device cpu]

Logits are those of a network that is sure inside organs and unsure at their borders: ellipsoids, blurred, with noise.
Each side is a process of its own that holds the logits as nnU-Net's worker does (float16) and makes the label map;
first the two label maps are compared. Reading, network and writing are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
WORK = Path(os.environ.get("NNUNET_EXT_BENCH", HERE / "results")) / "export"
ALLOWED = 1e-4  # share of voxels that may differ, by ties


def make_logits(classes: int, shape: tuple[int, ...], seed: int = 0) -> Path:
    """Write logits ``(K, *S)`` float16 of ellipsoids that fill about a third of the volume; return the file."""
    from scipy.ndimage import gaussian_filter

    file = WORK / f"logits_{classes}_{'x'.join(map(str, shape))}.npy"
    if file.is_file():
        return file
    WORK.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    grid = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    radius = 0.75 * classes ** (-1 / 3)
    for label in range(1, classes):
        centre, stretch = rng.uniform(-0.8, 0.8, 3), rng.uniform(0.7, 1.4, 3)
        distance = sum(((g - c) / (radius * s)) ** 2 for g, c, s in zip(grid, centre, stretch, strict=True))
        labels[distance < 1] = label
    temporary = file.with_suffix(".part.npy")
    logits = np.lib.format.open_memmap(temporary, "w+", np.float16, (classes, *shape))
    for label in range(classes):
        soft = gaussian_filter((labels == label).astype(np.float32), 1)
        logits[label] = 12 * soft - 6 + rng.normal(0, 0.3, shape)
    logits.flush()
    temporary.replace(file)
    return file


def one_side(side: str, file: str, factor: float, device: str, save: str) -> None:
    """Make the label map one way, in this process, and print what it took."""
    from functools import partial

    import torch
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    from nnunet_ext.inference.fast_export import label_map, plan_interpolation
    from nnunet_ext.inference.process_memory import peak_memory_mib

    logits = np.load(file)
    shape = tuple(round(n * factor) for n in logits.shape[1:])
    spacing, new_spacing = [factor] * 3, [1.0] * 3
    resampling = partial(resample_data_or_seg_to_shape, is_seg=False, order=1, order_z=0, force_separate_z=None)
    manager = LabelManager({"background": 0} | {f"c{n}": n for n in range(1, len(logits))}, None)
    how = plan_interpolation(resampling, logits.shape[1:], shape, spacing, new_spacing)
    before = psutil.Process().memory_info().rss / 2**20
    start = time.perf_counter()
    if side == "fast":
        found = label_map(logits, shape, how, device=torch.device(device))
    else:
        found = manager.convert_logits_to_segmentation(resampling(logits, shape, spacing, new_spacing))
    seconds = time.perf_counter() - start
    peak = peak_memory_mib()
    if save:
        np.save(save, np.asarray(found).astype(np.uint8))
    print("RESULT" + json.dumps({"seconds": seconds, "peak_mib": peak, "beyond_mib": peak - before}))


def run(side: str, file: Path, arguments: argparse.Namespace, save: str = "") -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--file", str(file), "--save", save]
    command += ["--factor", str(arguments.factor), "--device", arguments.device]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.rpartition("RESULT")[2])


def compare(classes: int, arguments: argparse.Namespace) -> None:
    """Check that both sides agree, then print the ratios."""
    file = make_logits(classes, tuple(arguments.shape))
    maps = [str(WORK / f"{side}.npy") for side in ("stock", "fast")]
    for side, target in zip(("stock", "fast"), maps, strict=True):
        run(side, file, arguments, target)
    stock, fast = (np.load(target) for target in maps)
    differs = float((stock != fast).mean())
    if differs > ALLOWED:
        sys.exit(f"{classes} classes: {differs:.2e} of the voxels differ, expected at most {ALLOWED}")
    seconds, peaks, beyond = [], [], []
    for pair in range(arguments.pairs):
        sides = ("stock", "fast") if pair % 2 else ("fast", "stock")
        found = {side: run(side, file, arguments) for side in sides}
        seconds.append(found["stock"]["seconds"] / found["fast"]["seconds"])
        peaks.append(found["stock"]["peak_mib"] / found["fast"]["peak_mib"])
        beyond.append(found["stock"]["beyond_mib"] / max(found["fast"]["beyond_mib"], 1))
    texts = [f"{np.median(r):.1f} [{min(r):.1f}, {max(r):.1f}]" for r in (seconds, peaks, beyond)]
    print(
        f"| {classes} | {differs:.1e} | {texts[0]} | {texts[1]} | {texts[2]} | {found['stock']['seconds']:.1f} s, "
        f"{found['stock']['peak_mib']:.0f} MiB |",
        flush=True,
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 14, 104])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--shape", type=int, nargs=3, default=[150, 128, 128], help="of the logits")
    parser.add_argument("--factor", type=float, default=2.0, help="finer by this in the result")
    parser.add_argument("--device", default="cpu")
    for name in ("--side", "--file", "--save"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        one_side(arguments.side, arguments.file, arguments.factor, arguments.device, arguments.save)
        return
    sys.path.insert(0, str(HERE))
    from _pairs import machine

    print(machine(), time.strftime("%Y-%m-%d"), f"logits {arguments.shape}, finer by {arguments.factor}", flush=True)
    print(
        "| classes | voxels that differ | stock / fast: time | whole peak memory | memory beyond the logits | stock |"
    )
    print("|---|---|---|---|---|---|")
    for classes in arguments.classes:
        compare(classes, arguments)


if __name__ == "__main__":
    main()
