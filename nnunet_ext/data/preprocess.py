"""Preprocessing of unlabelled cases, isolated case by case and resumable."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunet_ext.data import dataset as store
from nnunet_ext.data.failures import UNLABELLED, Failure
from nnunet_ext.data.pool import map_isolated
from nnunet_ext.data.reading import describe, read_checked
from nnunet_ext.data.signature import digest, plans_signature, source_signature
from nnunet_ext.data.splits import hidden_cases
from nnunet_ext.data.unlabeled import (
    UnlabeledCase,
    find_unlabeled_cases,
    load_dataset_json,
    number_of_channels,
    where_looked,
)


@dataclass
class Summary:
    """What a run did.

    Attributes:
        folder: Where the preprocessed cases lie.
        done: Names preprocessed now.
        kept: Names that were up to date.
        removed: Names whose scans are no longer part of the dataset.
        failures: One for every case that failed.
    """

    folder: Path
    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def preprocess_unlabeled(
    dataset_name_or_id: str | int,
    plans_identifier: str,
    configuration: str,
    num_processes: int = 2,
    clean: bool = False,
    show_progress_bar: bool = True,
) -> Summary:
    """Preprocess the unlabelled cases of a dataset for one configuration of any plans.

    Args:
        dataset_name_or_id: Dataset name or number.
        plans_identifier: Name of the plans, without ``.json``.
        configuration: Name of the configuration.
        num_processes: Worker processes; 1 works in this process.
        clean: Start over instead of continuing.
        show_progress_bar: Show a tqdm bar.

    Returns:
        What was done. Failures are in it, not raised: one bad case never costs the others.

    Raises:
        FileNotFoundError: If the plans do not exist, or there is no unlabelled case at all.
        ValueError: If the plans have no such configuration, or the unlabelled cases contradict each other.
    """
    name = maybe_convert_to_dataset_name(dataset_name_or_id)
    raw_folder, preprocessed = Path(str(nnUNet_raw)) / name, Path(str(nnUNet_preprocessed)) / name
    plans_manager, configuration_manager = load_configuration(preprocessed, plans_identifier, configuration)
    dataset_json = load_dataset_json(raw_folder)
    cases, failures = find_unlabeled_cases(raw_folder, dataset_json, hidden_cases(preprocessed))
    if not cases and not failures:
        raise FileNotFoundError(f"{name} has no unlabelled case. {where_looked(raw_folder)}")
    summary = Summary(store.unlabeled_folder(preprocessed, configuration_manager.data_identifier), failures=failures)
    if clean and summary.folder.is_dir():
        shutil.rmtree(summary.folder)
    signature = plans_signature(plans_manager, configuration_manager)
    todo = _sort_out(cases, digest(signature), summary)
    work = partial(
        _preprocess_case,
        folder=summary.folder,
        plans_manager=plans_manager,
        configuration_manager=configuration_manager,
        dataset_json=dataset_json,
        signature=signature,
    )
    summary.folder.mkdir(parents=True, exist_ok=True)
    _run(work, todo, min(num_processes, len(todo)), summary, configuration, show_progress_bar)
    return summary


def load_configuration(
    preprocessed: Path, plans_identifier: str, configuration: str
) -> tuple[PlansManager, ConfigurationManager]:
    """Load plans and one of their configurations.

    Raises:
        FileNotFoundError: If the plans do not exist.
        ValueError: If they have no such configuration.
    """
    plans_file = preprocessed / f"{plans_identifier}.json"
    if not plans_file.is_file():
        raise FileNotFoundError(
            f"there are no plans {plans_file}; run nnUNetv2_plan_and_preprocess (or nnUNetv2_plan_experiment) first, "
            "or name other plans with -p"
        )
    plans_manager = PlansManager(load_json(str(plans_file)))
    if configuration not in plans_manager.available_configurations:
        raise ValueError(
            f"{plans_file} has no configuration {configuration!r}; it has "
            f"{', '.join(plans_manager.available_configurations)}"
        )
    return plans_manager, plans_manager.get_configuration(configuration)


def _sort_out(cases: dict[str, UnlabeledCase], plans_digest: str, summary: Summary) -> list[UnlabeledCase]:
    """Return the cases to do; note those that are up to date and remove what was made of all others."""
    failed = {failure.case for failure in summary.failures}
    for name in store.finished_cases(summary.folder):
        if name not in cases:
            store.remove_case(summary.folder, name)
            if name not in failed:
                summary.removed.append(name)
    todo = []
    for name, case in cases.items():
        metadata = store.read_metadata(summary.folder, name)
        if metadata is not None and _up_to_date(metadata, case, plans_digest):
            summary.kept.append(name)
        else:
            # If it fails now, what an older scan or other plans made of it must not be trained on.
            store.remove_case(summary.folder, name)
            todo.append(case)
    return todo


def _up_to_date(metadata: dict[str, Any], case: UnlabeledCase, plans_digest: str) -> bool:
    try:
        source = source_signature(case.images)
    except OSError:
        return False
    found = (metadata.get("plans_digest"), metadata.get("source"), metadata.get("hidden_label"))
    return found == (plans_digest, source, case.hidden_label)


def _run(
    work: partial, todo: list[UnlabeledCase], num_processes: int, summary: Summary, stage: str, show: bool
) -> None:
    tasks = {case.name: (case,) for case in todo}
    results = map_isolated(work, tasks, num_processes)
    for name, problem, error in tqdm(
        results, "Preprocessing unlabelled cases", len(tasks), disable=not show or not tasks
    ):
        problem = problem if error is None else str(error)
        if problem is None:
            summary.done.append(name)
        else:
            summary.failures.append(Failure(name, UNLABELLED, problem, stage))


def _preprocess_case(
    case: UnlabeledCase,
    folder: Path,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict[str, Any],
    signature: dict[str, Any],
) -> str | None:
    """Preprocess and write one case; return what was wrong with it, or None."""
    try:
        source = source_signature(case.images)
        data, properties = read_checked(
            case.images, plans_manager.image_reader_writer_class, number_of_channels(dataset_json)
        )
        preprocessor = configuration_manager.preprocessor_class(verbose=False)
        data, nonzero, properties = preprocessor.run_case_npy(
            data, None, properties, plans_manager, configuration_manager, dataset_json
        )
        metadata = {
            "plans_digest": digest(signature),
            "plans_signature": signature,
            "source": source,
            "hidden_label": case.hidden_label,
            "shape": [int(i) for i in data.shape],
        }
        store.save_case(
            folder, case.name, data, (nonzero >= 0).astype(np.uint8), metadata, tuple(configuration_manager.patch_size)
        )
    except Exception as error:  # whatever a reader throws at a broken file must not stop the other cases
        return describe(error, case.images)
    return None
