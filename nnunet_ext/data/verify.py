"""What ``--verify_dataset_integrity`` means for a dataset without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from nnunet_ext.data.dataset_json import check_dataset_json, load_dataset_json, number_of_channels
from nnunet_ext.data.failures import UNLABELLED, Failure, record
from nnunet_ext.data.pool import map_isolated
from nnunet_ext.data.reading import choose_reader, read_checked
from nnunet_ext.data.unlabeled import find_unlabeled_cases


def verify_unlabelled_only(folder: str | Path, num_processes: int = 8) -> None:
    """Check dataset.json and every image: readable, 3D, finite, the right channels, one grid a case.

    Cases that fail are recorded and do not stop the command; it lists them at its end and exits with status 1.

    Args:
        folder: The dataset's folder in ``nnUNet_raw``.
        num_processes: Number of worker processes.

    Raises:
        ValueError: If dataset.json contradicts itself or the files.
    """
    folder = Path(folder)
    dataset_json = load_dataset_json(folder)
    check_dataset_json(folder, dataset_json)
    _check_json(folder, dataset_json)
    cases, failures = find_unlabeled_cases(folder, dataset_json)
    reader = choose_reader(dataset_json, (image for case in cases.values() for image in case.images))
    channels = number_of_channels(dataset_json)
    tasks = {name: (case.images, reader, channels) for name, case in cases.items()}
    for name, _, error in tqdm(
        map_isolated(_check_case, tasks, num_processes), "Verifying unlabelled cases", len(tasks)
    ):
        if error is not None:
            failures.append(Failure(name, UNLABELLED, str(error), "verify"))
    record(failures)
    if failures:
        tqdm.write(f"verify_dataset_integrity: {len(failures)} of {len(cases)} cases failed, see the end.")
    else:
        tqdm.write(f"verify_dataset_integrity done: {len(cases)} unlabelled cases without errors.")


def _check_json(folder: Path, dataset_json: dict[str, Any]) -> None:
    if dataset_json.get("numTraining") != 0:
        raise ValueError(
            f"{folder / 'dataset.json'} has numTraining {dataset_json.get('numTraining')!r}, but there is no labelled "
            "case in imagesTr; set it to 0, or add the cases"
        )
    manager = LabelManager(dataset_json["labels"], regions_class_order=dataset_json.get("regions_class_order"))
    ignored = [manager.ignore_label] if manager.has_ignore_label else []
    labels = [int(label) for label in (*manager.all_labels, *ignored)]
    if labels != list(range(len(labels))):
        raise ValueError(f"{folder / 'dataset.json'} has the labels {labels}; they must be 0, 1, 2, ... without a gap")


def _check_case(images: tuple[str, ...], reader_class: type[BaseReaderWriter], channels: int) -> None:
    read_checked(images, reader_class, channels)
