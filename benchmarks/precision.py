"""Time of a CPS step on the CPU in float32 against bfloat16 autocast, interleaved.

    python benchmarks/precision.py [--pairs 30] [--small] [--threads N]

The Dice of both after the same training: benchmarks/accuracy.py, runs supervised_1500_fp32 and supervised_1500_bf16.
"""

from __future__ import annotations

import argparse

import torch
from _pairs import interleaved, machine, ratio
from step import Bench

from nnunet_ext.training.precision import cpu_has_bf16_units


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--small", action="store_true", help="features 8 to 64 instead of 32 to 256")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{machine()}; bfloat16 units: {'yes' if cpu_has_bf16_units() else 'no'}")
    sides = {name: Bench(3, arguments.small, name == "bf16").step_cps for name in ("fp32", "bf16")}
    seconds = interleaved(sides, arguments.pairs, warm_up=1)
    print(f"float32 / bfloat16, CPS step, 3 classes: {ratio(seconds['fp32'], seconds['bf16'])}")


if __name__ == "__main__":
    main()
