"""Datasets without a labelled case, as nnU-Net's code can be handed them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunet_ext.data.dataset_json import FILE, check_dataset_json, load_dataset_json
from nnunet_ext.data.unlabeled import FOLDER, KEY, find_unlabeled_cases


class _WithoutLabel(dict):
    """The files of an unlabelled case; whoever asks for the label gets told what to use instead."""

    def __missing__(self, key: str) -> Any:
        if key != "label":
            raise KeyError(key)
        raise ValueError(
            "this dataset has no labels, so the fingerprint extractors, preprocessors and trainers of nnU-Net cannot "
            "use it. Use -fpe GlobalIntensityFingerprintExtractor and -pl SemiSupervisedPlanner (or "
            "SemiSupervisedPlannerResEncM, L, XL), or provide imagesTr and labelsTr."
        )


class UnlabelledOnly(dict):
    """Takes the place of nnU-Net's ``{case: {"images", "label"}}`` for a dataset without a labelled case.

    ``keys()`` and items are the unlabelled cases, because nnU-Net takes the first of them as an example of the images.
    Iterating gives nothing, because what nnU-Net iterates for, copying and checking labels, there is none of.
    """

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the labelled cases, of which there is none."""
        return iter(())


def unlabelled_only(raw_folder: str | Path, dataset_json: dict[str, Any] | None = None) -> UnlabelledOnly | None:
    """Return the unlabelled cases of a dataset that has no labelled one, and None for every other dataset.

    Args:
        raw_folder: The dataset's folder in ``nnUNet_raw``.
        dataset_json: The dataset's dataset.json; None reads it.
    """
    raw_folder = Path(raw_folder)
    if dataset_json is None or KEY not in dataset_json:
        # A copy that lies elsewhere may come without the paths.
        if not (raw_folder / FILE).is_file():
            return None
        dataset_json = load_dataset_json(raw_folder)
    if not (raw_folder / FOLDER).is_dir() and not dataset_json.get(KEY):
        return None
    if dataset_json.get("dataset") or "file_ending" not in dataset_json:
        return None
    check_dataset_json(raw_folder, dataset_json)
    folder = raw_folder / "imagesTr"
    if folder.is_dir() and any(entry.endswith(dataset_json["file_ending"]) for entry in os.listdir(folder)):
        return None
    cases, _ = find_unlabeled_cases(raw_folder, dataset_json)
    if not cases:
        return None
    return UnlabelledOnly({name: _WithoutLabel(images=list(case.images)) for name, case in cases.items()})


def labelled_cases(dataset: dict[str, Any]) -> dict[str, Any]:
    """Return the labelled cases of what nnU-Net calls the dataset: none where it has unlabelled ones only."""
    return {} if isinstance(dataset, UnlabelledOnly) else dataset
