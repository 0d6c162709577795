"""Where unlabelled cases lie: ``imagesUnlabeled/`` and the key ``"unlabeled"`` of dataset.json."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.data.completeness import holds_channels
from nnunet_ext.data.dataset_json import (
    channel_names,
    check_dataset_json,
    load_dataset_json,
    number_of_channels,
    numbers_of_files,
)
from nnunet_ext.data.failures import LABELLED, UNLABELLED, Failure

__all__ = [
    "FOLDER",
    "KEY",
    "UnlabeledCase",
    "UnlabelledOnly",
    "channel_names",
    "check_dataset_json",
    "check_raw_dataset",
    "file_problem",
    "find_unlabeled_cases",
    "labelled_cases",
    "labelled_images",
    "load_dataset_json",
    "name_problem",
    "number_of_channels",
    "numbers_of_files",
    "raw_dataset_folder",
    "stray_files",
    "unlabelled_only",
    "usable_labelled",
    "where_looked",
]

FOLDER = "imagesUnlabeled"
KEY = "unlabeled"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class UnlabeledCase:
    """One unlabelled case.

    Attributes:
        name: Case name.
        images: One file a channel, in the order of the channels.
        hidden_label: True if the case is a labelled one whose label ``splits_final.json`` withholds.
    """

    name: str
    images: tuple[str, ...]
    hidden_label: bool = False


def name_problem(name: str) -> str | None:
    """Return why ``name`` cannot be a case name, or None if it can."""
    if not _NAME.fullmatch(name):
        return (
            f"{name!r} is not a valid case name; expected a letter or digit followed by letters, digits, '.', '_' "
            "or '-'. Rename it."
        )
    if name.endswith("_seg"):
        return f"the case name {name!r} ends in '_seg', which nnU-Net reserves for segmentations. Rename it."
    return None


def stray_files(folder: Path, dataset_json: dict[str, Any]) -> list[str]:
    """Return the files of a folder that have the dataset's ending but no channel suffix."""
    ending = dataset_json["file_ending"]
    pattern = re.compile(r".+_\d{4}" + re.escape(ending))
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [name for name in names if name.endswith(ending) and not pattern.fullmatch(name)]


def file_problem(path: str | Path) -> str | None:
    """Return why a path cannot be read as a file, or None; opening a named pipe would wait for ever."""
    if os.path.isfile(path):
        return None
    if os.path.islink(path) and not os.path.exists(path):
        return f"{path} is a link to {os.readlink(path)}, which does not exist; restore that file, or remove the link"
    if not os.path.exists(path):
        return f"{path} does not exist; add it or remove the case"
    if os.path.isdir(path):
        return f"{path} is a folder, expected a file; replace or remove it"
    return f"{path} is no regular file but a pipe, a socket or a device, expected a file; replace or remove it"


def usable_labelled(
    raw_folder: Path, dataset_json: dict[str, Any], labelled: dict[str, Any], stage: str
) -> tuple[dict[str, Any], list[Failure]]:
    """Take the cases that cannot be read out of the labelled ones.

    These are cases without images, which nnU-Net makes of files without channel suffix; cases that lack a channel; and
    those with something that is no regular file, which nnU-Net passes over in silence, or waits for.

    Args:
        raw_folder: The dataset's folder in ``nnUNet_raw``.
        dataset_json: Its dataset.json.
        labelled: The labelled cases as nnU-Net lists them.
        stage: For the failures.

    Returns:
        The other cases, and one failure a case or stray file.
    """
    problems: dict[str, str] = {}
    folder = raw_folder / "imagesTr"
    if "dataset" not in dataset_json and folder.is_dir():
        ending = dataset_json["file_ending"]
        for name in stray_files(folder, dataset_json):
            problems[name] = f"{folder / name} has no channel suffix; expected CASE_0000{ending}."
        problems |= _no_files(folder, ending)
    usable = {}
    for name, files in labelled.items():
        if name.startswith("."):  # notes of macOS beside the files
            continue
        number = len(files["images"])
        problem = next(filter(None, map(file_problem, [*files["images"], files["label"]])), None)
        fits = number in numbers_of_files(dataset_json) or (
            number == 1 and holds_channels(files["images"][0], number_of_channels(dataset_json))
        )
        if problem is None and not fits:
            expected = f"expected {number_of_channels(dataset_json)}: CASE_0000 and so on."
            problem = f"{number} image file(s) {list(files['images'])[:3]}, {expected}"
        if problem is None:
            usable[name] = files
        elif number:
            problems.setdefault(name, problem)
    return usable, [Failure(name, LABELLED, problem, stage) for name, problem in problems.items()]


def _no_files(folder: Path, ending: str) -> dict[str, str]:
    """Return what is wrong with the entries of a folder that are called as images are, but are no files, by case."""
    problems = {}
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(ending))
    for entry in sorted(entry for entry in os.listdir(folder) if not entry.startswith(".")):
        match, problem = pattern.fullmatch(entry), file_problem(folder / entry)
        if match and problem:
            problems[match[1]] = problem
    return problems


def labelled_images(raw_folder: str | Path, dataset_json: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the image files of every labelled case by name; the labels are neither named nor read."""
    return _labelled(Path(raw_folder), dataset_json)[0]


def _labelled(raw_folder: Path, dataset_json: dict[str, Any]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return the image files of the labelled cases, and what is wrong with those of which no case can be made."""
    if "dataset" in dataset_json:
        images = {
            name: tuple(_resolve(raw_folder, image) for image in entry["images"])
            for name, entry in dataset_json["dataset"].items()
        }
        problems = {name: next(filter(None, map(file_problem, files)), None) for name, files in images.items()}
        return images, {name: problem for name, problem in problems.items() if problem is not None}
    folder = raw_folder / "imagesTr"
    if not folder.is_dir():
        return {}, {}
    cases, failures = _cases_of_folder(folder, dataset_json)
    return {name: case.images for name, case in cases.items()}, {failure.case: failure.reason for failure in failures}


def find_unlabeled_cases(
    raw_folder: str | Path, dataset_json: dict[str, Any], hidden: Iterable[str] = ()
) -> tuple[dict[str, UnlabeledCase], list[Failure]]:
    """Find the unlabelled cases of a dataset.

    Args:
        raw_folder: The dataset's folder in ``nnUNet_raw``.
        dataset_json: Its dataset.json.
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
        cases, failures = _cases_of_folder(raw_folder / FOLDER, dataset_json)
    listed, more = _cases_of_json(raw_folder, dataset_json)
    failures += more
    labelled, problems = _labelled(raw_folder, dataset_json)
    _refuse_duplicates(cases, listed, labelled, raw_folder)
    cases.update(listed)
    for name in hidden:
        if name in problems:
            failures.append(Failure(name, UNLABELLED, problems[name]))
            continue
        if name not in labelled:
            raise ValueError(
                f"splits_final.json lists {name!r} under 'unlabeled', but there is no such case among the labelled "
                f"ones of {raw_folder}. Correct the name in splits_final.json."
            )
        cases[name] = UnlabeledCase(name, labelled[name], hidden_label=True)
    return dict(sorted(cases.items())), failures


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


def raw_dataset_folder(dataset_name: str) -> Path:
    """Return the folder of a dataset in ``nnUNet_raw``.

    Raises:
        FileNotFoundError: If it has no dataset.json.
    """
    from nnunetv2.paths import nnUNet_raw

    folder = Path(str(nnUNet_raw)) / dataset_name
    if not (folder / "dataset.json").is_file():
        raise FileNotFoundError(f"{folder / 'dataset.json'} does not exist; set nnUNet_raw, or name another dataset")
    return folder


def check_raw_dataset(dataset_name_or_id: str | int) -> Path:
    """Return the folder of a dataset in ``nnUNet_raw`` once its dataset.json is found to be right.

    nnU-Net's own classes read the file before ours can, and say nothing helpful of it.

    Raises:
        FileNotFoundError: If there is no dataset.json.
        ValueError: If it is no JSON, or something in it is wrong; names the key.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    folder = raw_dataset_folder(maybe_convert_to_dataset_name(dataset_name_or_id))
    check_dataset_json(folder, load_dataset_json(folder))
    return folder


def unlabelled_only(raw_folder: str | Path, dataset_json: dict[str, Any] | None = None) -> UnlabelledOnly | None:
    """Return the unlabelled cases of a dataset that has no labelled one, and None for every other dataset.

    Args:
        raw_folder: The dataset's folder in ``nnUNet_raw``.
        dataset_json: Its dataset.json; None reads it.
    """
    raw_folder = Path(raw_folder)
    if dataset_json is None or KEY not in dataset_json:
        # A copy that lies elsewhere may come without the paths.
        if not (raw_folder / "dataset.json").is_file():
            return None
        dataset_json = load_dataset_json(raw_folder)
    if not (raw_folder / FOLDER).is_dir() and not dataset_json.get(KEY):
        return None
    if dataset_json.get("dataset") or "file_ending" not in dataset_json:
        return None
    check_dataset_json(raw_folder, dataset_json)
    folder = raw_folder / "imagesTr"
    if folder.is_dir() and any(e.endswith(dataset_json["file_ending"]) for e in os.listdir(folder)):
        return None
    cases, _ = find_unlabeled_cases(raw_folder, dataset_json)
    if not cases:
        return None
    return UnlabelledOnly({name: _WithoutLabel(images=list(case.images)) for name, case in cases.items()})


def labelled_cases(dataset: dict[str, Any]) -> dict[str, Any]:
    """Return the labelled cases of what nnU-Net calls the dataset: none where it has unlabelled ones only."""
    return {} if isinstance(dataset, UnlabelledOnly) else dataset


def where_looked(raw_folder: str | Path) -> str:
    """Return a sentence that says where unlabelled cases are looked for and how to provide them."""
    return (
        f"Looked in {Path(raw_folder) / FOLDER} and for the key {KEY!r} in {Path(raw_folder) / 'dataset.json'}. "
        f"Provide unlabelled scans as {FOLDER}/CASE_0000.nii.gz (one file a channel, the dataset's file ending), or "
        f'as "{KEY}": {{"CASE": {{"images": ["path_0000.nii.gz"]}}}} in dataset.json.'
    )


def _resolve(raw_folder: Path, path: str) -> str:
    """Expand environment variables; relative paths count from the dataset's folder."""
    return os.path.abspath(os.path.join(raw_folder, os.path.expandvars(path)))


def _cases_of_folder(folder: Path, dataset_json: dict[str, Any]) -> tuple[dict[str, UnlabeledCase], list[Failure]]:
    ending, channels = dataset_json["file_ending"], number_of_channels(dataset_json)
    numbers = numbers_of_files(dataset_json)
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    found: dict[str, dict[int, str]] = {}
    failures = []
    no_files = _no_files(folder, ending)
    for entry in sorted(e for e in os.listdir(folder) if not e.startswith(".")):
        match = pattern.fullmatch(entry)
        if match:
            found.setdefault(match[1], {})[int(match[2])] = str(folder / entry)
        elif entry.endswith(ending):
            failures.append(
                Failure(entry, UNLABELLED, f"{folder / entry} has no channel suffix; expected CASE_0000{ending}.")
            )
        elif re.search(r"_\d{4}\.[A-Za-z.]+$", entry):
            failures.append(
                Failure(
                    entry,
                    UNLABELLED,
                    f"{folder / entry} does not end in {ending!r}, the file ending of this dataset (dataset.json). "
                    "Convert it.",
                )
            )
    cases = {}
    for name, files in found.items():
        problem = name_problem(name) or no_files.get(name)
        if problem is None and not (sorted(files) == list(range(len(files))) and len(files) in numbers):
            problem = (
                f"{folder / name}: found channels {sorted(files)}, expected {list(range(channels))} "
                f"({channels} channel(s) in dataset.json). Add the missing files or remove the surplus."
            )
        if problem is None:
            cases[name] = UnlabeledCase(name, tuple(files[c] for c in sorted(files)))
        else:
            failures.append(Failure(name, UNLABELLED, problem))
    return cases, failures


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
        images = tuple(_resolve(raw_folder, image) for image in files)
        wrong = [image for image in images if not image.endswith(ending)]
        missing = [image for image in images if not os.path.exists(image) and not os.path.islink(image)]
        no_file = next(filter(None, map(file_problem, images)), None)
        if problem is None and len(images) not in numbers_of_files(dataset_json):
            problem = f"dataset.json gives {len(images)} image(s) for it, expected {channels} (one a channel)."
        if problem is None and wrong:
            problem = f"{wrong[0]} does not end in {ending!r}, the file ending of this dataset. Convert it."
        if problem is None and missing:
            problem = f"{missing[0]} does not exist. Correct the path in dataset.json."
        problem = problem or no_file
        if problem is None:
            cases[name] = UnlabeledCase(name, images)
        else:
            failures.append(Failure(name, UNLABELLED, problem))
    return cases, failures


def _refuse_duplicates(
    cases: dict[str, UnlabeledCase], listed: dict[str, UnlabeledCase], labelled: dict[str, Any], raw_folder: Path
) -> None:
    twice = sorted(cases.keys() & listed.keys())
    if twice:
        raise ValueError(
            f"unlabelled case names must be unique, but {twice[:5]} lie(s) in {raw_folder / FOLDER} and is listed "
            f"under {KEY!r} in dataset.json as well. Remove one of the two."
        )
    both = sorted((cases.keys() | listed.keys()) & labelled.keys())
    if both:
        raise ValueError(
            f"{both[:5]} is a labelled case (imagesTr) and an unlabelled one at once. Rename or remove the unlabelled "
            "one; to train without the label of a labelled case, list it under 'unlabeled' in splits_final.json."
        )
