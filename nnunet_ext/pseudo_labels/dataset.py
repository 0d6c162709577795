"""A dataset of true labels and accepted pseudo-labels that stock nnU-Net plans, preprocesses and trains with.

Images are listed where they lie, under nnU-Net's key ``"dataset"``; folds are validated with true labels alone.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_ext import files
from nnunet_ext.data.dataset_json import FILE as DATASET_JSON
from nnunet_ext.data.splits import FILE as SPLITS
from nnunet_ext.data.unlabeled import KEY
from nnunet_ext.pseudo_labels import provenance
from nnunet_ext.pseudo_labels.cases import Source
from nnunet_ext.pseudo_labels.store import Store, write_label_map

SUFFIX = "_pseudo"
IGNORE = "ignore"  # nnU-Net's name of the label
_FOLDS = 5  # of nnU-Net's own split


@dataclass(frozen=True)
class Roots:
    """nnU-Net's folders.

    Attributes:
        raw: ``nnUNet_raw``.
        preprocessed: ``nnUNet_preprocessed``.
    """

    raw: Path
    preprocessed: Path


@dataclass(frozen=True)
class NewDataset:
    """What a new dataset is made of.

    Attributes:
        name: Its name.
        source: Dataset with the true labels.
        accepted: Scans whose consensus becomes a label.
        ignore_uncertain: Whether uncertain voxels get nnU-Net's ignore label.
        record: What ``pseudo_labels.json`` says beside the labels.
        left_out: Scans that are in no list of the new dataset, because they cannot be read.
        beside: Files that are put beside dataset.json.
    """

    name: str
    source: Source
    accepted: Sequence[str]
    ignore_uncertain: bool
    record: Mapping[str, Any]
    left_out: Sequence[str] = ()
    beside: Sequence[Path] = field(default_factory=tuple)


def output_name(output: str, source: str) -> str:
    """Return the name of a dataset.

    Args:
        output: Number, or a whole name ``Dataset914_NAME``.
        source: Name of the dataset that it is made from.

    Raises:
        ValueError: If it is neither.
    """
    if re.fullmatch(r"Dataset\d{3}_[A-Za-z0-9][A-Za-z0-9_-]*", output):
        return output
    if not output.isdecimal() or not 0 < int(output) < 1000:
        raise ValueError(
            f"-o is {output!r}, expected the number of a new dataset, 1 to 999, or its whole name as Dataset914_NAME"
        )
    return f"Dataset{int(output):03d}_{source.partition('_')[2].removesuffix(SUFFIX)}{SUFFIX}"


def refuse_existing(name: str, roots: Roots) -> None:
    """Refuse the number of a dataset that is there; what a killed run left of one is none.

    Raises:
        FileExistsError: If a folder of nnU-Net has one of this number.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets

    number = int(name[7:10])
    for found in find_candidate_datasets(number):
        if found == name and _is_unfinished(str(found), roots):
            continue
        raise FileExistsError(
            f"there is a dataset of the number {number:03d}, {found}, and it is not replaced; name another number with "
            "-o, or remove it from nnUNet_raw, nnUNet_preprocessed and nnUNet_results"
        )


def _is_unfinished(name: str, roots: Roots) -> bool:
    """Whether only what is written before all else is there of a dataset."""
    from nnunetv2.paths import nnUNet_results

    folder = roots.preprocessed / name
    elsewhere = [roots.raw / name]
    if nnUNet_results.is_set():
        elsewhere.append(Path(str(nnUNet_results)) / name)
    if any(place.exists() for place in elsewhere) or not folder.is_dir():
        return False
    ours = {SPLITS, DATASET_JSON, provenance.FILE}
    return all(file.name in ours or file.name.startswith(files.PREFIX) for file in folder.iterdir())


def split_of_true_cases(source: Source) -> list[dict[str, list[str]]]:
    """Return the folds of the true cases: those of the dataset's splits, else nnU-Net's own.

    Raises:
        ValueError: If there is no split, and there are too few cases for nnU-Net to make one.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    if source.splits:
        return deepcopy(source.splits)
    names = sorted(source.true)
    if len(names) < _FOLDS:
        raise ValueError(
            f"{source.name} has {len(names)} case(s) with true labels and no {SPLITS}, expected {_FOLDS} or more for "
            f"nnU-Net's own split; write nnUNet_preprocessed/{source.name}/{SPLITS}"
        )
    return [
        {key: [str(name) for name in split[key]] for key in ("train", "val")}
        for split in generate_crossval_split(names, n_splits=_FOLDS)
    ]


def write_dataset(new: NewDataset, store: Store, roots: Roots, reader: BaseReaderWriter) -> Path:
    """Write a dataset.

    The splits come first, without which nnU-Net would validate with pseudo-labels; then all else at once.

    Args:
        new: What it is made of.
        store: Label maps.
        roots: nnU-Net's folders.
        reader: nnU-Net's reader and writer of the file format.

    Returns:
        Its folder in ``nnUNet_raw``.

    Raises:
        FileExistsError: If there is a dataset of this number.
        BusyError: If another process is writing it.
        ValueError: If a validation set would hold a case without a true label.
    """
    with files.only_here(roots.raw / new.name, "written"):
        refuse_existing(new.name, roots)
        return _write(new, store, roots, reader)


def _write(new: NewDataset, store: Store, roots: Roots, reader: BaseReaderWriter) -> Path:
    splits = _with_pseudo_labels(split_of_true_cases(new.source), new)
    labels = {name: _entry(new, store, name) for name in new.accepted}
    record = provenance.make_record(source_dataset=new.source.name, **new.record, labels=labels)
    preprocessed, folder = roots.preprocessed / new.name, roots.raw / new.name
    files.write_json(preprocessed / provenance.FILE, record, 1)
    files.write_json(preprocessed / SPLITS, splits, 4)
    dataset_json = _dataset_json(new, roots)
    # as planning would put it there, for those who move the plans of another dataset here instead
    files.write_json(preprocessed / DATASET_JSON, dataset_json, 4)
    ignored = dataset_json["labels"].get(IGNORE) if new.ignore_uncertain else None
    files.sweep(roots.raw)
    with files.whole(folder) as built:
        (built / "labelsTr").mkdir(parents=True)
        for name in new.accepted:
            _write_label(store, name, built / "labelsTr" / f"{name}{store.ending}", reader, ignored)
        for file in new.beside:
            shutil.copyfile(file, built / file.name)
        files.write_json(built / provenance.FILE, record, 1)
        files.write_json(built / SPLITS, splits, 4)
        files.write_json(built / DATASET_JSON, dataset_json, 4)
    return folder


def _with_pseudo_labels(splits: list[dict[str, list[str]]], new: NewDataset) -> list[dict[str, list[str]]]:
    true, accepted = set(new.source.true), sorted(new.accepted)
    for fold, split in enumerate(splits):
        wrong = sorted((set(split["val"]) - true) | (set(split["val"]) & set(accepted)))
        if wrong:
            raise ValueError(
                f"fold {fold} would be validated with {', '.join(wrong[:5])}, which has no true label; correct "
                f"nnUNet_preprocessed/{new.source.name}/{SPLITS}"
            )
    return [{"train": [*split["train"], *accepted], "val": split["val"]} for split in splits]


def _entry(new: NewDataset, store: Store, name: str) -> dict[str, Any]:
    record = store.record(name)
    entry = {key: record[key] for key in ("scores", "source")}
    if new.ignore_uncertain:
        entry["ignored_share"] = record["uncertain_share"]
    return entry


def _dataset_json(new: NewDataset, roots: Roots) -> dict[str, Any]:
    source, folder = new.source, roots.raw / new.name
    content = {key: deepcopy(value) for key, value in source.dataset_json.items() if key not in (KEY, "dataset")}
    said = {
        name: list(entry.get("images", ()))
        for key in ("dataset", KEY)
        for name, entry in source.dataset_json.get(key, {}).items()
        if isinstance(entry, dict)
    }

    def listed(name: str, images: Sequence[str]) -> list[str]:
        return [_path(file, text, folder, roots.raw) for file, text in _pairs(images, said.get(name, ()))]

    dataset: dict[str, Any] = {}
    used = {name for split in split_of_true_cases(source) for key in ("train", "val") for name in split[key]}
    for name, case in source.true.items():
        if name not in used:  # nnU-Net would preprocess it, and fail where the splits leave it out for being damaged
            continue
        label = source.dataset_json.get("dataset", {}).get(name, {}).get("label")
        dataset[name] = {
            "images": listed(name, case.images),
            "label": _path(case.label, label, folder, roots.raw),
        }
    for name in sorted(new.accepted):
        ending = content["file_ending"]
        dataset[name] = {"images": listed(name, source.scans[name]), "label": f"labelsTr/{name}{ending}"}
    rest = source.scans | source.others
    unlabelled = {n: {"images": listed(n, rest[n])} for n in sorted(rest) if n not in {*new.accepted, *new.left_out}}
    if new.ignore_uncertain:
        content["labels"] = with_ignore_label(content["labels"])
    return content | {"numTraining": len(dataset), "dataset": dataset, KEY: unlabelled}


def _pairs(images: Sequence[str], texts: Sequence[str]) -> list[tuple[str, str | None]]:
    known = list(texts) if len(texts) == len(images) else [None] * len(images)
    return list(zip(images, known, strict=True))


def _path(file: str, text: str | None, folder: Path, raw_root: Path) -> str:
    """Return how a file is listed: as the source does where that holds anywhere, relative within ``nnUNet_raw``."""
    if text is not None and os.path.isabs(os.path.expandvars(text)) and os.path.expandvars(text) == file:
        return text
    inside = os.path.abspath(raw_root)
    return os.path.relpath(file, folder) if file.startswith(inside + os.sep) else file


def with_ignore_label(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return labels with nnU-Net's ignore label, which is the highest; regions and their order stay as they are.

    Args:
        labels: ``"labels"`` of dataset.json.
    """
    if IGNORE in labels:
        return dict(labels)
    numbers = [int(n) for value in labels.values() for n in (value if isinstance(value, (list, tuple)) else [value])]
    return {**labels, IGNORE: max(numbers) + 1}


def _write_label(store: Store, name: str, target: Path, reader: BaseReaderWriter, ignored: int | None) -> None:
    if ignored is None:
        with files.naming_full_disk(target):
            shutil.copyfile(store.label_map(name), target)
        return
    labels, properties = reader.read_seg(str(store.label_map(name)))
    uncertain, _ = reader.read_seg(str(store.uncertain(name)))
    labels = labels[0].astype(np.uint8 if ignored < 256 else np.uint16)
    labels[uncertain[0] > 0] = ignored
    write_label_map(target, labels, reader, properties)
