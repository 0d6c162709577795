"""The phantoms as an nnU-Net raw data set: few labelled cases, many unlabelled ones, labelled test cases."""

from pathlib import Path

import SimpleITK
from tqdm import tqdm

from nnunet_ext import files
from nnunet_ext.demo.phantom import LABELS, make_phantom

DATASET_ID = 901
DATASET_NAME = f"Dataset{DATASET_ID}_PhantomCT"
FILE_ENDING = ".nii.gz"
_FOLDERS = ("imagesTr", "labelsTr", "imagesUnlabeled", "imagesTs", "labelsTs")
# Each group counts from a number of its own, so that a case stays the same when another group grows.
_FIRST_INDEX = {"labeled": 0, "unlabeled": 10_000, "test": 20_000}


def write_dataset(raw_folder: Path, seed: int = 0, labeled: int = 5, unlabeled: int = 40, test: int = 12) -> Path:
    """Write the phantom data set, or what is missing of it.

    A file appears under its name only when it is complete, so a killed run is continued by calling this again.

    Args:
        raw_folder: nnU-Net's ``nnUNet_raw``; the data set becomes a folder in it.
        seed: Seed of the data set; the same seed gives the same patients.
        labeled: Number of cases in ``imagesTr`` and ``labelsTr``.
        unlabeled: Number of cases in ``imagesUnlabeled``.
        test: Number of cases in ``imagesTs`` and ``labelsTs``.

    Returns:
        The folder of the data set.

    Raises:
        ValueError: If the folder holds a phantom data set made with other arguments.
    """
    folder = raw_folder / DATASET_NAME
    for place in (folder, *(folder / name for name in _FOLDERS)):
        files.sweep(place)
    files.remove(folder / "unfinished")  # where killed runs once left what they wrote
    counts = {"labeled": labeled, "unlabeled": unlabeled, "test": test}
    _claim(folder, {"seed": seed, **counts})
    cases = [(group, number) for group, count in counts.items() for number in range(count)]
    for group, number in tqdm(cases, desc="phantoms", unit="case"):
        _write_case(folder, group, number, seed)
    return folder


def _claim(folder: Path, made_with: dict[str, int]) -> None:
    """Write dataset.json first: it records what the cases are made with."""
    path = folder / "dataset.json"
    if path.is_file():
        recorded = files.read_json(path, "remove it: it is written again").get("phantom")
        if recorded != made_with:
            raise ValueError(f"{folder} holds phantoms made with {recorded}, expected {made_with}; use another folder")
        return
    content = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": made_with["labeled"],
        "file_ending": FILE_ENDING,
        "name": DATASET_NAME,
        "description": "Phantoms that look like an abdominal CT, made by nnU-Net extensions. No patient data.",
        "phantom": made_with,
    }
    files.write_json(path, content)


def _write_case(folder: Path, group: str, number: int, seed: int) -> None:
    name = f"{group}_{number:03d}"
    images, labels = {
        "labeled": ("imagesTr", "labelsTr"),
        "unlabeled": ("imagesUnlabeled", None),
        "test": ("imagesTs", "labelsTs"),
    }[group]
    image_path = folder / images / f"{name}_0000{FILE_ENDING}"
    label_path = folder / labels / f"{name}{FILE_ENDING}" if labels else None
    if image_path.is_file() and (label_path is None or label_path.is_file()):
        return
    image, segmentation = make_phantom(seed, _FIRST_INDEX[group] + number).to_images()
    _write_image(image, image_path)
    if label_path:
        _write_image(segmentation, label_path)


def _write_image(image: SimpleITK.Image, path: Path) -> None:
    # nnU-Net takes every file with the right ending for a case, so an unfinished one lies in a folder of its own
    with files.whole_files(path.parent) as folder:
        SimpleITK.WriteImage(image, str(folder / path.name))
