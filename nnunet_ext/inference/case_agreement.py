"""What the networks that predict a case agree about: found while they predict, recorded, and said in words."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_ext import files
from nnunet_ext.data.classes import classes_of
from nnunet_ext.inference.agreement_scores import mean_score
from nnunet_ext.inference.case import Model, Prepared
from nnunet_ext.inference.comparison import Grid, compare, frame_of, keep_logits

FAILED = "agreement_failed"  # key of a record: why the networks could not be compared


class NetworksOfCase:
    """What each network says of one case, kept in files without names until they are compared.

    Args:
        prepared: The case; its data is not used.
        model: Plans by which it was prepared.
        folder: On whose disk the logits lie meanwhile: two bytes a voxel of the network's grid, class and network.

    Attributes:
        seconds: That keeping them took.
    """

    def __init__(self, prepared: Prepared, model: Model, folder: Path) -> None:
        self.prepared, self.model, self.folder = prepared, model, folder
        self.seconds = 0.0
        self._grids: list[Grid] = []
        self._files = contextlib.ExitStack()

    def __enter__(self) -> NetworksOfCase:
        """Begin; the folder is made where predictions would make it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the room on the disk back."""
        self._files.close()

    def keep(self, logits: Tensor) -> Tensor:
        """Keep the logits ``(K, *S)`` of the next network, and return them on the CPU.

        Raises:
            DiskFullError: If there is no room for them.
        """
        logits = logits.cpu()
        start = time.perf_counter()
        with files.naming_full_disk(self.folder):
            self._grids.append(keep_logits(logits, self.prepared, self.model, self.folder, self._files))
        self.seconds += time.perf_counter() - start
        return logits

    def agreement(self, networks: Sequence[str], device: torch.device) -> dict[str, Any]:
        """Compare all networks, and return the record of their agreement.

        Args:
            networks: What each is called.
            device: Device to compute on.
        """
        plans, dataset_json = self.model.plans, self.model.dataset_json
        labels, classes = plans.get_label_manager(dataset_json), classes_of(plans.plans, dataset_json).regions
        found = compare(labels, classes, self._grids, frame_of(self.prepared, self.model), device)
        scores = found.agreement.class_scores()
        return {
            "score": _no_nan(mean_score(scores)),
            "classes": {name: _no_nan(score) for name, score in scores.items()},
            "networks": list(networks),
        }


def _no_nan(score: float) -> float | None:
    return None if math.isnan(score) else score


def agreement_line(case: str, record: Mapping[str, Any]) -> str:
    """Return one line on the agreement of a case, from its record."""
    if FAILED in record:
        return f"{case}: predicted, but the networks could not be compared: {record[FAILED]}"
    agreement = record["agreement"]
    number = len(agreement["networks"])
    if agreement["score"] is None:
        return f"{case}: none of {number} networks finds any class, so their agreement has no score"
    return f"{case}: agreement of {number} networks {_scores(agreement)}"


def summary(
    records: Mapping[str, Mapping[str, Any]], earlier: Iterable[str], networks: Sequence[str], least: float | None
) -> list[str]:
    """Return lines on all cases of a run: those that the networks agree too little about, and those without a score.

    Args:
        records: Records of the cases that are done.
        earlier: Those of them, or without a record, that were done before.
        networks: What the networks of this run are called.
        least: Score below which a case is listed, the least first; None lists none.
    """
    agreements = {
        case: record["agreement"] for case, record in sorted(records.items()) if _is_agreement(record.get("agreement"))
    }
    lines = []
    if least is not None:
        scored = {case: found for case, found in agreements.items() if found["score"] is not None}
        below = sorted(
            (case for case in scored if scored[case]["score"] < least), key=lambda case: scored[case]["score"]
        )
        if below:
            lines.append(f"Agreement is below {least:g} in {len(below)} of {len(scored)} case(s), the least first:")
            lines += [f"  {case}: {_scores(scored[case])}" for case in below]
        elif scored:
            lines.append(f"Agreement is {least:g} or more in all of {len(scored)} case(s).")
        if empty := [case for case in agreements if case not in scored]:
            lines.append(f"No network finds any class, so there is no score: {', '.join(empty)}")
    done = sorted(set(earlier))
    failed = sorted(case for case, record in records.items() if FAILED in record and case not in agreements)
    if failed:
        lines.append(f"Predicted, but not compared: {', '.join(failed)}; spacing_report.json says why")
    if unknown := [case for case in done if case not in agreements and case not in failed]:
        lines.append(
            f"Predicted before without --agreement, so there is no score: {', '.join(unknown)}; remove their label "
            "maps to have them predicted again"
        )
    others: dict[str, list[str]] = {}
    for case in done:
        if case in agreements and set(map(str, agreements[case]["networks"])) != set(networks):
            others.setdefault("; ".join(sorted(map(str, agreements[case]["networks"]))), []).append(case)
    lines += [f"Predicted before by other networks ({names}): {', '.join(cases)}" for names, cases in others.items()]
    return lines


def _is_agreement(found: Any) -> bool:
    """Whether something that was read is the record of an agreement; files may be damaged, or written by hand."""
    if not isinstance(found, dict) or not isinstance(found.get("networks"), list) or "score" not in found:
        return False
    classes = found.get("classes")
    if not isinstance(classes, dict):
        return False
    scores = [found["score"], *classes.values()]
    if not all(score is None or isinstance(score, (int, float)) for score in scores):
        return False
    return (found["score"] is None) == all(score is None for score in classes.values())


def _scores(agreement: Mapping[str, Any]) -> str:
    there = {name: score for name, score in agreement["classes"].items() if score is not None}
    worst = min(there, key=lambda name: there[name])
    return f"{agreement['score']:.3f}, least about {worst} ({there[worst]:.3f})"
