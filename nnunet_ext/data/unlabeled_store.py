"""Preprocessed unlabelled cases: one image, one validity mask and one JSON file a case.

Layout of the folder ``<data_identifier>_unlabeled``: ``CASE.b2nd`` (float32, ``(C, *S)``), ``valid/CASE.b2nd`` (uint8,
``(1, *S)``, 1 inside nnU-Net's non-zero mask) and ``CASE.json``, which is written last and so marks a finished case.
``failed/CASE.json`` says why a case failed when it was last tried; what is there of it besides is of an older scan or
of other plans, is not used, and is taken back if that scan and those plans are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from nnunet_ext.data.class_locations import read_class_locations
from nnunet_ext.files import read_json, remove, whole, write_json

VALID_FOLDER = "valid"
FAILED_FOLDER = "failed"
REASON = "failed"  # key of the metadata


def unlabeled_folder(preprocessed_folder: str | Path, data_identifier: str) -> Path:
    """Return the folder of the unlabelled cases that belongs to a folder of labelled ones."""
    return Path(preprocessed_folder) / f"{data_identifier}_unlabeled"


def read_metadata(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the metadata of a finished case, or None if it is missing, unreadable or incomplete."""
    return _read_metadata(folder, folder / f"{name}.json", name)


def read_set_aside(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the metadata of what a case was before it failed, or None where nothing usable is left of it."""
    metadata = _read_metadata(folder, folder / FAILED_FOLDER / f"{name}.json", name)
    return None if metadata is None or "plans_digest" not in metadata else metadata


def _read_metadata(folder: Path, file: Path, name: str) -> dict[str, Any] | None:
    metadata = _object(file)
    complete = (folder / f"{name}.b2nd").is_file() and (folder / VALID_FOLDER / f"{name}.b2nd").is_file()
    return metadata if complete else None


def _object(file: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = read_json(file)
    except (OSError, ValueError):
        return None
    return content


def finished_cases(folder: Path) -> list[str]:
    """Return the names of the finished cases, sorted."""
    if not folder.is_dir():
        return []
    return sorted(entry[:-5] for entry in os.listdir(folder) if entry.endswith(".json") and not entry.startswith("."))


def failed_cases(folder: Path) -> dict[str, str]:
    """Return why cases failed when they were last tried, by name, sorted."""
    names = finished_cases(folder / FAILED_FOLDER)
    records = {name: _object(folder / FAILED_FOLDER / f"{name}.json") for name in names}
    return {name: str((metadata or {}).get(REASON, "unknown")) for name, metadata in records.items()}


def damage(folder: Path, name: str) -> str | None:
    """Return what is wrong with a case that is marked as finished, or None; only the heads of its files are read."""
    if read_metadata(folder, name) is None:
        for file in (folder / f"{name}.b2nd", folder / VALID_FOLDER / f"{name}.b2nd"):
            if not file.is_file():
                return f"{file} is missing"
        return f"{folder / name}.json is damaged"
    return damage_of_arrays(folder, name)


def damage_of_arrays(folder: Path, name: str) -> str | None:
    """Return what is wrong with the arrays of a case, or None; only their heads are read."""
    shapes = []
    for file in (folder / f"{name}.b2nd", folder / VALID_FOLDER / f"{name}.b2nd"):
        try:
            shapes.append(tuple(blosc2.open(urlpath=str(file), mode="r").shape))
        except Exception as error:  # whatever blosc2 says of a file that is none of its own
            return f"{file} is damaged ({error})"
    if shapes[1] != (1, *shapes[0][1:]):
        return f"{folder / VALID_FOLDER / name}.b2nd has shape {shapes[1]}, but the image has {shapes[0]}"
    return None


def save_case(
    folder: Path, name: str, data: np.ndarray, valid: np.ndarray, metadata: dict[str, Any], patch_size: tuple[int, ...]
) -> None:
    """Write one case; a killed run leaves no half-written case behind, and what was there stays until then.

    Args:
        folder: Folder of the preprocessed cases.
        name: Case name.
        data: Image, ``(C, *S)``.
        valid: Validity mask, ``(1, *S)``, 1 where pseudo-supervision is allowed.
        metadata: What made the case, as JSON values.
        patch_size: Patch size of the configuration in voxels, from which the layout on disk follows.

    Raises:
        DiskFullError: If there is no room.
        ValueError: If the name would lead out of the folder.
    """
    target = (folder / f"{name}.json").resolve()
    if target.parent != folder.resolve():
        raise ValueError(f"the case name {name!r} leads out of {folder}; rename the case")
    (folder / VALID_FOLDER).mkdir(parents=True, exist_ok=True)
    with whole(folder / f"{name}.b2nd") as image, whole(folder / VALID_FOLDER / f"{name}.b2nd") as mask:
        _write_array(image, np.asarray(data, np.float32), patch_size)
        _write_array(mask, np.asarray(valid, np.uint8), patch_size)
        target.unlink(missing_ok=True)  # from here on until all is in place, the case is none
    write_json(target, metadata, indent=1)
    remove(folder / FAILED_FOLDER / f"{name}.json")


def set_aside(folder: Path, name: str, reason: str) -> None:
    """Note that a case failed: what is there of it is not used any more.

    Args:
        folder: Folder of the preprocessed cases.
        name: Case name.
        reason: What was wrong with the case.
    """
    metadata_file, failure_file = folder / f"{name}.json", folder / FAILED_FOLDER / f"{name}.json"
    metadata = read_metadata(folder, name) or read_set_aside(folder, name) or {}
    content = metadata | {REASON: reason}
    if _object(failure_file) != content:
        write_json(failure_file, content, indent=1)
    metadata_file.unlink(missing_ok=True)


def take_back(folder: Path, name: str) -> None:
    """Use again what a case was before it failed."""
    metadata = read_set_aside(folder, name) or {}
    metadata.pop(REASON, None)
    write_json(folder / f"{name}.json", metadata, indent=1)
    remove(folder / FAILED_FOLDER / f"{name}.json")


def remove_case(folder: Path, name: str) -> None:
    """Remove what is there of a case."""
    failed = folder / FAILED_FOLDER / f"{name}.json"
    for path in (folder / f"{name}.json", folder / f"{name}.b2nd", folder / VALID_FOLDER / f"{name}.b2nd", failed):
        path.unlink(missing_ok=True)


def _write_array(target: Path, array: np.ndarray, patch_size: tuple[int, ...]) -> None:
    blocks, chunks = comp_blosc2_params(array.shape, patch_size, array.itemsize)
    cparams = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "nthreads": 1}
    blosc2.asarray(np.ascontiguousarray(array), urlpath=str(target), chunks=chunks, blocks=blocks, cparams=cparams)


class UnlabeledDataset:
    """Reads preprocessed unlabelled cases in the form that nnU-Net's data loader expects of a dataset.

    Args:
        folder: Folder made by ``nnUNetv2_ext preprocess_unlabeled``.
        identifiers: Names of the cases to use.

    Attributes:
        class_share: Share of the patches that are centred on a class, as far as it is known where classes lie.
        locations: Folder that :mod:`~nnunet_ext.data.class_locations` keeps that in, None without.
    """

    class_share: float = 0.0
    locations: Path | None = None

    def __init__(self, folder: str | Path, identifiers: list[str]) -> None:
        blosc2.set_nthreads(1)
        self.source_folder = str(folder)
        self.identifiers = sorted(identifiers)
        # Memory mapping does not work on Windows, as nnU-Net notes in its own dataset class.
        self._mmap: dict[str, str] = {} if os.name == "nt" else {"mmap_mode": "r"}

    def load_case(self, identifier: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """Return image ``(C, *S)``, validity mask ``(1, *S)`` uint8, None, and properties with class locations."""
        data = self._open(os.path.join(self.source_folder, f"{identifier}.b2nd"))
        valid = self._open(os.path.join(self.source_folder, VALID_FOLDER, f"{identifier}.b2nd"))
        known = {} if self.locations is None else read_class_locations(self.locations, identifier, data.shape[1:])
        return data, valid, None, {"class_locations": known}

    def __getitem__(self, identifier: str) -> tuple[Any, Any, None, dict[str, Any]]:
        """Return :meth:`load_case`."""
        return self.load_case(identifier)

    def _open(self, path: str) -> Any:
        return blosc2.open(urlpath=path, mode="r", dparams={"nthreads": 1}, **self._mmap)
