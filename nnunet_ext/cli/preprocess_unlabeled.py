"""Preprocesses the unlabelled cases of a dataset for any plans, stock ones too, and touches nothing else.

Cases that are up to date are kept, so a run that was stopped continues; changed scans and changed plans are noticed.
With -num_parts and -part_id, many machines share the cases; a run without them afterwards finds all of them done.
"""

from __future__ import annotations

import argparse
import sys

from nnunet_ext.cli.values import add_no_progress_bar, add_parts, add_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext preprocess_unlabeled``."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset number or name")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans (default: %(default)s)")
    parser.add_argument("-c", nargs="+", default=["3d_fullres"], metavar="CONFIGURATION", help="configurations")
    add_processes(parser)
    parser.add_argument("--clean", action="store_true", help="start over instead of continuing")
    add_parts(parser)
    add_no_progress_bar(parser)


def run(arguments: argparse.Namespace) -> int:
    """Preprocess; the exit status is 1 if a case failed."""
    from nnunet_ext.data.failures import format_report
    from nnunet_ext.data.parts import Part
    from nnunet_ext.data.preprocess import preprocess_unlabeled

    part = Part(arguments.part_id, arguments.num_parts)
    of_part = "" if part.is_all else f", {part}"
    failures = []
    try:
        for configuration in arguments.c:
            summary = preprocess_unlabeled(
                arguments.d, arguments.p, configuration, arguments.np, arguments.clean, not arguments.no_pbar, part
            )
            print(
                f"{configuration}{of_part}: {len(summary.done)} preprocessed, {len(summary.kept)} up to date, "
                f"{len(summary.removed)} removed, {len(summary.failures)} failed, in {summary.folder}"
            )
            failures += summary.failures
    finally:  # what failed so far is said also where a later configuration cannot be done at all
        if failures:
            print(format_report(failures), file=sys.stderr)
    return 1 if failures else 0
