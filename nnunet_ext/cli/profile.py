"""Predicts a folder of images in several ways, each with the stock command, and prints and draws what each one costs.

Measured are seconds, host and GPU memory, the areas under the curves of GPU memory and CPU utilisation over time and,
with --labels, DSC and NSD. Settings that are done are kept when the command is run again. With --budget, the fastest
setting that loses no more mean DSC than that is named, with its command line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from nnunet_ext.cli.values import (
    add_checkpoint,
    add_device,
    add_no_progress_bar,
    add_prediction_processes,
    fold,
    number,
    positive_int,
)
from nnunet_ext.evaluation.settings import Setting, choose_settings, describe_settings, parse_setting


def _setting(text: str) -> Setting:
    try:
        return parse_setting(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _spacing(text: str) -> float:
    from nnunet_ext.inference.spacing import KEEP

    value = _length(text)
    if value <= 0 and value != KEEP:
        raise argparse.ArgumentTypeError(f"expected a positive spacing in mm, or -1 for the plans' one, got {text!r}")
    return value


def _tolerance(text: str) -> float:
    value = _length(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a tolerance of 0 or more in mm, got {text!r}")
    return value


def _budget(text: str) -> float:
    value = number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a loss of mean DSC from 0 to 1, e.g. 0.005, got {text!r}")
    return value


def _length(text: str) -> float:
    value = number(text)
    if math.isnan(value):
        raise argparse.ArgumentTypeError(f"expected a number of mm, got {text!r}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext profile``."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = describe_settings()
    parser.add_argument(
        "-i", type=Path, required=True, metavar="IMAGES", help="folder of images, as nnU-Net names them"
    )
    parser.add_argument("-o", type=Path, required=True, metavar="OUTPUT", help="folder of the profile")
    parser.add_argument("-m", type=Path, metavar="MODEL", help="model folder; or -d and -c")
    parser.add_argument("-d", metavar="DATASET", help="dataset number or name of the model")
    parser.add_argument("-c", metavar="CONF", help="configuration of the model, e.g. 3d_fullres")
    parser.add_argument("-p", metavar="PLANS", help="(default: nnUNetPlans)")
    parser.add_argument("-tr", metavar="TRAINER", help="(default: nnUNetTrainer)")
    parser.add_argument("-f", nargs="+", type=fold, metavar="FOLD", help="folds (default: all there are)")
    add_checkpoint(parser)
    parser.add_argument("--labels", type=Path, metavar="FOLDER", help="label maps of the images, for DSC and NSD")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="those to run, in this order; see below")
    parser.add_argument(
        "--setting",
        action="append",
        type=_setting,
        default=[],
        metavar='NAME="FLAGS"',
        help="a setting of your own; may be given several times",
    )
    parser.add_argument(
        "--target_spacing", nargs=3, type=_spacing, metavar=("SX", "SY", "SZ"), help="in mm; makes the setting target"
    )
    parser.add_argument("--max_voxels", type=positive_int, metavar="N", help="makes the setting max_voxels")
    parser.add_argument(
        "--tolerance_mm", type=_tolerance, default=2.0, metavar="MM", help="of the NSD (default: %(default)s)"
    )
    parser.add_argument(
        "--budget",
        type=_budget,
        metavar="DSC",
        help="name the fastest setting whose mean DSC is at most so much below that of stock, e.g. 0.005",
    )
    add_device(parser, meaning="device that predicts")
    add_prediction_processes(parser)
    parser.add_argument(
        "--overwrite", action="store_true", help="run everything again, and use a folder that is not empty"
    )
    parser.add_argument(
        "--trust_model",
        action="store_true",
        help="load the model as nnU-Net does, even if that runs code in it",
    )
    add_no_progress_bar(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Profile; the exit status is 1 if a setting failed."""
    settings = choose_settings(arguments.settings, arguments.setting, arguments.target_spacing, arguments.max_voxels)
    model = _model(arguments)

    from nnunet_ext.evaluation.budget import format_trade
    from nnunet_ext.evaluation.inputs import find_inputs
    from nnunet_ext.evaluation.profile import ProfileOptions, failed, profile
    from nnunet_ext.evaluation.record import FILE, PICTURE
    from nnunet_ext.evaluation.runnable import runnable
    from nnunet_ext.evaluation.table import format_profile

    settings, left_out = runnable(settings, arguments.device)
    inputs = find_inputs(model, arguments.i, arguments.labels, arguments.f, arguments.chk)
    options = ProfileOptions(
        arguments.o,
        tolerance_mm=arguments.tolerance_mm,
        device=arguments.device,
        npp=arguments.npp,
        nps=arguments.nps,
        overwrite=arguments.overwrite,
        progress_bar=not arguments.no_pbar,
        trust_model=arguments.trust_model,
        budget=arguments.budget,
    )
    for name, reason in left_out.items():
        print(f"Setting {name} is left out: {reason}", file=sys.stderr)
    document = profile(inputs, settings, options)
    if arguments.json:
        print(json.dumps(document, indent=1))
    else:
        print(format_profile(document))
        if arguments.budget is not None:
            print(f"\n{format_trade(document)}")
        print(f"\nWrote {arguments.o / FILE} and {arguments.o / PICTURE}; predictions and logs lie beside them.")
    failures = failed(document, settings)
    for name, reason in failures.items():
        print(f"Setting {name} failed: {reason}", file=sys.stderr)
    return 1 if failures or (document.get("trade", {"setting": ""})["setting"] is None) else 0


def _model(arguments: argparse.Namespace) -> Path:
    options = {flag: getattr(arguments, flag[1:]) for flag in ("-d", "-c", "-p", "-tr")}
    given = [flag for flag, value in options.items() if value is not None]
    if arguments.m is not None:
        if given:
            raise ValueError(
                f"-m names a model and so does {' '.join(given)}, expected one of them; pass -m, or -d and -c (-p, -tr)"
            )
        return arguments.m
    missing = [flag for flag in ("-d", "-c") if options[flag] is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing, expected -m MODEL, or -d DATASET and -c CONF; pass them")

    from nnunet_ext.model_sharing.folders import model_folder

    return model_folder(arguments.d, arguments.tr or "nnUNetTrainer", arguments.p or "nnUNetPlans", arguments.c)
