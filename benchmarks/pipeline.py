"""How well the stages of a prediction overlap: seconds of a whole run against those of its slowest stage.

    python benchmarks/pipeline.py [--cases 30] [--second 0.3]

Stages that only sleep stand for preparing (in a process of its own), network and export (in a thread), in the order in
which a run has them; what is measured is what the run itself adds. Large cases: of those two may be on each side of the
network; small ones flow. Ends with status 1 where a run takes more than 1.1 times its slowest stage, the first case's
way through the other stages taken apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import nnunet_ext.inference.prediction_run as prediction_run
from nnunet_ext.inference.case import Prepared
from nnunet_ext.inference.prediction_run import Run, Task
from nnunet_ext.inference.writing import Exported

ALLOWED = 1.1
STAGES = ("prepare", "network", "export")
SETTINGS = {  # seconds of each stage, in parts of --second
    "network slowest": (0.5, 1.0, 0.5),
    "preparing slowest": (1.0, 0.5, 0.3),
    "export slowest": (0.3, 0.5, 1.0),
    "all alike": (1.0, 1.0, 1.0),
}


class OneHead:
    """Plans of which only the number of classes is asked for."""

    def get_label_manager(self, _: Any) -> SimpleNamespace:
        """Return labels of one class."""
        return SimpleNamespace(num_segmentation_heads=1)


def prepare(source: tuple[Any, ...], *_: Any) -> Prepared:
    """Sleep as long as the source says."""
    time.sleep(source[0])
    return Prepared(np.zeros((1, 8, 8, 8), np.float32), {}, None, [], {"seconds": {}, "peak_memory_mib": {}})


class Sleeping:
    """A predictor whose network and export sleep."""

    allow_tqdm, export_device, rule, prepare_case = False, torch.device("cpu"), None, staticmethod(prepare)
    model_of_cases = SimpleNamespace(plans=OneHead(), dataset_json={})

    def __init__(self, network: float, export: float) -> None:
        self.dataset_json = {"file_ending": ".nii.gz"}
        self.network, self.seconds_of_export, self.first = network, export, 0.0

    def predict_logits(self, *_: Any) -> torch.Tensor:
        """Sleep; the clock of the run begins with the first case, when the worker has started."""
        self.first = self.first or time.perf_counter()
        time.sleep(self.network)
        return torch.zeros((1, 8, 8, 8), dtype=torch.half)

    def exports_fast(self, *_: Any) -> bool:
        """Return that every case is."""
        return True

    def say_spacing(self, *_: Any) -> None:
        """Say nothing."""

    say_agreement = say_spacing

    def export(self, *_: Any) -> Exported:
        """Sleep."""
        time.sleep(self.seconds_of_export)
        return Exported(None, None)


def measure(seconds: tuple[float, float, float], cases: int, share: float) -> float:
    """Return the seconds of a run from its first network to its end, without the way of the last case out of it."""
    predictor: Any = Sleeping(*seconds[1:])
    prediction_run.export, prediction_run.SHARE = predictor.export, share
    tasks = {f"case_{number}": Task((seconds[0],), None, None) for number in range(cases)}
    run = Run(predictor, tasks, False, None)
    run.work(list(tasks), 1, 1)
    if run.failures:
        sys.exit(f"failed: {run.failures}")
    return time.perf_counter() - predictor.first


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=30)
    parser.add_argument("--second", type=float, default=0.3, help="seconds of the slowest stage of a case")
    a = parser.parse_args()
    print("| stages (prepare, network, export) | cases | one after the other | side by side | slowest stage | ratio |")
    print("|---|---|---|---|---|---|")
    worst = 0.0
    both = (("large", 0.0), ("small", 0.5))
    for (name, parts), (size, share) in [(s, z) for s in SETTINGS.items() for z in both]:
        prepare_, network, export = (part * a.second for part in parts)
        slowest = max(prepare_, network, export) * a.cases
        wall = measure((prepare_, network, export), a.cases, share)
        apart = (
            network + export if prepare_ * a.cases == slowest else export if network * a.cases == slowest else network
        )
        ratio = (wall - apart) / slowest
        worst = max(worst, ratio)
        after = (prepare_ + network + export) * a.cases
        print(
            f"| {name} | {a.cases} {size} | {after:.1f} s | {wall:.1f} s | {slowest:.1f} s | {ratio:.2f} |", flush=True
        )
    sys.exit(worst > ALLOWED)


if __name__ == "__main__":
    main()
