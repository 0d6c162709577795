"""Scores as tables, the list of scans to annotate first, and the pictures of both."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_ext.data.reading import read_quietly
from nnunet_ext.figures.pseudo_labels import OneCase, draw_contact_sheet, draw_scores
from nnunet_ext.files import whole
from nnunet_ext.pseudo_labels.cases import Source
from nnunet_ext.pseudo_labels.selection import CaseScores, Rule, Selection
from nnunet_ext.pseudo_labels.store import Store

SCORES, SCORES_PICTURE = "pseudo_label_scores.csv", "pseudo_label_scores.png"
SHEET, ANNOTATE = "pseudo_label_cases.png", "annotate_first.csv"
_SHOWN = 6  # cases at each end of the contact sheet


def write_scores(folder: Path, selection: Selection, store: Store, names: Sequence[str]) -> Path:
    """Write the scores of all cases, the best first, and return the file.

    Args:
        folder: Where.
        selection: What becomes of the cases.
        store: Records of the cases.
        names: Names of the classes.
    """
    rows = []
    for state in ("accepted", "rejected", "empty"):
        for case in getattr(selection, state):
            record = store.record(case.name)
            worst = case.worst[0]
            shares = [f"{record[key]:.6f}" for key in ("uncertain_share", "foreground_share")]
            rows.append([case.name, state, _text(case.score), worst, *(_text(case.classes[n]) for n in names), *shares])
    header = ["case", "state", "score", "worst_class", *names, "uncertain_share", "foreground_share"]
    return _write_table(folder / SCORES, header, rows)


def write_annotate_first(folder: Path, ordered: Sequence[tuple[CaseScores, int]], source: Source) -> Path:
    """Write which scans to annotate first, and return the file.

    Args:
        folder: Where.
        ordered: Cases with their clusters.
        source: Names the images.
    """
    rows = [
        [rank, case.name, _text(case.score), *_worst(case), cluster, *source.scans[case.name]]
        for rank, (case, cluster) in enumerate(ordered, 1)
    ]
    return _write_table(
        folder / ANNOTATE, ["rank", "case", "score", "worst_class", "worst_score", "cluster", "images"], rows
    )


def draw_pictures(
    folder: Path,
    selection: Selection,
    rule: Rule | None,
    store: Store,
    source: Source,
    names: Sequence[str],
    reader: BaseReaderWriter,
) -> list[Path]:
    """Draw the scores, and the cases at both ends; return the files.

    Args:
        folder: Where.
        selection: What becomes of the cases.
        rule: Thresholds to draw; None for none.
        store: Slices of the cases.
        source: Names the images.
        names: Names of the classes.
        reader: nnU-Net's reader of the images.
    """
    scored = [*selection.accepted, *selection.rejected]
    if not scored:
        return []
    scored.sort(key=lambda case: (-case.score, case.name))
    thresholds = (rule.min_score, rule.min_class_score) if rule is not None and rule.top is None else None
    accepted = {case.name for case in selection.accepted}
    draw_scores(
        folder / SCORES_PICTURE,
        [case.score for case in scored],
        {name: [case.classes[name] for case in scored] for name in names},
        [case.name in accepted for case in scored],
        thresholds,
    )
    least = scored[::-1][: min(_SHOWN, math.ceil(len(scored) / 2))]
    most = scored[: min(_SHOWN, len(scored) // 2)]
    rows = {
        "least agreement": [_one_case(case, store, source, reader) for case in least],
        "most agreement": [_one_case(case, store, source, reader) for case in most],
    }
    draw_contact_sheet(folder / SHEET, {title: cases for title, cases in rows.items() if cases})
    return [folder / SCORES_PICTURE, folder / SHEET]


def _one_case(case: CaseScores, store: Store, source: Source, reader: BaseReaderWriter) -> OneCase:
    index, consensus, members = store.worst_slice(case.name)
    worst, score = case.worst
    title = f"{case.name}: {case.score:.3f}\nworst: {worst} {score:.3f}"
    image, aspect = np.zeros(consensus.shape, np.float32), 1.0
    try:
        array, properties = read_quietly(reader.read_images, *source.scans[case.name])
        image = array[0, index]
        spacing = [float(value) for value in properties["spacing"]]
        aspect = spacing[1] / spacing[2]
    except (
        OSError,
        ValueError,
        RuntimeError,
    ):  # it is named where it is predicted; the outlines are worth seeing without it
        title += "\n(image not readable)"
    return OneCase(title, image, aspect, consensus, members)


def _write_table(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with whole(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as target:
        table = csv.writer(target)
        table.writerow(header)
        table.writerows(rows)
    return file


def _worst(case: CaseScores) -> tuple[str, str]:
    name, score = case.worst
    return name, _text(score)


def _text(score: float) -> str:
    return "" if math.isnan(score) else f"{score:.6f}"
