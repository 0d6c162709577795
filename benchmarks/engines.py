"""Time of one window by engine and precision, interleaved with stock torch in float32 (autocast on GPUs).

    python benchmarks/engines.py run results.jsonl [--network 3d|2d|default] [--size 64 96 96] [--threads 1]
        [--device cpu|cuda] [--batch 1] [--repeats 7]
    python benchmarks/engines.py report results.jsonl

Each engine's line is written as soon as it is known. Ratios are medians of the rounds' with [least, most].
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _pairs import interleaved, machine
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_ext.engines.choice import check
from nnunet_ext.engines.engine import COMPILE, ENGINES, PRECISIONS, TORCH, ConversionError, EngineChoice
from nnunet_ext.engines.make import make_engine

NETWORKS = {  # features, axes, classes, size
    "3d": ([8, 16, 32, 64], 3, 14, [64, 96, 96]),
    "2d": ([32, 64, 128, 256, 512, 512, 512], 2, 3, [256, 256]),
    "default": ([32, 64, 128, 256, 320, 320], 3, 14, [128, 128, 128]),
}


def build(name: str) -> nn.Module:
    """Return a network with random weights."""
    features, axes, classes, _ = NETWORKS[name]
    levels = len(features)
    torch.manual_seed(0)
    return PlainConvUNet(
        1,
        levels,
        features,
        getattr(nn, f"Conv{axes}d"),
        3,
        [1] + [2] * (levels - 1),
        [2] * levels,
        classes,
        [2] * (levels - 1),
        conv_bias=True,
        norm_op=getattr(nn, f"InstanceNorm{axes}d"),
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    ).eval()


def measure(arguments: argparse.Namespace, choice: EngineChoice, network: nn.Module, windows: torch.Tensor) -> dict:
    """Return what one engine costs and gives, against stock."""
    device, window = torch.device(arguments.device), tuple(windows.shape[1:])
    stock = make_engine(EngineChoice(TORCH, "float16" if device.type == "cuda" else "float32"), network, window, device)
    exact = make_engine(EngineChoice(TORCH, "float32"), network, window, device)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(choice, network, window, device, Path(folder), len(windows))
        next(iter(engine.run([windows])))
        seconds_to_start = time.perf_counter() - start
        sides: dict[str, Callable[[], None]] = {
            name: _steps(one, windows) for name, one in (("stock", stock), ("own", engine))
        }
        seconds = interleaved(sides, arguments.repeats, 1)
    ratios = seconds["stock"] / seconds["own"]
    (found,), (expected,) = ([logits.float() for logits in one.run([windows])] for one in (engine, exact))
    saved = float(np.median(seconds["stock"] - seconds["own"])) / (_BATCHES * len(windows))
    return {
        "ratio": [float(np.median(ratios)), float(ratios.min()), float(ratios.max())],
        "stock_seconds": float(np.median(seconds["stock"])) / (_BATCHES * len(windows)),
        "start_seconds": seconds_to_start,
        "break_even_windows": seconds_to_start / saved if saved > 0 else None,
        "error": float((found - expected).norm() / expected.norm()),
        "other_winners": float((found.argmax(1) != expected.argmax(1)).float().mean()),
    }


_BATCHES = 4  # of each step: engines work ahead


def _steps(engine: Any, windows: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        for _ in engine.run(windows for _ in range(_BATCHES)):
            pass

    return step


def run(arguments: argparse.Namespace) -> None:
    """Measure all engines and precisions that there are."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    network = build(arguments.network).to(device)
    size = arguments.size or NETWORKS[arguments.network][3]
    windows = torch.randn(arguments.batch, 1, *size, generator=torch.Generator().manual_seed(1)).to(device)
    for engine in arguments.engines:
        for precision in PRECISIONS:
            line = {"engine": engine, "precision": precision, "network": arguments.network, "size": list(size)}
            line |= {"batch": arguments.batch, "machine": machine(), "threads": torch.get_num_threads()}
            try:
                check(engine, precision, device)
                line |= measure(arguments, EngineChoice(engine, precision), network, windows)
            except (ConversionError, ValueError) as error:
                line["left_out"] = str(error)
            with arguments.results.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line)


def report(arguments: argparse.Namespace) -> None:
    """Print a table."""
    lines = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    print("| network | batch | threads | engine | stock / engine | start, s | break-even, windows | error | others |")
    print("|---|---|---|---|---|---|---|---|---|")
    for line in lines:
        head = f"| {line['network']} {' x '.join(map(str, line['size']))} | {line['batch']} | {line['threads']} "
        head += f"| {line['engine']} {line['precision']} | "
        if "left_out" in line:
            print(f"{head}{line['left_out']} | | | | |")
            continue
        middle, least, most = line["ratio"]
        even = line["break_even_windows"]
        print(
            f"{head}{middle:.2f} [{least:.2f}, {most:.2f}] | {line['start_seconds']:.1f} | "
            f"{'never' if even is None else f'{even:.0f}'} | {line['error']:.1e} | {line['other_winners']:.1e} |"
        )


def main() -> None:
    """Measure or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    parser.add_argument("results", type=Path)
    parser.add_argument("--network", choices=NETWORKS, default="3d")
    parser.add_argument("--size", type=int, nargs="+", default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--engines", nargs="+", choices=ENGINES[1:], default=[TORCH, COMPILE, ENGINES[-1]])
    arguments = parser.parse_args()
    (run if arguments.command == "run" else report)(arguments)


if __name__ == "__main__":
    main()
