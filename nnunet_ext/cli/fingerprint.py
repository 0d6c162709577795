"""Draws the intensities, spacings and shapes of labelled and unlabelled scans, and names those unlike the others.

Shows whether the unlabelled scans match the labelled ones, and which clipping window each group of voxels would give.
Scans that were looked at before (by GlobalIntensityFingerprintExtractor or this command) are not read again; the
fingerprint itself is not touched. With --only_cases it looks at the scans and draws nothing: so that many machines can
share them (-num_parts, -part_id) before nnUNetv2_extract_fingerprint -fpe GlobalIntensityFingerprintExtractor.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nnunet_ext.cli.values import add_no_progress_bar, add_parts, add_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext fingerprint``."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset number or name")
    parser.add_argument(
        "-o", type=Path, default=None, metavar="PNG", help="(default: fingerprint.png in nnUNet_preprocessed/DATASET)"
    )
    parser.add_argument(
        "--only_cases", action="store_true", help="keep what a fingerprint needs of each scan, and draw nothing"
    )
    add_parts(parser)
    add_processes(parser)
    add_no_progress_bar(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw, or only look at the scans; the exit status is 1 if a case failed."""
    if arguments.only_cases:
        return _keep_cases(arguments)
    if arguments.num_parts > 1 or arguments.part_id:
        raise ValueError(
            "-num_parts and -part_id divide the reading of the scans, but a picture needs all; add --only_cases, and "
            "draw once all parts are done"
        )
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    from nnunet_ext.data.dataset_json import channel_names, check_raw_dataset
    from nnunet_ext.data.failures import LABELLED, UNLABELLED, format_report
    from nnunet_ext.figures.fingerprint import Group, draw_fingerprint
    from nnunet_ext.files import sweep
    from nnunet_ext.fingerprints.case_statistics import CaseStatistics, merge
    from nnunet_ext.fingerprints.cases import case_table, read_cases, without_distributions
    from nnunet_ext.fingerprints.outliers import find_outliers, format_outliers

    name = maybe_convert_to_dataset_name(arguments.d)
    table = case_table(name, get_filenames_of_train_images_and_targets(str(check_raw_dataset(name))))
    with table.alone():
        read_cases(table, arguments.np, show_progress_bar=not arguments.no_pbar)
    cases: dict[str, dict[str, CaseStatistics]] = {LABELLED: {}, UNLABELLED: {}}
    groups = []
    for kind in (LABELLED, UNLABELLED):
        for case_name, case in table.kept_cases(kind):
            cases[kind][case_name] = without_distributions(case)
        groups.append(Group(kind, merge(case.images for _, case in table.kept_cases(kind))))
    groups.append(Group("foreground", merge(case.foreground or [] for _, case in table.kept_cases(LABELLED))))
    if not any(cases.values()):
        print(format_report(table.failures), file=sys.stderr)
        raise RuntimeError(f"no case of {name} could be read")
    target = arguments.o or table.folder.parent / "fingerprint.png"
    sweep(target.parent)
    channels = channel_names(table.dataset_json)
    draw_fingerprint(target, name, channels, groups, {kind: list(members.values()) for kind, members in cases.items()})
    for group in groups:
        for channel, statistics in zip(channels, group.channels, strict=False):
            if statistics.count:
                low, median, high = statistics.percentiles((0.5, 50.0, 99.5))
                print(f"{group.title:<11} channel {channel}: clipping window {low:g} to {high:g}, median {median:g}")
    outliers = format_outliers(find_outliers(cases[LABELLED], cases[UNLABELLED], table.dataset_json))
    print(outliers or "No scan is unlike the others.")
    print(f"Wrote {target}")
    if table.failures:
        print(format_report(table.failures), file=sys.stderr)
    return 1 if table.failures else 0


def _keep_cases(arguments: argparse.Namespace) -> int:
    if arguments.o is not None:
        raise ValueError(f"-o names a picture ({arguments.o}), but --only_cases draws none; leave one of them out")

    from nnunet_ext.data.failures import format_report
    from nnunet_ext.data.parts import Part
    from nnunet_ext.planners.global_fingerprint import GlobalIntensityFingerprintExtractor

    part = Part(arguments.part_id, arguments.num_parts)
    extractor = GlobalIntensityFingerprintExtractor(arguments.d, arguments.np)
    extractor.show_progress_bar = not arguments.no_pbar
    table, number_read = extractor.keep_cases(part)
    counts = f"{number_read} case(s) read, {len(table.failures)} failed"
    print(f"{extractor.dataset_name}, {part}: {counts}, in {table.folder}")
    if table.failures:
        print(format_report(table.failures), file=sys.stderr)
    return 1 if table.failures else 0
