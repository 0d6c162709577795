"""Names of cases and the files they are made of, labelled or not."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from nnunet_ext.data.dataset_json import number_of_channels, numbers_of_files

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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


def stray_files(folder: Path, dataset_json: dict[str, Any]) -> list[str]:
    """Return the files of a folder that have the dataset's ending but no channel suffix."""
    ending = dataset_json["file_ending"]
    pattern = re.compile(r".+_\d{4}" + re.escape(ending))
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [name for name in names if name.endswith(ending) and not pattern.fullmatch(name)]


def entries_that_are_no_files(folder: Path, ending: str) -> dict[str, str]:
    """Return what is wrong with the entries of a folder that are called as images are, but are no files, by case.

    Args:
        folder: Folder of images.
        ending: File ending of the dataset.
    """
    problems = {}
    pattern = re.compile(r"(.+)_\d{4}" + re.escape(ending))
    for entry in sorted(entry for entry in os.listdir(folder) if not entry.startswith(".")):
        match, problem = pattern.fullmatch(entry), file_problem(folder / entry)
        if match and problem:
            problems[match[1]] = problem
    return problems


def resolved(raw_folder: Path, path: str) -> str:
    """Expand environment variables; relative paths count from the dataset's folder.

    Args:
        raw_folder: The dataset's folder in ``nnUNet_raw``.
        path: What dataset.json says.
    """
    return os.path.abspath(os.path.join(raw_folder, os.path.expandvars(path)))


def cases_of_folder(
    folder: Path, dataset_json: dict[str, Any]
) -> tuple[dict[str, tuple[str, ...]], list[tuple[str, str]]]:
    """Return the images of each case of a folder, and what is wrong with the files of which no case can be made.

    Args:
        folder: Folder of images, ``CASE_0000.nii.gz``, one a channel.
        dataset_json: The dataset's dataset.json.

    Returns:
        Images in the order of the channels, by name; and case or file with what is wrong.
    """
    ending, channels = dataset_json["file_ending"], number_of_channels(dataset_json)
    numbers = numbers_of_files(dataset_json)
    pattern = re.compile(r"(.+)_(\d{4})" + re.escape(ending))
    channels_of: dict[str, dict[int, str]] = {}
    problems = []
    no_files = entries_that_are_no_files(folder, ending)
    for entry in sorted(entry for entry in os.listdir(folder) if not entry.startswith(".")):
        match = pattern.fullmatch(entry)
        if match:
            channels_of.setdefault(match[1], {})[int(match[2])] = str(folder / entry)
        elif entry.endswith(ending):
            problems.append((entry, f"{folder / entry} has no channel suffix; expected CASE_0000{ending}."))
        elif re.search(r"_\d{4}\.[A-Za-z.]+$", entry):
            problems.append(
                (
                    entry,
                    f"{folder / entry} does not end in {ending!r}, the file ending of this dataset (dataset.json). "
                    "Convert it.",
                )
            )
    cases = {}
    for name, files in channels_of.items():
        problem = name_problem(name) or no_files.get(name)
        if problem is None and not (sorted(files) == list(range(len(files))) and len(files) in numbers):
            problem = (
                f"{folder / name}: found channels {sorted(files)}, expected {list(range(channels))} "
                f"({channels} channel(s) in dataset.json). Add the missing files or remove the surplus."
            )
        if problem is None:
            cases[name] = tuple(files[channel] for channel in sorted(files))
        else:
            problems.append((name, problem))
    return cases, problems
