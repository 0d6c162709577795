"""Makes whole segmentations of scans of which a few slices are annotated, by a model of nnUNetTrainerPropagation.

A label map is called as its case. What is not annotated has the ignore label of the model's dataset, or --slices names
what is. Annotated slices come back unchanged. Scans that are done are kept when the command is run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_ext.cli.values import (
    add_checkpoint,
    add_device,
    add_model_argument,
    add_no_progress_bar,
    fold,
    natural,
    positive_int,
)

if TYPE_CHECKING:
    import numpy as np

    from nnunet_ext.inference.case import Model
    from nnunet_ext.inference.sparse_case import SparseCase
    from nnunet_ext.propagation.driver import Propagated

SUGGESTIONS = "suggestions.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext propagate``."""
    add_model_argument(parser)
    parser.add_argument(
        "-i", type=Path, required=True, metavar="IMAGES", help="folder of images, or one: CASE_0000.nii.gz"
    )
    parser.add_argument(
        "-l", type=Path, required=True, metavar="LABELS", help="folder of sparse label maps CASE.nii.gz, or one of them"
    )
    parser.add_argument("-o", type=Path, required=True, metavar="OUTPUT", help="folder to write to")
    parser.add_argument(
        "--slices",
        type=positive_int,
        nargs="+",
        default=[],
        metavar="N",
        help="annotated slices, from 1 in the order of the file, as ITK-SNAP shows them (default: those without the "
        "ignore label)",
    )
    parser.add_argument(
        "--suggest",
        type=positive_int,
        metavar="K",
        help=f"name the K slices of each scan to annotate next, and write them to {SUGGESTIONS}",
    )
    parser.add_argument("--figure", action="store_true", help="draw slices of each scan to CASE.png")
    parser.add_argument(
        "--weighting",
        choices=("mean", "distance"),
        default="mean",
        help="how the passes from below and above count: alike, or the nearer reference more (default: %(default)s)",
    )
    parser.add_argument(
        "-f", nargs="+", type=fold, metavar="FOLD", help="folds whose networks are averaged (default: all there are)"
    )
    add_checkpoint(parser)
    add_device(parser)
    for flag, work in (("-npp", "preprocessing"), ("-nps", "resampling and writing")):
        parser.add_argument(
            flag,
            type=natural,
            default=1,
            metavar="N",
            help=f"processes for {work}, 0 for none of its own (default: %(default)s)",
        )
    parser.add_argument("--overwrite", action="store_true", help="make scans again that are done")
    parser.add_argument(
        "--trust_model", action="store_true", help="load the model as nnU-Net does, even if that runs code in it"
    )
    add_no_progress_bar(parser)


def run(arguments: argparse.Namespace) -> int:
    """Propagate, and say what to annotate next."""
    import torch

    from nnunet_ext import files
    from nnunet_ext.inference.annotation import REPORT, Annotator, Options, annotate
    from nnunet_ext.inference.checks import check_device
    from nnunet_ext.inference.propagation_model import open_model
    from nnunet_ext.propagation.driver import PropagationSettings

    if arguments.o.exists() and not arguments.o.is_dir():
        raise FileExistsError(f"-o {arguments.o} is a file, expected a folder; name another place")
    check_device(arguments.device)
    model = open_model(arguments.m, arguments.f, arguments.chk, arguments.trust_model)
    options = Options(
        arguments.i,
        arguments.l,
        arguments.o,
        tuple(sorted(set(arguments.slices))),
        arguments.suggest or 0,
        PropagationSettings(weighting=arguments.weighting),
        arguments.overwrite,
        arguments.npp,
        arguments.nps,
        not arguments.no_pbar,
    )
    drawn = _Drawing(arguments.o, model.model, options.suggestions or 3) if arguments.figure else None
    records, failed = annotate(Annotator(model, torch.device(arguments.device), options, drawn))
    if records:
        print(f"{len(records)} label map(s) are in {arguments.o}, and {REPORT}.json about them.")
    if arguments.suggest and records:
        files.write_json(arguments.o / SUGGESTIONS, _suggested(records, arguments.suggest))
        print(f"Wrote {arguments.o / SUGGESTIONS}")
    without = [case for case in records if arguments.figure and not (arguments.o / f"{case}.png").is_file()]
    if without:
        print(f"No picture of {', '.join(without)}, done before or not drawn; --overwrite makes them again.")
    if failed is not None:
        raise failed
    return 0


def _suggested(records: dict[str, dict[str, Any]], number: int) -> dict[str, list[dict[str, float]]]:
    """Print the slices to annotate next, and return them."""
    found = {case: record["propagation"].get("suggestions", [])[:number] for case, record in records.items()}
    print("Annotate next, where the passes from both sides disagree most:")
    for case, slices in found.items():
        words = ", ".join(f"{one['slice']} (agreement {one['agreement']:.3f})" for one in slices)
        asked = records[case]["propagation"].get("suggestions_asked", number)  # by the call that made it
        more = "; more with --overwrite" if len(slices) == asked < number else ""
        print(f"  {case}: slice {words}{more}" if words else f"  {case}: no slice is left")
    return found


class _Drawing:
    """Draws each case; where that fails, its result is written all the same."""

    def __init__(self, folder: Path, model: Model, number: int) -> None:
        self.folder, self.model, self.number = folder, model, number

    def __call__(self, case: SparseCase, image: np.ndarray, result: Propagated) -> None:
        from nnunet_ext.figures.propagation import draw_propagation, strip_of
        from nnunet_ext.inference.sparse_case import class_names

        target = self.folder / f"{case.case}.png"
        try:
            strip = strip_of(case, image, result, self.model.plans.transpose_forward, self.number)
            draw_propagation(target, strip, class_names(self.model))
        except Exception as error:
            print(f"{target} could not be drawn: {error or type(error).__name__}")
        else:
            print(f"Wrote {target}")
