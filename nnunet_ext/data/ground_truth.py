"""Copies of the labels, with which nnU-Net validates."""

from __future__ import annotations

import shutil
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_ext.data.case_files import file_problem
from nnunet_ext.data.dataset_json import load_dataset_json
from nnunet_ext.data.failures import LABELLED, Failure, record
from nnunet_ext.data.preprocessors import OUR_PREPROCESSORS
from nnunet_ext.data.unlabeled_only import labelled_cases
from nnunet_ext.files import read_json, sweep, whole


def copy_what_is_there(dataset_name_or_id: int | str, plans_identifier: str, complaint: str | None = None) -> bool:
    """Copy the labels of plans of ours where one is missing, and record the missing ones as failures.

    Args:
        dataset_name_or_id: Dataset name or number.
        plans_identifier: Name of the plans, without ``.json``.
        complaint: What nnU-Net said when it stopped; None does not ask.

    Returns:
        False if the plans are not ours, no label is missing, or nnU-Net stopped for another reason.
    """
    name = maybe_convert_to_dataset_name(dataset_name_or_id)
    raw, preprocessed = Path(str(nnUNet_raw)) / name, Path(str(nnUNet_preprocessed)) / name
    plans_file = preprocessed / f"{plans_identifier}.json"
    if not plans_file.is_file():
        return False
    configurations = read_json(plans_file, "restore it, or plan again")["configurations"].values()
    if not any(configuration.get("preprocessor_name") in OUR_PREPROCESSORS for configuration in configurations):
        return False
    dataset_json = load_dataset_json(raw)
    labelled = labelled_cases(get_filenames_of_train_images_and_targets(str(raw), dataset_json))
    # A case without images is what nnU-Net makes of a file without channel suffix; the preprocessor has named it.
    labels = {case: Path(files["label"]) for case, files in labelled.items() if files["images"] and case[0] != "."}
    missing = [case for case, label in labels.items() if not label.is_file()]
    if not missing and len(labels) == len(labelled):
        return False
    if complaint is not None and not any(
        files["label"] in complaint for files in labelled.values() if not Path(files["label"]).is_file()
    ):
        return False
    folder = preprocessed / "gt_segmentations"
    folder.mkdir(exist_ok=True)
    sweep(folder)
    for case, label in labels.items():
        target = folder / f"{case}{dataset_json['file_ending']}"
        if case not in missing and (not target.is_file() or target.stat().st_mtime < label.stat().st_mtime):
            with whole(target) as temporary:
                shutil.copy2(label, temporary)
    record([Failure(case, LABELLED, str(file_problem(labels[case])), "labels") for case in missing])
    return True
