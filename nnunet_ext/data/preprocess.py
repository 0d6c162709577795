"""Preprocessing of unlabelled cases, isolated case by case and resumable."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunet_ext.data import unlabeled_store as store
from nnunet_ext.data.dataset_json import load_dataset_json, number_of_channels
from nnunet_ext.data.failures import UNLABELLED, Failure
from nnunet_ext.data.leftovers import sweep_all
from nnunet_ext.data.parts import ALL, Part, only_part
from nnunet_ext.data.plans import load_configuration
from nnunet_ext.data.pool import map_isolated
from nnunet_ext.data.position import BY_INDEX, COUNTED_BY, INDEX
from nnunet_ext.data.reading import describe, read_checked
from nnunet_ext.data.signature import changed_plans, digest, plans_signature, source_signature
from nnunet_ext.data.splits import hidden_cases
from nnunet_ext.data.unlabeled import UnlabeledCase, find_unlabeled_cases, where_looked
from nnunet_ext.files import DiskFullError

__all__ = ["Summary", "load_configuration", "preprocess_unlabeled"]


@dataclass
class Summary:
    """What a run did.

    Attributes:
        folder: Folder of the preprocessed cases.
        done: Names of the cases that were preprocessed now.
        kept: Names of the cases that were up to date.
        removed: Names of the cases whose scans are no longer part of the dataset.
        failures: One failure for every case that failed.
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
    part: Part = ALL,
) -> Summary:
    """Preprocess the unlabelled cases of a dataset for one configuration of any plans.

    Args:
        dataset_name_or_id: Dataset name or number.
        plans_identifier: Name of the plans, without ``.json``.
        configuration: Name of the configuration.
        num_processes: Number of worker processes; 1 works in this process.
        clean: Start over instead of continuing.
        show_progress_bar: Show a tqdm bar.
        part: Which of the cases to do, where several machines share them. A part touches no file of the others, and
            leaves it to the next run over all cases to remove what belongs to none.

    Returns:
        What was done. Failures are in it, not raised: one bad case never costs the others.

    Raises:
        BusyError: If another process preprocesses the same part, or all.
        DiskFullError: If there is no room; the cases that are finished are kept.
        FileNotFoundError: If the plans do not exist, or there is no unlabelled case at all.
        ValueError: If the plans have no such configuration or an impossible value, or the unlabelled cases contradict
            each other. Nothing is touched then.
    """
    name = maybe_convert_to_dataset_name(dataset_name_or_id)
    raw_folder, preprocessed = Path(str(nnUNet_raw)) / name, Path(str(nnUNet_preprocessed)) / name
    dataset_json = load_dataset_json(raw_folder)
    plans_manager, configuration_manager = load_configuration(
        preprocessed, plans_identifier, configuration, number_of_channels(dataset_json)
    )
    cases, failures = find_unlabeled_cases(raw_folder, dataset_json, hidden_cases(preprocessed))
    if not cases and not failures:
        raise FileNotFoundError(f"{name} has no unlabelled case. {where_looked(raw_folder)}")
    own = set(part.take({*cases, *(failure.case for failure in failures)}))
    cases = {case: files for case, files in cases.items() if case in own}
    failures = [failure for failure in failures if failure.case in own]
    summary = Summary(store.unlabeled_folder(preprocessed, configuration_manager.data_identifier), failures=failures)
    signature = plans_signature(plans_manager, configuration_manager)
    work = partial(
        _preprocess_case,
        folder=summary.folder,
        plans_manager=plans_manager,
        configuration_manager=configuration_manager,
        dataset_json=dataset_json,
        signature=signature,
    )
    with only_part(summary.folder, "preprocessed", part):
        if clean:
            _start_over(summary.folder, own, part)
        if part.is_all:
            for folder in (summary.folder, summary.folder / store.VALID_FOLDER, summary.folder / store.FAILED_FOLDER):
                sweep_all(folder)
        cases_to_do = _sort_out(cases, signature, summary, part)
        summary.folder.mkdir(parents=True, exist_ok=True)
        _run(work, cases_to_do, min(num_processes, len(cases_to_do)), summary, configuration, show_progress_bar)
    _say_what_counts_by_index(summary)
    return summary


def _start_over(folder: Path, cases: set[str], part: Part) -> None:
    if part.is_all and folder.is_dir():
        shutil.rmtree(folder)
    elif not part.is_all:
        # what there is nothing of is no case: a name in dataset.json may lead out of the folder
        for name in cases & {*store.finished_cases(folder), *store.failed_cases(folder)}:
            store.remove_case(folder, name)


def _sort_out(
    cases: dict[str, UnlabeledCase], signature: dict[str, Any], summary: Summary, part: Part
) -> list[UnlabeledCase]:
    """Return the cases to do; note those that are up to date, and remove those that are no longer in the dataset.

    What is there of a case to do stays until its new version is written, or it fails.
    """
    folder = summary.folder
    reasons = {failure.case: failure.reason for failure in summary.failures}
    for name in {*store.finished_cases(folder), *store.failed_cases(folder)} - cases.keys():
        if name in reasons:
            store.set_aside(folder, name, reasons[name])
        elif part.is_all:
            was_used = (folder / f"{name}.json").is_file()
            store.remove_case(folder, name)
            if was_used:
                summary.removed.append(name)
    cases_to_do = []
    for name, case in cases.items():
        if _up_to_date(store.read_metadata(folder, name), case, signature) and store.damage(folder, name) is None:
            summary.kept.append(name)
        elif (
            _up_to_date(store.read_set_aside(folder, name), case, signature)
            and store.damage_of_arrays(folder, name) is None
        ):
            store.take_back(folder, name)
            summary.kept.append(name)
        else:
            cases_to_do.append(case)
    summary.removed.sort()
    return cases_to_do


def _up_to_date(metadata: dict[str, Any] | None, case: UnlabeledCase, signature: dict[str, Any]) -> bool:
    if metadata is None:
        return False
    try:
        source = source_signature(case.images)
    except OSError:
        return False
    made_of = (metadata.get("source"), metadata.get("hidden_label"))
    return made_of == (source, case.hidden_label) and changed_plans(metadata, signature) == []


def _run(
    work: partial,
    cases_to_do: list[UnlabeledCase],
    num_processes: int,
    summary: Summary,
    stage: str,
    show_progress_bar: bool,
) -> None:
    tasks = {case.name: (case,) for case in cases_to_do}
    with contextlib.closing(map_isolated(work, tasks, num_processes)) as results:
        for name, problem, error in tqdm(
            results, "Preprocessing unlabelled cases", len(tasks), disable=not show_progress_bar or not tasks
        ):
            if isinstance(error, DiskFullError):
                raise error  # every other case would fail as well
            problem = problem if error is None else str(error)
            if problem is None:
                summary.done.append(name)
            else:
                store.set_aside(summary.folder, name, problem)
                summary.failures.append(Failure(name, UNLABELLED, problem, stage))


def _say_what_counts_by_index(summary: Summary) -> None:
    cases = [*summary.done, *summary.kept]
    found = [(store.read_metadata(summary.folder, case) or {}).get(COUNTED_BY) for case in cases]
    if INDEX in found:
        tqdm.write(f"INFO: in {found.count(INDEX)} of {len(cases)} unlabelled cases {BY_INDEX}.")


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
        if COUNTED_BY in properties:  # from the preprocessor that appends the position of slices
            metadata[COUNTED_BY] = properties[COUNTED_BY]
        store.save_case(
            folder, case.name, data, (nonzero >= 0).astype(np.uint8), metadata, tuple(configuration_manager.patch_size)
        )
    except DiskFullError:  # not the scan's fault
        raise
    except Exception as error:  # whatever a reader throws at a broken file must not stop the other cases
        return describe(error, case.images)
    return None
