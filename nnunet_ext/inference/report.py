"""What was done with each case, as a file beside the predictions, and in words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.inference.axes import XYZ

NAME = "spacing_report"
ORDER = "x y z: left-right, front-back, head-foot"


class SpacingReport:
    """``spacing_report.json``: one record a case, rewritten as a whole whenever a case is done.

    Args:
        folder: Where the predictions are written.
        part: Which part of how many (``-part_id``, ``-num_parts``); each writes a report of its own.
        keep: Keep the records of cases that an earlier run finished.
    """

    def __init__(self, folder: Path, part: tuple[int, int] = (0, 1), keep: bool = False) -> None:
        suffix = "" if part[1] == 1 else f"_part_{part[0]}_of_{part[1]}"
        self.file = folder / f"{NAME}{suffix}.json"
        self.content: dict[str, Any] = {
            "nnunet_ext": __version__,
            "order": ORDER,
            "units": "mm, seconds, MiB",
            "cases": self._kept() if keep else {},
        }

    def _kept(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.file.read_text(encoding="utf-8"))["cases"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def add(self, case: str, record: dict[str, Any]) -> None:
        """Add the record of a case and write the file."""
        self.content["cases"][case] = record
        temporary = self.file.with_name(f".{self.file.name}.part")
        temporary.write_text(json.dumps(self.content, indent=2), encoding="utf-8")
        os.replace(temporary, self.file)


def spacing_line(case: str, record: dict[str, Any]) -> str:
    """Say in one line which spacings a case got, and what that makes of it in the eyes of the network."""
    parts = [f"{case}: {_times(record['shape'])} voxels of {_times(record['true_spacing'])} mm"]
    if record["declared_spacing"] != record["true_spacing"]:
        parts.append(f"declared as {_times(record['declared_spacing'])} mm")
    resampled = [
        true if target is None else target
        for true, target in zip(record["declared_spacing"], record["target_spacing"], strict=True)
    ]
    parts.append(f"resampled to {_times(resampled)} mm, {_times(record['resampled_shape'])} voxels")
    factors = ", ".join(f"{letter} {factor:.3g}" for letter, factor in zip(XYZ, record["stretch"], strict=True))
    if all(abs(factor - 1) < 1e-3 for factor in record["stretch"]):
        return "; ".join([*parts, "to the network things look as large as in training"])
    return "; ".join([*parts, f"to the network things look this many times as large as in training: {factors}"])


def _times(values: list[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
