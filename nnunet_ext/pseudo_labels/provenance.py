"""``pseudo_labels.json`` of a dataset: where each of its labels came from, for its readers and for later cycles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.data.signature import source_signature
from nnunet_ext.files import read_json

FILE = "pseudo_labels.json"
_REMEDY = "restore it: without it, pseudo-labels would be taken for true ones"


def read_record(raw_folder: Path) -> dict[str, Any]:
    """Return the record of a dataset, empty for one without pseudo-labels.

    Args:
        raw_folder: The dataset's folder in ``nnUNet_raw``.

    Raises:
        ValueError: If the file is no record.
    """
    file = raw_folder / FILE
    if not file.is_file():
        return {}
    content: dict[str, Any] = read_json(file, _REMEDY)
    if not isinstance(content.get("labels"), dict) or not isinstance(content.get("cycle"), int):
        raise ValueError(f"{file} has no 'labels' and 'cycle' as nnUNetv2_ext pseudo_label writes them; {_REMEDY}")
    return content


def pseudo_labelled(record: Mapping[str, Any]) -> set[str]:
    """Return the cases whose labels are no true ones."""
    return set(record.get("labels", ()))


def next_cycle(raw_root: Path, datasets: Iterable[str]) -> int:
    """Return the number of a cycle: one more than that of the datasets that it builds on, from 1.

    Args:
        raw_root: Folder ``nnUNet_raw``.
        datasets: Names of the dataset, and of those that the members were trained on, as far as they are here.
    """
    cycles = [read_record(raw_root / name).get("cycle", 0) for name in datasets if name]
    return 1 + max(cycles, default=0)


def changed_scans(record: Mapping[str, Any], scans: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the pseudo-labelled cases of an earlier cycle whose images are others now, sorted.

    Args:
        record: From :func:`read_record`.
        scans: Case -> its image files.
    """
    changed = []
    for name, entry in record.get("labels", {}).items():
        before = entry.get("source") if isinstance(entry, dict) else None
        if name in scans and isinstance(before, dict) and before != source_signature(scans[name]):
            changed.append(name)
    return sorted(changed)


def make_record(**content: Any) -> dict[str, Any]:
    """Return a record with the version of this package."""
    return {"nnunet_ext": __version__, **content}
