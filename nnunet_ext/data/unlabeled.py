"""Where unlabelled cases lie: ``imagesUnlabeled/`` and the key ``"unlabeled"`` of dataset.json."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.data.case_files import cases_of_folder, file_problem, name_problem, resolved
from nnunet_ext.data.dataset_json import check_dataset_json, number_of_channels, numbers_of_files
from nnunet_ext.data.failures import UNLABELLED, Failure
from nnunet_ext.data.labelled import images_and_problems

FOLDER = "imagesUnlabeled"
KEY = "unlabeled"


@dataclass(frozen=True)
class UnlabeledCase:
    """One unlabelled case.

    Attributes:
        name: Case name.
        images: Image files, one a channel, in the order of the channels.
        hidden_label: True if the case is a labelled one whose label ``splits_final.json`` withholds.
    """

    name: str
    images: tuple[str, ...]
    hidden_label: bool = False


def find_unlabeled_cases(
    raw_folder: str | Path, dataset_json: dict[str, Any], hidden: Iterable[str] = ()
) -> tuple[dict[str, UnlabeledCase], list[Failure]]:
    """Find the unlabelled cases of a dataset.

    Args:
        raw_folder: The dataset's folder in ``nnUNet_raw``.
        dataset_json: The dataset's dataset.json.
        hidden: Names of labelled cases that are to be used without their labels (``"unlabeled"`` of a split).

    Returns:
        The cases by name, sorted, and a failure for every file or entry that could not be used.

    Raises:
        ValueError: If a name occurs twice, or among the labelled cases as well, or a hidden case does not exist.
    """
    raw_folder = Path(raw_folder)
    check_dataset_json(raw_folder, dataset_json)
    cases: dict[str, UnlabeledCase] = {}
    failures: list[Failure] = []
    if (raw_folder / FOLDER).is_dir():
        files, problems = cases_of_folder(raw_folder / FOLDER, dataset_json)
        cases = {name: UnlabeledCase(name, images) for name, images in files.items()}
        failures = [Failure(name, UNLABELLED, problem) for name, problem in problems]
    listed, more = _cases_of_json(raw_folder, dataset_json)
    failures += more
    labelled, unusable = images_and_problems(raw_folder, dataset_json)
    _refuse_duplicates(cases, listed, labelled, raw_folder)
    cases.update(listed)
    for name in hidden:
        if name in unusable:
            failures.append(Failure(name, UNLABELLED, unusable[name]))
            continue
        if name not in labelled:
            raise ValueError(
                f"splits_final.json lists {name!r} under 'unlabeled', but there is no such case among the labelled "
                f"ones of {raw_folder}. Correct the name in splits_final.json."
            )
        cases[name] = UnlabeledCase(name, labelled[name], hidden_label=True)
    return dict(sorted(cases.items())), failures


def where_looked(raw_folder: str | Path) -> str:
    """Return a sentence that says where unlabelled cases are looked for and how to provide them."""
    return (
        f"Looked in {Path(raw_folder) / FOLDER} and for the key {KEY!r} in {Path(raw_folder) / 'dataset.json'}. "
        f"Provide unlabelled scans as {FOLDER}/CASE_0000.nii.gz (one file a channel, the dataset's file ending), or "
        f'as "{KEY}": {{"CASE": {{"images": ["path_0000.nii.gz"]}}}} in dataset.json.'
    )


def _cases_of_json(raw_folder: Path, dataset_json: dict[str, Any]) -> tuple[dict[str, UnlabeledCase], list[Failure]]:
    ending, channels = dataset_json["file_ending"], number_of_channels(dataset_json)
    cases, failures = {}, []
    listed = dataset_json.get(KEY, {})
    if not isinstance(listed, dict):
        raise ValueError(f'{KEY!r} in dataset.json must map case names to {{"images": [...]}}, got {listed!r:.80}')
    for name, entry in listed.items():
        problem = name_problem(name)
        files = entry.get("images", []) if isinstance(entry, dict) else None
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            problem = problem or f'dataset.json gives {entry!r:.80} for it, expected {{"images": [...]}}.'
            files = []
        images = tuple(resolved(raw_folder, image) for image in files)
        other_endings = [image for image in images if not image.endswith(ending)]
        missing_files = [image for image in images if not os.path.exists(image) and not os.path.islink(image)]
        file_error = next(filter(None, map(file_problem, images)), None)
        if problem is None and len(images) not in numbers_of_files(dataset_json):
            problem = f"dataset.json gives {len(images)} image(s) for it, expected {channels} (one a channel)."
        if problem is None and other_endings:
            problem = f"{other_endings[0]} does not end in {ending!r}, the file ending of this dataset. Convert it."
        if problem is None and missing_files:
            problem = f"{missing_files[0]} does not exist. Correct the path in dataset.json."
        problem = problem or file_error
        if problem is None:
            cases[name] = UnlabeledCase(name, images)
        else:
            failures.append(Failure(name, UNLABELLED, problem))
    return cases, failures


def _refuse_duplicates(
    cases: dict[str, UnlabeledCase], listed: dict[str, UnlabeledCase], labelled: dict[str, Any], raw_folder: Path
) -> None:
    duplicates = sorted(cases.keys() & listed.keys())
    if duplicates:
        raise ValueError(
            f"unlabelled case names must be unique, but {duplicates[:5]} lie(s) in {raw_folder / FOLDER} and is listed "
            f"under {KEY!r} in dataset.json as well. Remove one of the two."
        )
    in_both = sorted((cases.keys() | listed.keys()) & labelled.keys())
    if in_both:
        raise ValueError(
            f"{in_both[:5]} is a labelled case (imagesTr) and an unlabelled one at once. Rename or remove the "
            "unlabelled one; to train without the label of a labelled case, list it under 'unlabeled' in "
            "splits_final.json."
        )
