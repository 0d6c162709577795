"""Types of command line values, with errors that say what was expected."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def positive_int(text: str) -> int:
    """Return a positive integer.

    Raises:
        argparse.ArgumentTypeError: If the text is not one.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Return a positive, finite number.

    Raises:
        argparse.ArgumentTypeError: If the text is not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def natural(text: str) -> int:
    """Return an integer that is not negative.

    Raises:
        argparse.ArgumentTypeError: If the text is not one.
    """
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected an integer of 0 or more, got {text!r}")
    return int(text)


def fold(text: str) -> int | str:
    """Return the number of a fold, or ``all``.

    Raises:
        argparse.ArgumentTypeError: If the text is neither.
    """
    return text if text == "all" else natural(text)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``-m`` of the commands that need a trained model."""
    where = "model folder: nnUNet_results/DATASET/TRAINER__PLANS__CONF"
    parser.add_argument("-m", type=Path, required=True, metavar="MODEL", help=where)


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that draw what a model does with one case."""
    add_model_argument(parser)
    parser.add_argument("-i", type=Path, required=True, metavar="CASE", help="its first channel: CASE_0000.nii.gz")
    parser.add_argument("-o", type=Path, required=True, metavar="PNG", help="picture to write, or a folder for it")
    parser.add_argument("-f", type=fold, default=None, metavar="FOLD", help="fold (default: the first that is there)")
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("-device", choices=("cpu", "cuda", "mps"), default="cpu", help="(default: %(default)s)")
