"""Types of command line values, with errors that say what was expected, and the options that commands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def positive_int(text: str) -> int:
    """Return a positive integer.

    Raises:
        argparse.ArgumentTypeError: If the text is not one.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """Return a positive, finite number.

    Raises:
        argparse.ArgumentTypeError: If the text is not one.
    """
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def number(text: str) -> float:
    """Return a number; not a number (NaN) if the text is none, or infinite."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def natural(text: str) -> int:
    """Return an integer that is not negative.

    Raises:
        argparse.ArgumentTypeError: If the text is not one.
    """
    if not text.isdecimal():
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
    meaning = "model folder: nnUNet_results/DATASET/TRAINER__PLANS__CONF"
    parser.add_argument("-m", type=Path, required=True, metavar="MODEL", help=meaning)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add ``-chk``."""
    parser.add_argument("-chk", default="checkpoint_final.pth", metavar="FILE", help="(default: %(default)s)")


def add_device(parser: argparse.ArgumentParser, default: str = "cuda", meaning: str = "") -> None:
    """Add ``-device``.

    Args:
        parser: Parser of a command.
        default: Device that is used where none is given.
        meaning: Help text before the default.
    """
    text = f"{meaning} (default: %(default)s)".strip()
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default=default, help=text)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add ``-np``."""
    parser.add_argument("-np", type=positive_int, default=4, metavar="N", help="processes (default: %(default)s)")


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Add ``-num_parts`` and ``-part_id``, as the predict commands of nnU-Net have them."""
    parser.add_argument(
        "-num_parts", type=positive_int, default=1, metavar="N", help="how many machines share the cases (default: 1)"
    )
    parser.add_argument(
        "-part_id", type=natural, default=0, metavar="I", help="which of them this is, from 0 on (default: 0)"
    )


def add_prediction_processes(parser: argparse.ArgumentParser) -> None:
    """Add ``-npp`` and ``-nps``, as the predict commands of nnU-Net have them."""
    for flag, work in (("-npp", "preprocessing"), ("-nps", "resampling and writing")):
        parser.add_argument(
            flag, type=positive_int, default=3, metavar="N", help=f"processes for {work} (default: %(default)s)"
        )


def add_no_progress_bar(parser: argparse.ArgumentParser) -> None:
    """Add ``--no_pbar``."""
    parser.add_argument("--no_pbar", action="store_true", help="no progress bar")


def add_picture_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that draw what a model does with one case."""
    add_model_argument(parser)
    parser.add_argument("-i", type=Path, required=True, metavar="CASE", help="its first channel: CASE_0000.nii.gz")
    parser.add_argument("-o", type=Path, required=True, metavar="PNG", help="picture to write, or a folder for it")
    parser.add_argument("-f", type=fold, default=None, metavar="FOLD", help="fold (default: the first that is there)")
    add_checkpoint(parser)
    add_device(parser, "cpu")
