"""Preprocessing of unlabelled cases, isolated case by case and resumable."""

from __future__ import annotations

import multiprocessing
import shutil
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunet_ext.data import dataset as store
from nnunet_ext.data.failures import UNLABELLED, Failure
from nnunet_ext.data.signature import digest, plans_signature, source_signature
from nnunet_ext.data.splits import hidden_cases
from nnunet_ext.data.unlabeled import UnlabeledCase, find_unlabeled_cases, number_of_channels, where_looked


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
    dataset_json = load_json(str(raw_folder / "dataset.json"))
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
    bar = tqdm(total=len(todo), desc="Preprocessing unlabelled cases", disable=not show or not todo)

    def note(case: UnlabeledCase, problem: str | None) -> None:
        bar.update()
        if problem is None:
            summary.done.append(case.name)
        else:
            summary.failures.append(Failure(case.name, UNLABELLED, problem, stage))

    if num_processes <= 1:
        for case in todo:
            note(case, work(case))
    else:
        with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures: dict[Future, UnlabeledCase] = {pool.submit(work, case): case for case in todo}
            for future in as_completed(futures):
                try:
                    note(futures[future], future.result())
                except BrokenProcessPool:
                    note(
                        futures[future],
                        "a worker process died, probably for lack of memory; run again with fewer processes (-np)",
                    )
    bar.close()


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
        data, properties = read_checked(case.images, plans_manager, number_of_channels(dataset_json))
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
        return _describe(error, case.images)
    return None


def _describe(error: Exception, images: tuple[str, ...]) -> str:
    text = str(error) or type(error).__name__
    named = any(image in text for image in images)
    return text if named else f"{images[0]}: {text} ({type(error).__name__})"


def read_checked(
    images: tuple[str, ...], plans_manager: PlansManager, channels: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the channels of one case and check what nnU-Net would only notice later, or never.

    Args:
        images: One file a channel.
        plans_manager: Names the reader.
        channels: Number of channels expected.

    Returns:
        ``(C, *S)`` float32 and the reader's properties of the first channel.

    Raises:
        ValueError: If a file is unreadable, is not one 3D (or 2D) image, has NaN or infinite values, or its geometry
            differs from that of the first channel.
    """
    reader = plans_manager.image_reader_writer_class()
    arrays: list[np.ndarray] = []
    first: dict[str, Any] = {}
    for image in images:
        try:
            array, properties = reader.read_images([image])
        except Exception as error:
            raise ValueError(f"{image} cannot be read ({_first_line(error)}); replace or remove it") from error
        if array.ndim != 4 or (len(images) > 1 and len(array) != 1):
            raise ValueError(
                f"{image} has an array of shape {array.shape}, expected one 3D image a file; split it into channels"
            )
        if not np.isfinite(array).all() or _nifti_has_non_finite(image):
            raise ValueError(f"{image} has NaN or infinite values; replace them by values that mean something")
        if arrays:
            _check_same_geometry(image, array, properties, images[0], arrays[0], first)
        else:
            first = properties
        arrays.append(array)
    data = np.concatenate(arrays)
    if len(data) != channels:
        raise ValueError(f"{images[0]} has {len(data)} channel(s), expected {channels} (dataset.json)")
    return data, first


def _nifti_has_non_finite(image: str) -> bool:
    """Look into a NIfTI file of floats itself: ITK's reader turns NaN and infinite values into 0 and says nothing."""
    if not image.endswith((".nii", ".nii.gz")):
        return False
    stored: Any = nibabel.load(image)
    if not np.issubdtype(stored.get_data_dtype(), np.floating):
        return False
    return not np.isfinite(np.asanyarray(stored.dataobj)).all()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[-1].strip() if text else type(error).__name__


def _check_same_geometry(
    image: str, array: np.ndarray, properties: dict, first_image: str, first_array: np.ndarray, first: dict
) -> None:
    if array.shape != first_array.shape:
        raise ValueError(
            f"{image} has shape {array.shape[1:]}, but {first_image} has {first_array.shape[1:]}; channels of one case "
            "must lie on the same grid"
        )
    for key, expected in _geometry(first).items():
        found = _geometry(properties).get(key)
        if found is None or not np.allclose(found, expected, atol=1e-3):
            raise ValueError(
                f"{image} has {key} {found}, but {first_image} has {expected}; channels of one case must lie on the "
                "same grid"
            )


def _geometry(properties: dict[str, Any]) -> dict[str, Any]:
    geometry = {"spacing": properties["spacing"]}
    geometry.update(properties.get("sitk_stuff", {}))
    if "nibabel_stuff" in properties:
        geometry["affine"] = properties["nibabel_stuff"]["original_affine"]
    return geometry
