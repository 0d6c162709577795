"""Labelled cases of a raw dataset: their images, and those that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ext.data.case_files import cases_of_folder, entries_that_are_no_files, file_problem, resolved, stray_files
from nnunet_ext.data.completeness import holds_channels
from nnunet_ext.data.dataset_json import number_of_channels, numbers_of_files
from nnunet_ext.data.failures import LABELLED, Failure


def usable_labelled(
    raw_folder: Path, dataset_json: dict[str, Any], labelled: dict[str, Any], stage: str
) -> tuple[dict[str, Any], list[Failure]]:
    """Take the cases that cannot be read out of the labelled ones.

    These are cases without images, which nnU-Net makes of files without channel suffix; cases that lack a channel; and
    those with something that is no regular file, which nnU-Net passes over in silence, or waits for.

    Args:
        raw_folder: The dataset's folder in ``nnUNet_raw``.
        dataset_json: The dataset's dataset.json.
        labelled: Labelled cases as nnU-Net lists them.
        stage: Step that is being done, as the failures name it.

    Returns:
        The other cases, and one failure a case or stray file.
    """
    problems: dict[str, str] = {}
    folder = raw_folder / "imagesTr"
    if "dataset" not in dataset_json and folder.is_dir():
        ending = dataset_json["file_ending"]
        for name in stray_files(folder, dataset_json):
            problems[name] = f"{folder / name} has no channel suffix; expected CASE_0000{ending}."
        problems |= entries_that_are_no_files(folder, ending)
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


def labelled_images(raw_folder: str | Path, dataset_json: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the image files of every labelled case by name; the labels are neither named nor read."""
    return images_and_problems(Path(raw_folder), dataset_json)[0]


def images_and_problems(
    raw_folder: Path, dataset_json: dict[str, Any]
) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return the image files of the labelled cases, and what is wrong with those of which no case can be made.

    Args:
        raw_folder: The dataset's folder in ``nnUNet_raw``.
        dataset_json: The dataset's dataset.json.
    """
    if "dataset" in dataset_json:
        images = {
            name: tuple(resolved(raw_folder, image) for image in entry["images"])
            for name, entry in dataset_json["dataset"].items()
        }
        problems = {name: next(filter(None, map(file_problem, files)), None) for name, files in images.items()}
        return images, {name: problem for name, problem in problems.items() if problem is not None}
    folder = raw_folder / "imagesTr"
    if not folder.is_dir():
        return {}, {}
    cases, unusable = cases_of_folder(folder, dataset_json)
    return cases, dict(unusable)
