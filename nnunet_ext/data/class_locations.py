"""Where each class lies in unlabelled cases, as a network sees it, so that patches can be centred on rare classes.

nnU-Net keeps the same of labelled cases when it preprocesses them. True labels of unlabelled cases are never looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from nnunet_ext.files import whole
from nnunet_ext.plugin import compat

MOST = 10_000  # voxels that are kept of a class
_SHAPE = "shape"


def save_class_locations(folder: Path, name: str, labels: np.ndarray, classes: Sequence[Any], seed: int) -> None:
    """Keep voxels of each class of a case.

    Args:
        folder: Folder of the cases' files; made where it does not exist.
        name: Name of the case.
        labels: Label map of the preprocessed case, ``(*S)`` integers.
        classes: Labels, or tuples of labels for regions, without background.
        seed: Of the choice where a class has more voxels than are kept.
    """
    found = compat.foreground_locations(labels[None], classes, seed, MOST)
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {str(number): np.asarray(found[key], np.int32) for number, key in enumerate(found)}
    arrays[_SHAPE] = np.array(labels.shape)
    with whole(folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_class_locations(folder: Path, name: str, shape: Sequence[int]) -> dict[int, np.ndarray]:
    """Return voxels ``(N, 4)`` of each class of a case, channel first, as nnU-Net's loader expects of its own.

    Args:
        folder: Folder of the cases' files.
        name: Name of the case.
        shape: Shape of the preprocessed case, ``*S``.

    Returns:
        Voxels by number of the class; empty for a case that was not looked at yet, whose file is damaged, or that had
        another shape when it was looked at.
    """
    with (
        contextlib.suppress(OSError, ValueError, KeyError, EOFError, BadZipFile),
        np.load(folder / f"{name}.npz") as content,
    ):
        if content[_SHAPE].tolist() == [int(length) for length in shape]:
            return {int(key): content[key] for key in content.files if key != _SHAPE}
    return {}
