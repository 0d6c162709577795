"""Labels unlabelled scans by what several networks agree about, and makes a dataset of the certain ones.

Members are each fold of each model, both networks of CPS, and teacher and student of a mean teacher. The new dataset
lists images where they lie, is validated with true labels alone, and trains with stock nnU-Net. Scans that are done are
kept when the command is run again, also with other thresholds.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ext.cli.values import (
    add_checkpoint,
    add_device,
    add_no_progress_bar,
    fold,
    natural,
    number,
    positive_int,
)

if TYPE_CHECKING:
    from nnunet_ext.pseudo_labels.run import Options, Outcome

_LISTED = 10  # scans to annotate that are printed; all are in the file


def _share(text: str) -> float:
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def _part(text: str) -> float:
    value = _share(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, and 1 at most, got {text!r}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext pseudo_label``."""
    model = "model folders: nnUNet_results/DATASET/TRAINER__PLANS__CONF, or MODEL/fold_0 for one fold of it"
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of the dataset with true labels")
    parser.add_argument("-m", nargs="+", type=Path, required=True, metavar="MODEL", help=model)
    parser.add_argument("-o", required=True, metavar="OUTPUT", help="number or name of the dataset to make")
    parser.add_argument(
        "-i", type=Path, metavar="FOLDER", help="scans to label (default: all unlabelled ones of the dataset)"
    )
    parser.add_argument(
        "-f",
        nargs="+",
        type=fold,
        metavar="FOLD",
        help="folds of the models that are named whole (default: all there are)",
    )
    add_checkpoint(parser)
    add_selection(parser)
    parser.add_argument(
        "--diverse",
        type=positive_int,
        default=1,
        metavar="N",
        help="clusters of alike scans that take turns in the list of scans to annotate (default: no clusters)",
    )
    add_device(parser, meaning="device that predicts")
    parser.add_argument(
        "-npp",
        type=natural,
        default=1,
        metavar="N",
        help="processes for preprocessing, 0 for none of its own (default: %(default)s)",
    )
    parser.add_argument(
        "--trust_model", action="store_true", help="load the models as nnU-Net does, even if that runs code in them"
    )
    add_no_progress_bar(parser)


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide how the networks predict, and which labels are accepted."""
    from nnunet_ext.inference.agreement_scores import SCORES
    from nnunet_ext.pseudo_labels.selection import Rule

    default = Rule()
    parser.add_argument(
        "--score",
        choices=SCORES,
        default=SCORES[0],
        help="Dice with the consensus of the whole scan, or the mean over its slices (default: %(default)s)",
    )
    parser.add_argument(
        "--min_score",
        type=_share,
        default=default.min_score,
        metavar="S",
        help="least agreement of a scan, the mean over its classes, to be accepted (default: %(default)s)",
    )
    parser.add_argument(
        "--min_class_score",
        type=_share,
        default=default.min_class_score,
        metavar="S",
        help="least agreement about each class that is there (default: %(default)s)",
    )
    parser.add_argument(
        "--top", type=_part, metavar="SHARE", help="accept this share of the scans, the best ones, instead"
    )
    parser.add_argument(
        "--uncertain",
        choices=("keep", "ignore"),
        default="keep",
        help="what becomes of uncertain voxels of accepted scans: the consensus, or nnU-Net's ignore label "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--partial", action="store_true", help="accept every scan, and ignore the uncertain voxels of each"
    )
    parser.add_argument(
        "--min_probability",
        type=_share,
        default=0.0,
        metavar="P",
        help="voxels of less mean probability are uncertain, beside those the networks disagree about "
        "(default: %(default)s)",
    )
    _add_prediction(parser)


def _add_prediction(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-step_size",
        type=_part,
        default=0.5,
        metavar="STEP",
        help="of the sliding window, in patches (default: %(default)s)",
    )
    parser.add_argument("--disable_tta", action="store_true", help="predict without mirroring: faster, less accurate")


def selection_words(arguments: argparse.Namespace) -> list[str]:
    """Return the options of :func:`add_selection` that were given, as words of a command."""
    parser = argparse.ArgumentParser(add_help=False)
    add_selection(parser)
    words: list[str] = []
    for action in parser._actions:
        value = getattr(arguments, action.dest)
        if value != action.default:
            words += [action.option_strings[0], *([] if action.nargs == 0 else [str(value)])]
    return words


def options_of(arguments: argparse.Namespace) -> Options:
    """Return what the options of :func:`add_selection` ask for, with device and trust.

    Raises:
        ValueError: If they do not go together.
    """
    from nnunet_ext.pseudo_labels.panel import Settings
    from nnunet_ext.pseudo_labels.run import Options
    from nnunet_ext.pseudo_labels.selection import Rule

    return Options(
        score=arguments.score,
        rule=Rule(arguments.min_score, arguments.min_class_score, arguments.top),
        ignore_uncertain=arguments.uncertain == "ignore",
        partial=arguments.partial,
        min_probability=arguments.min_probability,
        settings=Settings(
            arguments.device, arguments.step_size, not arguments.disable_tta, trusted=arguments.trust_model
        ),
    )


def run(arguments: argparse.Namespace) -> int:
    """Label; the exit status is 1 if a scan failed, and 3 if none was accepted, so that there is no dataset."""
    from nnunet_ext.inference.checks import check_device
    from nnunet_ext.pseudo_labels.run import NONE_ACCEPTED, pseudo_label

    check_device(arguments.device)
    wanted = {"diverse": arguments.diverse, "processes": arguments.npp, "progress_bar": not arguments.no_pbar}
    options = replace(options_of(arguments), **wanted)
    outcome = pseudo_label(arguments.d, arguments.m, arguments.o, options, arguments.i, arguments.f, arguments.chk)
    _print(outcome)
    if outcome.dataset is None:
        return NONE_ACCEPTED
    return 1 if outcome.failures else 0


def _print(outcome: Outcome) -> None:
    from nnunet_ext.pseudo_labels import report

    selection = outcome.selection
    print(f"{len(outcome.members)} networks: {'; '.join(member.name for member in outcome.members)}")
    if outcome.changed:
        print(f"Changed since the cycle before, and predicted anew: {', '.join(outcome.changed)}")
    print(
        f"{len(selection.accepted)} scan(s) accepted, {len(selection.rejected)} rejected, {len(selection.empty)} "
        f"without any class, {len(outcome.failures)} failed; {outcome.kept} of them were predicted before."
    )
    if selection.empty:
        print(f"No network finds anything in: {', '.join(case.name for case in selection.empty)}")
    if outcome.annotate:
        print("Annotate these first:")
        of_several = len({cluster for _, cluster in outcome.annotate}) > 1
        for rank, (case, cluster) in enumerate(outcome.annotate[:_LISTED], 1):
            score = "no class found" if math.isnan(case.score) else f"{case.score:.3f}"
            print(f"  {rank}. {case.name}: {score}{f', cluster {cluster}' if of_several else ''}")
    place = outcome.dataset or outcome.report
    names = (report.SCORES, report.SCORES_PICTURE, report.SHEET, report.ANNOTATE)
    print(f"In {place}: {', '.join(name for name in names if (place / name).is_file())}.")
    if outcome.dataset is not None:
        number = outcome.dataset.name[7:10]
        folds = len(json.loads((outcome.dataset / "splits_final.json").read_text(encoding="utf-8")))
        print(f"Train with it: nnUNetv2_plan_and_preprocess -d {number}, then nnUNetv2_train {number} ...")
        print(
            f"Its folds are 0 to {folds - 1}, validated with true labels alone; of any other fold nnU-Net would draw a "
            "split of its own, pseudo-labels included."
        )
    for name, reason in outcome.failures.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    if outcome.message:
        print(outcome.message, file=sys.stderr)
