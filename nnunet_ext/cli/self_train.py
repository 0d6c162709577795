"""Trains, labels the unlabelled scans by agreement, trains with the certain ones, and so on, by the stock commands.

Cycle 0 trains with the true labels. In each further cycle the networks of the one before label the unlabelled scans,
and all folds are trained with those that are accepted as well. Each cycle is measured on the same validation cases with
true labels. What is there is kept: the same command goes on where it was stopped, and with what was trained elsewhere.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_ext.cli.pseudo_label import add_selection, options_of, selection_words
from nnunet_ext.cli.values import add_device, add_no_progress_bar, add_processes, natural, positive_int

if TYPE_CHECKING:
    from nnunet_ext.pseudo_labels.cycles import Scheme
    from nnunet_ext.pseudo_labels.self_training import Result, SelfTraining


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text) or "__" in text:
        raise argparse.ArgumentTypeError(
            f"expected letters, digits, '-', '.' and single '_' (two make the name of a model), got {text!r}"
        )
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext self_train``."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of the dataset with true labels")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration, e.g. 3d_fullres")
    parser.add_argument(
        "-tr", default="nnUNetTrainerSemi", metavar="TRAINER", help="trainer of cycle 0 (default: %(default)s)"
    )
    parser.add_argument("--student", metavar="TRAINER", help="trainer of the other cycles (default: that of -tr)")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans of all cycles (default: %(default)s)")
    parser.add_argument(
        "-f",
        nargs="+",
        type=natural,
        default=[0, 1, 2, 3, 4],
        metavar="FOLD",
        help="folds that are trained, and whose networks label (default: all five)",
    )
    parser.add_argument(
        "--cycles", type=positive_int, default=2, metavar="N", help="after the first training (default: %(default)s)"
    )
    parser.add_argument(
        "--patience",
        type=positive_int,
        default=1,
        metavar="N",
        help="cycles without a gain after which there are no more (default: %(default)s)",
    )
    parser.add_argument(
        "-o",
        type=positive_int,
        metavar="NUMBER",
        help="number of the dataset of cycle 1 (default: the first free ones)",
    )
    parser.add_argument(
        "-m", nargs="+", type=Path, default=[], metavar="MODEL", help="further models that label, as in pseudo_label"
    )
    parser.add_argument(
        "--warm_start",
        action="store_true",
        help="begin each training with the weights of its fold in the cycle before (-pretrained_weights)",
    )
    add_selection(parser)
    _add_running(parser)


def _add_running(parser: argparse.ArgumentParser) -> None:
    add_device(parser, meaning="device that trains and predicts")
    add_processes(parser)
    parser.add_argument(
        "--name", type=_name, default="self_train", help="folder of report and logs (default: %(default)s)"
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print the commands that are left to do, and reserve the names of their datasets",
    )
    parser.add_argument(
        "--trust_model", action="store_true", help="load the models as nnU-Net does, even if that runs code in them"
    )
    add_no_progress_bar(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train; the exit status is 0 when the cycles are done, 130 when interrupted."""
    from nnunet_ext.data.dataset_json import check_raw_dataset
    from nnunet_ext.inference.checks import check_device
    from nnunet_ext.pseudo_labels.cycle_checks import warnings_of
    from nnunet_ext.pseudo_labels.cycles import Machine, Scheme
    from nnunet_ext.pseudo_labels.run import accepted_by, find_roots
    from nnunet_ext.pseudo_labels.self_training import SelfTraining, find_results

    options = options_of(arguments)  # refused now, not after hours of training
    scheme = Scheme(
        check_raw_dataset(arguments.d).name,
        arguments.c,
        arguments.tr,
        arguments.student or arguments.tr,
        arguments.p,
        tuple(sorted(set(arguments.f))),
        tuple(str(model.absolute()) for model in arguments.m),
        tuple(selection_words(arguments)),
        accepted_by(options),
        arguments.warm_start,
    )
    machine = Machine(arguments.device, arguments.np, arguments.trust_model)
    training = SelfTraining(
        scheme, arguments.cycles, find_roots(), find_results(), arguments.o, machine, arguments.name
    )
    for warning in warnings_of(scheme):
        print(f"WARNING: {warning}", file=sys.stderr)
    if arguments.dry_run:
        _print_commands(training, arguments.patience)
        return 0
    check_device(arguments.device)
    # as an interrupt, so that the command that runs is stopped, too
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        result = training.run(arguments.patience, not arguments.no_pbar)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    finally:
        # what is forked later would take over the handler, and a pool's worker that it stops could outlive the signal
        signal.signal(signal.SIGTERM, before)
    _print(result, scheme, training)
    return 0 if result.complete else 1


def _print_commands(training: SelfTraining, patience: int) -> None:
    left = training.commands(patience)
    before = None
    for step, command in left:
        cycle = step.title.partition(":")[0]
        if cycle != before:
            print(f"# {cycle}{'' if before is None else ', if the cycles before it gain'}")
        before = cycle
        print(command)
    if not left:
        print("# nothing is left to do")


def _print(result: Result, scheme: Scheme, training: SelfTraining) -> None:
    from nnunet_ext.pseudo_labels.cycle_datasets import RECORD
    from nnunet_ext.pseudo_labels.cycle_scores import PICTURE, TABLE, format_cycles
    from nnunet_ext.pseudo_labels.cycles import number_of

    best = result.best
    print(format_cycles(result.cycles))
    print(f"{result.ended}. Best: cycle {best.cycle}, {best.model}.")
    if len(scheme.folds) > 1:
        print(
            "Networks of several folds label together, and each learned from the others' validation cases: gains over "
            "cycle 0 are measured too well. Trust test cases."
        )
    trainer = scheme.trainer if best.cycle == 0 else scheme.student
    folds = " ".join(map(str, scheme.folds))
    print(
        f"Predict with it: nnUNetv2_predict -d {number_of(best.dataset)} -c {scheme.configuration} -tr {trainer} "
        f"-p {scheme.plans} -f {folds} -i FOLDER -o FOLDER"
    )
    print(f"In {training.folder}: {', '.join(n for n in (RECORD, TABLE, PICTURE) if (training.folder / n).is_file())}.")
