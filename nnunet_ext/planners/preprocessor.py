"""The preprocessor that our plans name: nnU-Net's, with isolated cases, and the unlabelled cases after the labelled."""

from __future__ import annotations

import shutil
from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm import tqdm

from nnunet_ext.data.failures import LABELLED, UNLABELLED, Failure, record
from nnunet_ext.data.pool import WorkerDiedError, map_isolated
from nnunet_ext.data.preprocess import load_configuration, preprocess_unlabeled
from nnunet_ext.data.splits import hidden_cases
from nnunet_ext.data.unlabeled import (
    find_unlabeled_cases,
    labelled_cases,
    load_dataset_json,
    where_looked,
    without_strays,
)


class SemiSupervisedPreprocessor(DefaultPreprocessor):
    """Preprocesses labelled cases exactly as :class:`DefaultPreprocessor` does, then the unlabelled ones.

    A case that fails does not stop the others; the command lists the failures at its end and exits with status 1.
    """

    def run(
        self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int
    ) -> None:
        """Preprocess a configuration.

        Args:
            dataset_name_or_id: Dataset name or number.
            configuration_name: Configuration of the plans.
            plans_identifier: Name of the plans, without ``.json``.
            num_processes: Worker processes.

        Raises:
            FileNotFoundError: If plans or raw data are missing.
            ValueError: If the unlabelled cases contradict each other.
        """
        name = maybe_convert_to_dataset_name(dataset_name_or_id)
        raw_folder, preprocessed = Path(str(nnUNet_raw)) / name, Path(str(nnUNet_preprocessed)) / name
        plans_manager, configuration_manager = load_configuration(preprocessed, plans_identifier, configuration_name)
        dataset_json = load_json(str(preprocessed / "dataset.json"))
        output = preprocessed / configuration_manager.data_identifier
        if output.is_dir():
            shutil.rmtree(output)
        output.mkdir(parents=True)
        dataset = labelled_cases(get_filenames_of_train_images_and_targets(str(raw_folder), dataset_json))
        dataset, strays = without_strays(raw_folder, dataset_json, dataset, configuration_name)
        record(strays)
        arguments = {
            case: (
                str(output / case),
                files["images"],
                files["label"],
                plans_manager,
                configuration_manager,
                dataset_json,
            )
            for case, files in dataset.items()
        }
        record(self._run_isolated(arguments, num_processes, configuration_name))
        self._run_unlabelled(name, raw_folder, plans_identifier, configuration_name, num_processes)

    def _run_isolated(self, arguments: dict[str, tuple], num_processes: int, stage: str) -> list[Failure]:
        failures = []
        results = map_isolated(self.run_case_save, arguments, num_processes, always_spawn=True)
        show = getattr(self, "show_progress_bar", True)
        for case, _, error in tqdm(results, "Preprocessing cases", len(arguments), disable=not show or not arguments):
            if error is None:
                continue
            reason = str(error).strip() or "unreadable"
            if not isinstance(error, WorkerDiedError):
                files = ", ".join([*arguments[case][1], arguments[case][2]])
                reason = f"{files}: {reason} ({type(error).__name__})"
            failures.append(Failure(case, LABELLED, reason, stage))
            _remove_partial(arguments[case][0])
        return failures

    def _run_unlabelled(
        self, name: str, raw_folder: Path, plans_identifier: str, configuration_name: str, num_processes: int
    ) -> None:
        raw_json = load_dataset_json(raw_folder)
        hidden = hidden_cases(Path(str(nnUNet_preprocessed)) / name)
        cases, failures = find_unlabeled_cases(raw_folder, raw_json, hidden)
        if not cases and not failures:
            print_info(f"INFO: {name} has no unlabelled case. {where_looked(raw_folder)}")
            return
        summary = preprocess_unlabeled(
            name,
            plans_identifier,
            configuration_name,
            num_processes,
            show_progress_bar=getattr(self, "show_progress_bar", True),
        )
        print_info(
            f"Unlabelled cases in {summary.folder}: {len(summary.done)} preprocessed, {len(summary.kept)} up to date, "
            f"{len([f for f in summary.failures if f.kind == UNLABELLED])} failed."
        )
        record(summary.failures)


def print_info(text: str) -> None:
    """Say something between the progress bars, as nnU-Net's preprocessing does."""
    tqdm.write(text)


def _remove_partial(truncated: str) -> None:
    """Remove what a failed case may have written, so that training does not stumble over half of it."""
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        Path(truncated + ending).unlink(missing_ok=True)
