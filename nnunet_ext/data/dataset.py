"""Preprocessed unlabelled cases: one image, one validity mask and one JSON file a case.

Layout of the folder ``<data_identifier>_unlabeled``: ``CASE.b2nd`` (float32, ``(C, *S)``), ``valid/CASE.b2nd`` (uint8,
``(1, *S)``, 1 inside nnU-Net's non-zero mask) and ``CASE.json``, which is written last and so marks a finished case.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

VALID_FOLDER = "valid"


def unlabeled_folder(preprocessed_folder: str | Path, data_identifier: str) -> Path:
    """Return the folder of the unlabelled cases that belongs to a folder of labelled ones."""
    return Path(preprocessed_folder) / f"{data_identifier}_unlabeled"


def read_metadata(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the metadata of a finished case, or None if it is missing, unreadable or incomplete."""
    try:
        metadata = json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    complete = (folder / f"{name}.b2nd").is_file() and (folder / VALID_FOLDER / f"{name}.b2nd").is_file()
    return metadata if complete and isinstance(metadata, dict) else None


def finished_cases(folder: Path) -> list[str]:
    """Return the names of the finished cases, sorted."""
    if not folder.is_dir():
        return []
    return sorted(entry[:-5] for entry in os.listdir(folder) if entry.endswith(".json") and not entry.startswith("."))


def save_case(
    folder: Path, name: str, data: np.ndarray, valid: np.ndarray, metadata: dict[str, Any], patch_size: tuple[int, ...]
) -> None:
    """Write one case; a killed run leaves no half-written case behind.

    Args:
        folder: Target folder.
        name: Case name.
        data: ``(C, *S)``.
        valid: ``(1, *S)``, 1 where pseudo-supervision is allowed.
        metadata: JSON values.
        patch_size: Patch size of the configuration in voxels, from which the layout on disk follows.

    Raises:
        ValueError: If the name would lead out of the folder.
    """
    target = (folder / f"{name}.json").resolve()
    if target.parent != folder.resolve():
        raise ValueError(f"the case name {name!r} leads out of {folder}; rename the case")
    (folder / VALID_FOLDER).mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    _write_array(folder / f"{name}.b2nd", np.asarray(data, np.float32), patch_size)
    _write_array(folder / VALID_FOLDER / f"{name}.b2nd", np.asarray(valid, np.uint8), patch_size)
    temporary = folder / f".{name}.{os.getpid()}.json.tmp"
    temporary.write_text(json.dumps(metadata, indent=1))
    os.replace(temporary, target)


def remove_case(folder: Path, name: str) -> None:
    """Remove what is there of a case."""
    for path in (folder / f"{name}.json", folder / f"{name}.b2nd", folder / VALID_FOLDER / f"{name}.b2nd"):
        path.unlink(missing_ok=True)


def _write_array(target: Path, array: np.ndarray, patch_size: tuple[int, ...]) -> None:
    blocks, chunks = comp_blosc2_params(array.shape, patch_size, array.itemsize)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    cparams = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1}
    blosc2.asarray(np.ascontiguousarray(array), urlpath=str(temporary), chunks=chunks, blocks=blocks, cparams=cparams)
    os.replace(temporary, target)


class UnlabeledDataset:
    """Reads preprocessed unlabelled cases in the form that nnU-Net's data loader expects of a dataset.

    Args:
        folder: Folder made by ``nnUNetv2_ext preprocess_unlabeled``.
        identifiers: Names of the cases to use.
    """

    def __init__(self, folder: str | Path, identifiers: list[str]) -> None:
        blosc2.set_nthreads(1)
        self.source_folder = str(folder)
        self.identifiers = sorted(identifiers)
        # Memory mapping does not work on Windows, as nnU-Net notes in its own dataset class.
        self._mmap: dict[str, str] = {} if os.name == "nt" else {"mmap_mode": "r"}

    def load_case(self, identifier: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """Return image ``(C, *S)``, validity mask ``(1, *S)`` uint8, None, and properties without class locations."""
        data = self._open(os.path.join(self.source_folder, f"{identifier}.b2nd"))
        valid = self._open(os.path.join(self.source_folder, VALID_FOLDER, f"{identifier}.b2nd"))
        return data, valid, None, {"class_locations": {}}

    def __getitem__(self, identifier: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """Return :meth:`load_case`."""
        return self.load_case(identifier)

    def _open(self, path: str) -> Any:
        return blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, **self._mmap)
