"""Ratios from interleaved measurements: both sides in one process, median and its 95 % interval."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm


def interleaved(
    sides: dict[str, Callable[[], None]], repeats: int, warm_up: int = 2, clock: Callable[[], float] | None = None
) -> dict[str, np.ndarray]:
    """Time every side ``repeats`` times, in turn and in changing order.

    Args:
        sides: What to time, by name; each call does one step.
        repeats: Rounds.
        warm_up: Rounds before, not counted.
        clock: Tells seconds; None for those of the wall.

    Returns:
        Seconds of each round, by name.
    """
    now = clock or _now
    rng = np.random.default_rng(0)
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in tqdm(range(repeats + warm_up), "rounds"):
        for name in rng.permutation(names):
            start = now()
            sides[name]()
            if i >= warm_up:
                seconds[name].append(now() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> str:
    """Return the median of the paired ratios with its 95 % bootstrap interval."""
    ratios = numerator / denominator
    rng = np.random.default_rng(0)
    medians = np.median(ratios[rng.integers(0, len(ratios), (10000, len(ratios)))], 1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return f"{np.median(ratios):.3f} [{low:.3f}, {high:.3f}] ({len(ratios)} pairs)"


def machine() -> str:
    """Return device, versions and threads, for the head of a table."""

    from importlib.metadata import version

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name()
    return (
        f"{device}, {torch.get_num_threads()} thread(s), Python {platform.python_version()}, torch "
        f"{torch.__version__}, nnunetv2 {version('nnunetv2')}"
    )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"
