"""How many voxels each label has in the preprocessed labelled cases, counted once."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunet_ext.data.training_cases import reading_problem
from nnunet_ext.files import read_json, write_json


def cache_file(preprocessed_folder: str | Path, data_identifier: str) -> Path:
    """Return the file that keeps the counts: not among the cases, where nnU-Net expects one kind of files.

    Args:
        preprocessed_folder: The dataset's folder in ``nnUNet_preprocessed``.
        data_identifier: Of the configuration.
    """
    return Path(preprocessed_folder) / f"class_voxels_{data_identifier}.json"


def class_voxels(dataset: Any, cache: Path, progress: bool = True) -> dict[str, dict[int, int]]:
    """Count the voxels of each label in each case.

    What nnU-Net keeps of each class in the properties of a case is a sample of its voxels, no count.

    Args:
        dataset: nnU-Net's dataset of the cases to count; other cases keep their place in the cache.
        cache: File of the counts; cases whose segmentation has not changed since are not read again. It is made anew
            where it is damaged, and left alone where nothing can be written.
        progress: Whether to show a bar.

    Returns:
        Voxels by label, by name of the case; -1 is nnU-Net's label outside of what was cropped.

    Raises:
        RuntimeError: If a case cannot be read; names it.
    """
    known: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        known = read_json(cache)
    folder = Path(dataset.source_folder)
    states = {name: _state(folder, name) for name in dataset.identifiers}
    new = [name for name, state in states.items() if not _is_current(known.get(name), state)]
    for name in tqdm(new, desc="counting the voxels of each class", disable=not (progress and new)):
        known[name] = {"file": states[name], "voxels": _count(dataset, name)}
    if new:
        with contextlib.suppress(OSError):  # the next training counts once more
            write_json(cache, known, indent=None)
    return {name: {int(label): n for label, n in known[name]["voxels"].items()} for name in states}


def _state(folder: Path, name: str) -> list[int]:
    for ending in ("_seg.b2nd", ".npz"):
        with contextlib.suppress(FileNotFoundError):
            found = (folder / f"{name}{ending}").stat()
            return [found.st_size, found.st_mtime_ns]
    return []


def _is_current(entry: Any, state: list[int]) -> bool:
    return isinstance(entry, dict) and entry.get("file") == state and isinstance(entry.get("voxels"), dict)


def _count(dataset: Any, name: str) -> dict[str, int]:
    try:
        labels = np.asarray(dataset.load_case(name)[1][:]).ravel().astype(np.int64)
    except Exception as error:
        problem = reading_problem(dataset, name) or str(error)
        raise RuntimeError(
            f"the preprocessed case {name} in {dataset.source_folder} cannot be read ({problem:.200}); preprocess the "
            "dataset again with nnUNetv2_preprocess"
        ) from error
    lowest = int(labels.min(initial=0))
    counts = np.bincount(labels - lowest)
    return {str(lowest + int(index)): int(counts[index]) for index in np.flatnonzero(counts)}
