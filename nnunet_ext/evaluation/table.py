"""A profile as tables of text: measures, stages, and scores of each class."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

_COLUMNS = (  # title, key of the measure, digits
    ("s/case", "seconds_per_case", 2),
    ("RAM MB", "peak_memory_mb", 0),
    ("GPU MB", "peak_gpu_memory_mb", 0),
    ("GPU MB s/case", "gpu_memory_area_mb_s_per_case", 0),
    ("CPU % s/case", "cpu_area_percent_s_per_case", 0),
)
NOTHING = "-"


def format_profile(document: dict[str, Any]) -> str:
    """Return tables of the measures, of the stages where they are known, and of each class where there are labels.

    Args:
        document: Content of ``profile.json``, as ``profile`` returns it.
    """
    entries = document["settings"]
    tables = [_measures_table(entries)]
    stages = {name: entry["measured"]["stages"] for name, entry in entries.items() if _has(entry, "stages")}
    if stages:
        titles = list(dict.fromkeys(stage for seconds in stages.values() for stage in seconds))
        rows = [[name, *(_number(seconds.get(stage), 3) for stage in titles)] for name, seconds in stages.items()]
        tables.append("Seconds a case of each stage; stages of different cases run at the same time:")
        tables.append(align([["setting", *titles], *rows]))
    compared = {name: entry["quality"] for name, entry in entries.items() if "quality" in entry}
    if compared:
        classes = [quality["classes"] for quality in compared.values()]
        names = list(dict.fromkeys(name for scores in classes for name in scores))
        rows = [[name, *(_pair(scores.get(name, {})) for scores in classes)] for name in names]
        tables.append(f"DSC / NSD ({_tolerances(compared)}) of each class, mean over the cases that have it:")
        tables.append(align([["class", *compared], *rows]))
    return "\n\n".join(tables)


def align(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return rows with columns of equal width: numbers to the right, the named columns to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _measures_table(entries: dict[str, Any]) -> str:
    compared = {name: entry["quality"] for name, entry in entries.items() if "quality" in entry}
    titles = [title for title, _, _ in _COLUMNS]
    if compared:
        titles += ["DSC", f"NSD {_tolerances(compared)}"]
    rows = []
    for name, entry in entries.items():
        measured = entry.get("measured", {})
        row = [_number(measured.get(key), digits) for _, key, digits in _COLUMNS]
        if compared:
            mean = entry.get("quality", {}).get("mean", {})
            row += [_number(mean.get(measure), 4) for measure in ("dsc", "nsd")]
        state = "" if measured else "FAILED "
        rows.append([name, *row, state + (shlex.join(entry["flags"]) or "(no flag)")])
    return align([["setting", *titles, "flags"], *rows], left=(0, len(titles) + 1))


def _has(entry: dict[str, Any], key: str) -> bool:
    return bool(entry.get("measured", {}).get(key))


def _tolerances(compared: dict[str, Any]) -> str:
    return " or ".join(dict.fromkeys(f"{quality['tolerance_mm']:g} mm" for quality in compared.values()))


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _pair(scores: dict[str, float | None]) -> str:
    return f"{_number(scores.get('dsc'), 3)} / {_number(scores.get('nsd'), 3)}"
