"""Which scans get pseudo-labels, and which cases have true labels; those are named here, and never opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_ext.data.case_files import file_problem, name_problem, resolved
from nnunet_ext.data.dataset_json import check_raw_dataset, load_dataset_json, number_of_channels, numbers_of_files
from nnunet_ext.data.labelled import images_and_problems
from nnunet_ext.data.splits import FILE as SPLITS
from nnunet_ext.data.splits import load_splits
from nnunet_ext.data.unlabeled import find_unlabeled_cases, where_looked
from nnunet_ext.inference.image_folder import channel_files_message, list_inputs
from nnunet_ext.pseudo_labels.provenance import changed_scans, pseudo_labelled, read_record

_SAMPLE = 2**16  # bytes that are compared at three places of files of one size
_NAMED = 5  # cases named in a message; the others are counted


@dataclass(frozen=True)
class TrueCase:
    """A case with a true label.

    Attributes:
        images: Image files, one a channel.
        label: File of the label.
    """

    images: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Source:
    """The dataset that pseudo-labels are made for.

    Attributes:
        name: Of the dataset.
        raw: Its folder in ``nnUNet_raw``.
        dataset_json: Content of its dataset.json.
        true: Cases with true labels.
        splits: ``"train"`` and ``"val"`` of each fold, true labels alone; empty where there is no file of them.
        scans: Scans that get pseudo-labels: case -> image files.
        others: Further unlabelled scans, which are left as they are.
        failures: Scan -> why it cannot be used.
        record: Where the labels of the dataset came from, empty where all are true.
        changed: Scans that got pseudo-labels in an earlier cycle, and are other images now.
    """

    name: str
    raw: Path
    dataset_json: dict[str, Any]
    true: dict[str, TrueCase]
    splits: list[dict[str, list[str]]]
    scans: dict[str, tuple[str, ...]]
    others: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)


def find_source(dataset: str | int, preprocessed_root: Path, folder: Path | None = None) -> Source:
    """Find true labels, splits and scans of a dataset; no file of a label is opened.

    Args:
        dataset: Dataset number or name.
        preprocessed_root: Folder ``nnUNet_preprocessed``.
        folder: Folder of the scans that get pseudo-labels; None takes the unlabelled ones of the dataset: those of
            ``imagesUnlabeled`` and ``"unlabeled"``, labelled ones whose labels the splits withhold, and those with
            pseudo-labels of an earlier cycle.

    Raises:
        FileNotFoundError: If there is no dataset, no scan, or a true label is missing.
        ValueError: If dataset.json or the splits are wrong, a fold would be validated with a pseudo-label, or a scan is
            one of the cases with true labels.
    """
    raw = check_raw_dataset(dataset)
    dataset_json, record = load_dataset_json(raw), read_record(raw)
    labelled, wrong = images_and_problems(raw, dataset_json)
    pseudo = pseudo_labelled(record) & labelled.keys()
    splits_file = preprocessed_root / raw.name / SPLITS
    splits = load_splits(splits_file.parent)
    hidden = {name for split in splits for name in split.get("unlabeled", ())}
    _check_splits(splits_file, splits, hidden, pseudo_labelled(record), labelled)
    cases, problems = find_unlabeled_cases(raw, dataset_json, hidden)
    unlabelled = {name: case.images for name, case in cases.items()} | {name: labelled[name] for name in pseudo}
    failures = {failure.case: failure.reason for failure in problems}
    true = {
        name: TrueCase(images, _label_of(raw, dataset_json, name))
        for name, images in labelled.items()
        if name not in hidden | pseudo
    }
    _check_true(raw, true, {name: what for name, what in wrong.items() if name not in hidden | pseudo})
    scans, others = dict(sorted(unlabelled.items())), {}
    if folder is not None:
        scans, failures = _scans_of_folder(folder, dataset_json)
        others = {name: images for name, images in unlabelled.items() if name not in scans}
        _refuse_two_of_a_name(folder, scans, unlabelled)
    if not scans and not failures:
        raise FileNotFoundError(f"{raw.name} has no unlabelled scan. {where_looked(raw)} Or name a folder with -i.")
    _refuse_true_cases(scans, true)
    kept = [{key: [n for n in split[key] if n not in pseudo] for key in ("train", "val")} for split in splits]
    changed = changed_scans(record, scans)
    return Source(raw.name, raw, dataset_json, true, kept, scans, others, failures, record, changed)


def _check_splits(
    file: Path,
    splits: list[dict[str, Any]],
    hidden: set[str],
    pseudo: set[str],
    labelled: Mapping[str, Any],
) -> None:
    for fold, split in enumerate(splits):
        where = f"{file}, fold {fold}"
        for key in ("train", "val"):
            if not split.get(key):
                raise ValueError(f"{where}: the list {key!r} is missing or empty; add labelled cases to it")
            unknown = sorted(set(split[key]) - labelled.keys())
            if unknown:
                raise ValueError(f"{where}: {key!r} names {_named(unknown)}, no labelled case(s); correct the names")
            seen = sorted(set(split[key]) & hidden)
            if seen:
                raise ValueError(
                    f"{where}: {key!r} names {_named(seen)}, whose labels another list 'unlabeled' withholds. A case "
                    "has a true label or a pseudo-label, the same in all folds: remove the other folds"
                )
        wrong = sorted(set(split["val"]) & pseudo)
        if wrong:
            raise ValueError(
                f"{where}: 'val' names {_named(wrong)} with pseudo-labels (pseudo_labels.json of the dataset), "
                "expected true labels alone: a network would be measured by what networks say. Remove them from 'val'"
            )


def _label_of(raw: Path, dataset_json: dict[str, Any], name: str) -> str:
    if "dataset" in dataset_json:
        return resolved(raw, dataset_json["dataset"][name]["label"])
    return str(raw / "labelsTr" / f"{name}{dataset_json['file_ending']}")


def _check_true(raw: Path, true: Mapping[str, TrueCase], wrong: Mapping[str, str]) -> None:
    for name, what in wrong.items():  # or the new dataset would lack the case, and nobody would be told
        raise FileNotFoundError(f"the labelled case {name} cannot be used: {what} Mend it, or remove the case")
    if not true:
        raise ValueError(
            f"{raw.name} has no case with a true label, without which nothing can be validated; add labelled cases"
        )
    for name, case in true.items():
        problem = file_problem(case.label)
        if problem is not None:
            raise FileNotFoundError(f"the label of {name}: {problem}")


def _scans_of_folder(folder: Path, dataset_json: dict[str, Any]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    found, failures = list_inputs(folder, dataset_json["file_ending"])
    ending, scans = dataset_json["file_ending"], {}
    for images in found:
        name = os.path.basename(images[0])[: -len(ending) - len("_0000")]
        problem = name_problem(name)
        numbered = [f"_{number:04d}{ending}" for number in range(len(images))]
        in_order = all(image.endswith(end) for image, end in zip(images, numbered, strict=True))
        if problem is None and not (in_order and len(images) in numbers_of_files(dataset_json)):
            problem = channel_files_message(tuple(images), number_of_channels(dataset_json), ending, "dataset.json")
        if problem is None:
            scans[name] = tuple(os.path.abspath(image) for image in images)
        else:
            failures[name] = problem
    return scans, failures


def _refuse_two_of_a_name(
    folder: Path, scans: Mapping[str, tuple[str, ...]], unlabelled: Mapping[str, tuple[str, ...]]
) -> None:
    for name in scans.keys() & unlabelled.keys():
        if not _same_file(scans[name][0], unlabelled[name][0]):
            raise ValueError(
                f"{name} of {folder} is called as an unlabelled scan of the dataset, {unlabelled[name][0]}, and is "
                "another file; rename one of them"
            )


def _refuse_true_cases(scans: Mapping[str, tuple[str, ...]], true: Mapping[str, TrueCase]) -> None:
    """A pseudo-label of a case that is validated with would teach what is measured."""
    by_size: dict[int, list[str]] = {}
    for name, case in true.items():
        by_size.setdefault(_size(case.images[0]), []).append(name)
    for scan, images in scans.items():
        if scan in true:
            raise ValueError(
                f"{scan} ({images[0]}) is called as a labelled case, with which folds are validated, so that it gets "
                "no pseudo-label; remove or rename it"
            )
        for name in by_size.get(_size(images[0]), ()):
            if _same_file(images[0], true[name].images[0]) or _same_content(images[0], true[name].images[0]):
                raise ValueError(
                    f"{images[0]} is the image of the labelled case {name}, with which folds are validated, so that it "
                    "gets no pseudo-label; remove it"
                )


def _size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except OSError:  # is found and named where the scan is read
        return -1


def _same_file(first: str, second: str) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


def _same_content(first: str, second: str) -> bool:
    """Whether two files of one size are alike at their beginning, middle and end."""
    size = _size(first)
    if size < 0:
        return False
    with open(first, "rb") as one, open(second, "rb") as two:
        for place in (0, max(0, size // 2), max(0, size - _SAMPLE)):
            one.seek(place)
            two.seek(place)
            if one.read(_SAMPLE) != two.read(_SAMPLE):
                return False
    return True


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
