"""Predicts the validation cases of a fold with every depth of an ANU-Net, compares, and recommends one.

Dice, IoU, precision, recall, parameters, seconds and peak memory are printed and drawn by depth. Depths that are done
are kept when the command is run again. --write makes a model of the recommended depth that needs no --prune_depth.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from nnunet_ext.cli.values import (
    add_checkpoint,
    add_device,
    add_no_progress_bar,
    add_prediction_processes,
    fold,
    number,
)


def _share(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a Dice from 0 to 1, got {text!r}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext prune``."""
    parser.add_argument("-d", metavar="DATASET", help="dataset number or name of the model; or -m")
    parser.add_argument("-c", default="3d_fullres", metavar="CONF", help="configuration (default: %(default)s)")
    parser.add_argument("-p", default="ANUNetPlans", metavar="PLANS", help="(default: %(default)s)")
    parser.add_argument("-tr", default="nnUNetTrainerANUNet", metavar="TRAINER", help="(default: %(default)s)")
    parser.add_argument("-m", type=Path, metavar="MODEL", help="model folder instead of -d, -c, -p and -tr")
    parser.add_argument("-f", type=fold, default=0, metavar="FOLD", help="(default: %(default)s)")
    add_checkpoint(parser)
    parser.add_argument(
        "-i", type=Path, metavar="IMAGES", help="folder of images instead of the fold's validation cases"
    )
    parser.add_argument("--labels", type=Path, metavar="FOLDER", help="with -i: their label maps")
    parser.add_argument("-o", type=Path, metavar="OUTPUT", help="(default: prune in the fold's folder)")
    parser.add_argument(
        "--tolerance",
        type=_share,
        default=0.01,
        metavar="DICE",
        help="what a recommended depth may lose of the mean Dice (default: %(default)s)",
    )
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="write a model of the recommended depth, all folds"
    )
    parser.add_argument("--disable_tta", action="store_true", help="predict without mirroring, at every depth")
    add_device(parser)
    add_prediction_processes(parser)
    parser.add_argument("--overwrite", action="store_true", help="run everything again")
    parser.add_argument(
        "--overwrite_written", action="store_true", help="replace what an earlier prune wrote to the FOLDER of --write"
    )
    add_no_progress_bar(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Compare the depths, and write a model if asked to."""
    from nnunet_ext.evaluation.depths import (
        PICTURE,
        PruneOptions,
        check_nested_model,
        compare_depths,
        format_depths,
        link_validation_cases,
    )
    from nnunet_ext.inference.checks import check_device
    from nnunet_ext.model_sharing.folders import check_plain_name, read_model_json
    from nnunet_ext.model_sharing.pruning import write_pruned

    model = _model(arguments)
    if (arguments.i is None) != (arguments.labels is None):
        raise ValueError("-i and --labels belong together: a folder of images, and one of their label maps")
    check_nested_model(model, arguments.f, arguments.chk)
    check_device(arguments.device)
    output = arguments.o or model / f"fold_{arguments.f}" / "prune"
    _check_written(arguments, model, output)
    images, labels = arguments.i, arguments.labels
    if images is None:
        dataset: Any = read_model_json(model / "plans.json").get("dataset_name")
        check_plain_name(dataset, "dataset_name", model / "plans.json")
        ending = read_model_json(model / "dataset.json")["file_ending"]
        images, labels = link_validation_cases(dataset, arguments.f, output / "validation_cases", ending)
    options = PruneOptions(
        output,
        arguments.tolerance,
        ("--disable_tta",) if arguments.disable_tta else (),
        arguments.device,
        arguments.npp,
        arguments.nps,
        arguments.overwrite,
        not arguments.no_pbar,
    )
    document = compare_depths(model, arguments.f, arguments.chk, images, labels, options)
    print(json.dumps(document, indent=1) if arguments.json else format_depths(document))
    say = sys.stderr if arguments.json else sys.stdout
    print(f"\nWrote {output / PICTURE}; figures, predictions and logs lie beside it.", file=say)
    if arguments.write is None:
        return 0
    if document["recommended"] is None:
        raise ValueError(f"no depth is recommended, so {arguments.write} was not written; compare on other cases")
    depth = document["recommended"]
    folds = write_pruned(model, arguments.write, depth, None, arguments.chk, arguments.overwrite_written)
    target = shlex.quote(str(arguments.write))
    print(f"Wrote {arguments.write}, depth {depth}, fold(s) {' '.join(map(str, folds))}.", file=say)
    print(f"Predict with: nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m {target}", file=say)
    return 0


def _check_written(arguments: argparse.Namespace, model: Path, output: Path) -> None:
    """Refuse a place for the pruned model before hours of predictions."""
    from nnunet_ext.model_sharing.folders import check_target, is_archive

    target = arguments.write
    if target is None:
        return
    if is_archive(target):
        raise ValueError(f"--write makes a folder, got {target}; nnUNetv2_export_model_to_zip packs one")
    for flag, place in (("-o", output), ("-i", arguments.i), ("--labels", arguments.labels)):
        if place is not None and place.resolve().is_relative_to(target.resolve()):
            raise ValueError(f"--write {target} holds {flag} {place}; name another place")
    check_target(model, target, arguments.overwrite_written, "prune", "--overwrite_written")


def _model(arguments: argparse.Namespace) -> Path:
    if (arguments.m is None) == (arguments.d is None):
        raise ValueError("expected either -d DATASET (with -c, -p, -tr) or -m MODEL; pass one of them")
    if arguments.m is not None:
        return Path(arguments.m)
    from nnunet_ext.model_sharing.folders import model_folder

    return model_folder(arguments.d, arguments.tr, arguments.p, arguments.c)
