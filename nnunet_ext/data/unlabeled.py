"""Where unlabelled cases lie: ``imagesUnlabeled/`` and the key ``"unlabeled"`` of dataset.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.data.failures import LABELLED, UNLABELLED, Failure

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


def load_dataset_json(raw_folder: str | Path) -> dict[str, Any]:
    """Read a dataset.json.

    Raises:
        ValueError: If a name occurs twice in it; JSON would silently keep the last.
    """
    path = Path(raw_folder) / "dataset.json"

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"{path} has {twice[:5]} more than once; names must be unique, rename or remove one")
        return found

    return json.loads(path.read_text(), object_pairs_hook=refuse_duplicates)


def numbers_of_files(dataset_json: dict[str, Any]) -> tuple[int, ...]:
    """Return how many image files a case may have: one a channel, or one with all of them where nnU-Net reads RGB."""
    channels = len(channel_names(dataset_json))
    return (channels, 1) if dataset_json["file_ending"].lower() in (".png", ".bmp", ".tif") else (channels,)


def stray_files(folder: Path, dataset_json: dict[str, Any]) -> list[str]:
    """Return the files of a folder that have the dataset's ending but no channel suffix."""
    ending = dataset_json["file_ending"]
    pattern = re.compile(r".+_\d{4}" + re.escape(ending))
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [name for name in names if name.endswith(ending) and not pattern.fullmatch(name)]


def without_strays(
    raw_folder: Path, dataset_json: dict[str, Any], labelled: dict[str, Any], stage: str
) -> tuple[dict[str, Any], list[Failure]]:
    """Take the cases without images, which nnU-Net makes of files without channel suffix, out of the labelled ones.

    Args:
        raw_folder: The dataset's folder in ``nnUNet_raw``.
        dataset_json: Its dataset.json.
        labelled: The labelled cases as nnU-Net lists them.
        stage: For the failures.

    Returns:
        The cases that have images, and one failure a stray file.
    """
    if not labelled or "dataset" in dataset_json:
        return labelled, []
    folder = raw_folder / "imagesTr"
    reason = f"has no channel suffix; expected CASE_0000{dataset_json['file_ending']}."
    failures = [
        Failure(name, LABELLED, f"{folder / name} {reason}", stage) for name in stray_files(folder, dataset_json)
    ]
    return {name: files for name, files in labelled.items() if files["images"]}, failures


def check_dataset_json(raw_folder: str | Path, dataset_json: dict[str, Any]) -> None:
    """Check that dataset.json has what nnU-Net cannot do without.

    Raises:
        ValueError: Names the key that is missing.
    """
    for key, meaning in (("file_ending", '".nii.gz", for example'), ("labels", '{"background": 0, "organ": 1, ...}')):
        if key not in dataset_json:
            raise ValueError(f"{Path(raw_folder) / 'dataset.json'} has no {key!r}; add it: {meaning}")
    if not isinstance(dataset_json.get("channel_names", dataset_json.get("modality")), dict):
        raise ValueError(
            f'{Path(raw_folder) / "dataset.json"} has no \'channel_names\'; add it: {{"0": "CT"}}, for example'
        )


def number_of_channels(dataset_json: dict[str, Any]) -> int:
    """Return the number of image channels that dataset.json declares."""
    return len(channel_names(dataset_json))


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """Return the names of the image channels, in the order of nnU-Net (that of the file)."""
    names = dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"]
    return [str(name) for name in names.values()]


def labelled_images(raw_folder: str | Path, dataset_json: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the image files of every labelled case by name; the labels are neither named nor read."""
    raw_folder = Path(raw_folder)
    if "dataset" in dataset_json:
        return {
            name: tuple(_resolve(raw_folder, image) for image in entry["images"])
            for name, entry in dataset_json["dataset"].items()
        }
    folder = raw_folder / "imagesTr"
    if not folder.is_dir():
        return {}
    cases, _ = _cases_of_folder(folder, dataset_json)
    return {name: case.images for name, case in cases.items()}


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
    labelled = labelled_images(raw_folder, dataset_json)
    _refuse_duplicates(cases, listed, labelled, raw_folder)
    cases.update(listed)
    for name in hidden:
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
        problem = name_problem(name)
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
        if not isinstance(files, list):
            problem = problem or f'dataset.json gives {entry!r:.80} for it, expected {{"images": [...]}}.'
            files = []
        images = tuple(_resolve(raw_folder, image) for image in files)
        wrong = [image for image in images if not image.endswith(ending)]
        missing = [image for image in images if not os.path.isfile(image)]
        if problem is None and len(images) not in numbers_of_files(dataset_json):
            problem = f"dataset.json gives {len(images)} image(s) for it, expected {channels} (one a channel)."
        if problem is None and wrong:
            problem = f"{wrong[0]} does not end in {ending!r}, the file ending of this dataset. Convert it."
        if problem is None and missing:
            problem = f"{missing[0]} does not exist. Correct the path in dataset.json."
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
