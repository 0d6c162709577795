"""Copies of the labels, with which nnU-Net validates."""

from __future__ import annotations

import shutil
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_ext.data.failures import LABELLED, Failure, record
from nnunet_ext.data.unlabeled import labelled_cases, load_dataset_json

OUR_PREPROCESSORS = ("SemiSupervisedPreprocessor",)


def copy_what_is_there(dataset_name_or_id: int | str, plans_identifier: str) -> bool:
    """Copy the labels of plans of ours where one is missing, and record the missing ones as failures.

    Args:
        dataset_name_or_id: Dataset name or number.
        plans_identifier: Name of the plans, without ``.json``.

    Returns:
        False if the plans are not ours or no label is missing: then something else is wrong.
    """
    name = maybe_convert_to_dataset_name(dataset_name_or_id)
    raw, preprocessed = Path(str(nnUNet_raw)) / name, Path(str(nnUNet_preprocessed)) / name
    plans_file = preprocessed / f"{plans_identifier}.json"
    if not plans_file.is_file():
        return False
    configurations = load_json(str(plans_file))["configurations"].values()
    if not any(configuration.get("preprocessor_name") in OUR_PREPROCESSORS for configuration in configurations):
        return False
    dataset_json = load_dataset_json(raw)
    labelled = labelled_cases(get_filenames_of_train_images_and_targets(str(raw), dataset_json))
    # A case without images is what nnU-Net makes of a file without channel suffix; the preprocessor has named it.
    labels = {case: Path(files["label"]) for case, files in labelled.items() if files["images"]}
    missing = [case for case, label in labels.items() if not label.is_file()]
    if not missing and len(labels) == len(labelled):
        return False
    folder = preprocessed / "gt_segmentations"
    folder.mkdir(exist_ok=True)
    for case, label in labels.items():
        target = folder / f"{case}{dataset_json['file_ending']}"
        if case not in missing and (not target.is_file() or target.stat().st_mtime < label.stat().st_mtime):
            shutil.copy2(label, target)
    reason = "does not exist; add it or remove the case"
    record([Failure(case, LABELLED, f"{labels[case]} {reason}", "labels") for case in missing])
    return True
