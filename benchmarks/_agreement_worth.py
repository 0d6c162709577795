"""What the scores of self-training in unlabelled.py are worth: against true Dice, which nothing else has seen."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import accuracy
import numpy as np
from _unlabelled_runs import TASKS
from scipy.stats import spearmanr

from nnunet_ext.evaluation.metrics import dice


def worth(dataset: str, title: str) -> list[str]:
    """Return lines of Markdown: rank correlation and Dice of the scans of a dataset, empty if there is none.

    Args:
        dataset: Name of a dataset of pseudo-labels, made of a task with a ceiling, whose labels are the true ones.
        title: What it is called.
    """
    raw = accuracy.WORK / "raw" / dataset
    if not (raw / "pseudo_labels.json").is_file():
        return []
    record = json.loads((raw / "pseudo_labels.json").read_text())
    task = next(task for task in TASKS.values() if task.dataset == record["source_dataset"])
    if task.ceiling is None:
        return []
    with (raw / "pseudo_label_scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["score"]]
    store, truth = _store(task, record), accuracy.WORK / "raw" / task.ceiling / "labelsTr"
    names = list(task.classes.values())
    scores = np.array([[float(row[name] or "nan") for name in names] for row in rows])
    true = np.array([_dice(store / f"{row['case']}.nii.gz", truth / f"{row['case']}.nii.gz", task) for row in rows])
    accepted = np.array([row["state"] == "accepted" for row in rows])
    members = ", ".join(_named(member) for member in record["members"])
    lines = [f"{title}: {len(rows)} scans, {accepted.sum()} accepted ({_rule(record)}); {members}", ""]
    lines += ["| | mean | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    columns = [(np.nanmean(scores, 1), np.nanmean(true, 1)), *zip(scores.T, true.T, strict=True)]
    lines.append(_row("Spearman of score and true Dice", [_spearman(*column) for column in columns]))
    lines.append(_row("score", [np.nanmean(score) for score, _ in columns]))
    for title, chosen in (("all", accepted | True), ("accepted", accepted), ("rejected", ~accepted)):
        if chosen.any():
            lines.append(
                _row(f"true Dice, {title} {chosen.sum()}", [np.nanmean(value[chosen]) for _, value in columns])
            )
    return lines


def _store(task: accuracy.Task, record: dict) -> Path:
    """Return the folder of the consensus label maps of all scans, accepted or not."""
    made_by = sorted(member["sha256"] for member in record["members"])
    for file in (accuracy.WORK / "preprocessed" / task.dataset / "pseudo_labels").glob("*/members.json"):
        content = json.loads(file.read_text())
        alike = all(record["accepted_by"][key] == value for key, value in content["options"].items())
        if alike and sorted(member["sha256"] for member in content["members"]) == made_by:
            return file.parent / "consensus"
    raise FileNotFoundError(f"the label maps of {task.dataset} by these networks are gone; label its scans again")


def _dice(predicted: Path, true: Path, task: accuracy.Task) -> list[float]:
    import SimpleITK

    one, two = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in (predicted, true))
    return [dice(two == label, one == label) for label in task.classes]


def _spearman(score: np.ndarray, true: np.ndarray) -> float:
    there = ~np.isnan(score) & ~np.isnan(true)
    return float(spearmanr(score[there], true[there]).statistic) if there.sum() > 2 else float("nan")


def _row(title: str, values: Sequence[float]) -> str:
    return f"| {title} | " + " | ".join(f"{value:.3f}" for value in values) + " |"


def _rule(record: dict) -> str:
    rule = record["accepted_by"]
    if rule["partial"]:
        return "all, uncertain voxels ignored"
    if rule["top"] is not None:
        return f"top {rule['top']:g}"
    return f"score {rule['min_score']:g}, each class {rule['min_class_score']:g}"


def _named(member: dict) -> str:
    return " ".join(filter(None, [member["trainer"].removeprefix("nnUNetTrainer").lstrip("_"), member["network"]]))
