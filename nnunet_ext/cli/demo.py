"""Generates abdominal-CT-like phantoms, trains with and without unlabelled scans by the stock commands, and compares.

Takes under 15 minutes on two cores. A demo that was stopped continues when it is started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_ext.cli.values import natural, positive_int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext demo``."""
    parser.add_argument(
        "-o", type=Path, default=Path("nnunet_ext_demo"), metavar="FOLDER", help="(default: %(default)s)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="seed of phantoms and trainings (default: %(default)s)")
    parser.add_argument("--epochs", type=positive_int, default=None, help="epochs of both trainings")
    parser.add_argument("--iterations", type=positive_int, default=None, help="iterations an epoch")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the demo in FOLDER and start over; without it, a demo that was stopped continues",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo."""
    from nnunet_ext.demo.run import run_demo

    return run_demo(
        arguments.o,
        seed=arguments.seed,
        epochs=arguments.epochs,
        iterations=arguments.iterations,
        overwrite=arguments.overwrite,
    )
