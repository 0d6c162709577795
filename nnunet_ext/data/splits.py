"""The split of a training, and its third list: labelled cases that are used without their labels."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnunet_ext.files import read_json

FILE = "splits_final.json"
LISTS = ("train", "val", "unlabeled")
_REMEDY = 'write it as [{"train": ["CASE", ...], "val": [...]}, ...], or remove it: nnU-Net then makes one'
_NAMED = 5  # cases named in an error; the others are counted


def load_splits(preprocessed_folder: str | Path) -> list[dict[str, Any]]:
    """Return the splits of a preprocessed dataset, or an empty list if it has none yet.

    Raises:
        ValueError: If the file is no JSON, or no list of splits; names the file and the place in it.
    """
    file = Path(preprocessed_folder) / FILE
    if not file.is_file():
        return []
    splits: list[dict[str, Any]] = read_json(file, _REMEDY, list)
    for fold, split in enumerate(splits):
        if not isinstance(split, dict):
            raise ValueError(f"{file}, fold {fold}: got {split!r:.60}, expected an object with lists; {_REMEDY}")
        for key in LISTS:
            names = split.get(key, [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{file}, fold {fold}: {key!r} is {names!r:.60}, expected a list of names; {_REMEDY}")
    return splits


def hidden_cases(preprocessed_folder: str | Path) -> list[str]:
    """Return the labelled cases that any split lists under ``"unlabeled"``, sorted."""
    return sorted({name for split in load_splits(preprocessed_folder) for name in split.get("unlabeled", ())})


def hidden_cases_of_fold(preprocessed_folder: str | Path, fold: int | str) -> list[str]:
    """Return the labelled cases whose labels a semi-supervised trainer must not see in this fold.

    Args:
        preprocessed_folder: The dataset's folder in ``nnUNet_preprocessed``.
        fold: Fold number, or ``"all"``.

    Raises:
        ValueError: If any split has the list, and the fold is ``"all"`` or has no split, or its lists overlap.
    """
    splits = load_splits(preprocessed_folder)
    if not any("unlabeled" in split for split in splits):
        return []
    where = Path(preprocessed_folder) / FILE
    if not isinstance(fold, int) or fold >= len(splits):
        raise ValueError(
            f"{where} withholds labels (a list 'unlabeled'), but fold {fold} has no split of its own in it: with it, "
            f"withheld labels would be used. Choose a fold from 0 to {len(splits) - 1}."
        )
    lists = {key: set(splits[fold].get(key, ())) for key in LISTS}
    for first, second in (("train", "val"), ("train", "unlabeled"), ("val", "unlabeled")):
        both = sorted(lists[first] & lists[second])
        if both:
            raise ValueError(
                f"{where}, fold {fold}: {both[:5]} is in {first!r} and in {second!r}; the three lists must be disjoint"
            )
    return sorted(lists["unlabeled"])


def check_splits(preprocessed_folder: str | Path, fold: int | str, labelled: Iterable[str]) -> dict[str, Any] | None:
    """Check the split that a trainer is about to use; nnU-Net notices what is wrong in its loaders, or never.

    Args:
        preprocessed_folder: The dataset's folder in ``nnUNet_preprocessed``.
        fold: Fold number, or ``"all"``, which uses no split.
        labelled: Names of the preprocessed labelled cases.

    Returns:
        The split of the fold, None where nnU-Net draws one of its own, or uses none.

    Raises:
        ValueError: If the file is no list of splits, or the fold's lists are missing, empty, or name a case that is
            not preprocessed; names the file, fold and case.
    """
    splits = load_splits(preprocessed_folder)
    if not isinstance(fold, int) or fold >= len(splits):
        return None
    where = f"{Path(preprocessed_folder) / FILE}, fold {fold}"
    known = set(labelled)
    for key, use in (("train", "train on"), ("val", "validate with")):
        names = splits[fold].get(key)
        if not names:
            got = "is missing" if names is None else "is empty"
            raise ValueError(f"{where}: the list {key!r} {got}, so there is no case to {use}; add labelled cases to it")
        unknown = sorted(set(names) - known)
        if unknown:
            more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
            raise ValueError(
                f"{where}: {key!r} names {', '.join(unknown[:_NAMED])}{more}, not among the {len(known)} preprocessed "
                "labelled cases; correct the names, or preprocess (and mend) these cases first"
            )
    split: dict[str, Any] = splits[fold]
    return split
