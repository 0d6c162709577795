"""The third list of splits_final.json: labelled cases that are used without their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json


def load_splits(preprocessed_folder: str | Path) -> list[dict[str, Any]]:
    """Return the splits of a preprocessed dataset, or an empty list if it has none yet."""
    splits_file = Path(preprocessed_folder) / "splits_final.json"
    return load_json(str(splits_file)) if splits_file.is_file() else []


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
    where = Path(preprocessed_folder) / "splits_final.json"
    if not isinstance(fold, int) or fold >= len(splits):
        raise ValueError(
            f"{where} withholds labels (a list 'unlabeled'), but fold {fold} has no split of its own in it: with it, "
            f"withheld labels would be used. Choose a fold from 0 to {len(splits) - 1}."
        )
    lists = {key: set(splits[fold].get(key, ())) for key in ("train", "val", "unlabeled")}
    for first, second in (("train", "val"), ("train", "unlabeled"), ("val", "unlabeled")):
        both = sorted(lists[first] & lists[second])
        if both:
            raise ValueError(
                f"{where}, fold {fold}: {both[:5]} is in {first!r} and in {second!r}; the three lists must be disjoint"
            )
    return sorted(lists["unlabeled"])
