"""The preprocessor that our plans name: nnU-Net's, with isolated cases, and the unlabelled cases after the labelled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from tqdm import tqdm

from nnunet_ext.data.dataset_json import FILE, check_dataset_json, load_dataset_json, number_of_channels
from nnunet_ext.data.failures import LABELLED, UNLABELLED, Failure, record
from nnunet_ext.data.labelled import usable_labelled
from nnunet_ext.data.parts import only_part
from nnunet_ext.data.plans import load_configuration
from nnunet_ext.data.pool import WorkerDiedError, map_isolated
from nnunet_ext.data.preprocess import preprocess_unlabeled
from nnunet_ext.data.reading import describe, read_checked, read_labels
from nnunet_ext.data.splits import hidden_cases
from nnunet_ext.data.unlabeled import find_unlabeled_cases, where_looked
from nnunet_ext.data.unlabeled_only import labelled_cases
from nnunet_ext.data.unlabeled_store import unlabeled_folder
from nnunet_ext.files import DiskFullError, cleared, only_here, whole_files


class SemiSupervisedPreprocessor(DefaultPreprocessor):
    """Preprocesses labelled cases exactly as :class:`DefaultPreprocessor` does, then the unlabelled ones.

    A case that fails does not stop the others; the command lists the failures at its end and exits with status 1.
    Labelled cases are checked as in the fingerprint first.
    """

    _made: tuple[Any, Any, dict[str, Any]] | None = None

    def run(
        self, dataset_name_or_id: int | str, configuration_name: str, plans_identifier: str, num_processes: int
    ) -> None:
        """Preprocess a configuration; what is there of it is removed once the first case is there anew.

        Args:
            dataset_name_or_id: Dataset name or number.
            configuration_name: Name of a configuration of the plans.
            plans_identifier: Name of the plans, without ``.json``.
            num_processes: Number of worker processes.

        Raises:
            BusyError: If another process preprocesses the same configuration.
            DiskFullError: If there is no room.
            FileNotFoundError: If plans or raw data are missing.
            ValueError: If plans or dataset.json have an impossible value, or the unlabelled cases contradict each
                other.
        """
        name = maybe_convert_to_dataset_name(dataset_name_or_id)
        raw_folder, preprocessed = Path(str(nnUNet_raw)) / name, Path(str(nnUNet_preprocessed)) / name
        dataset_json = _preprocessed_dataset_json(raw_folder, preprocessed)
        plans_manager, configuration_manager = load_configuration(
            preprocessed, plans_identifier, configuration_name, number_of_channels(dataset_json)
        )
        listed = labelled_cases(get_filenames_of_train_images_and_targets(str(raw_folder), dataset_json))
        dataset, failures = usable_labelled(raw_folder, dataset_json, listed, configuration_name)
        raw_json = load_dataset_json(raw_folder)
        has_unlabelled = any(find_unlabeled_cases(raw_folder, raw_json, hidden_cases(preprocessed)))
        output = preprocessed / configuration_manager.data_identifier
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
        with only_here(output, "preprocessed"):
            if has_unlabelled:
                with only_part(unlabeled_folder(preprocessed, output.name), "preprocessed"):
                    pass  # whoever works there now would stop this run hours later
            record(failures)
            if listed and not dataset:  # a folder that is not mounted, say
                print_info(f"WARNING: no labelled case of {name} can be read; what {output} holds is left as it is.")
            else:
                # Cases of two plans side by side would be trained on without a word, so all old ones go, but not before
                # one of the new ones is there: what fails in every case must cost nothing.
                with cleared(output) as drop_old:
                    self._run_isolated(arguments, num_processes, configuration_name, lambda _: drop_old())
            if has_unlabelled:
                self._run_unlabelled(name, plans_identifier, configuration_name, num_processes)
            else:
                print_info(f"INFO: {name} has no unlabelled case. {where_looked(raw_folder)}")

    def run_case_save(
        self,
        output_filename_truncated: str,
        image_files: list[str],
        seg_file: str,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any],
    ) -> None:
        """Check, preprocess and write one labelled case; its files appear once all of them are written."""
        target = Path(output_filename_truncated)
        reader, channels = plans_manager.image_reader_writer_class, number_of_channels(dataset_json)
        read = read_labelled(tuple(image_files), seg_file, reader, channels)
        common = (plans_manager, configuration_manager, dataset_json)
        self._made = self.run_case_npy(*read, *common)
        try:
            with whole_files(target.parent, lambda file: file.name == f"{target.name}.b2nd") as folder:
                super().run_case_save(str(folder / target.name), image_files, seg_file, *common)
        finally:
            self._made = None

    def run_case(self, *arguments: Any, **named: Any) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Preprocess one case as nnU-Net does; while a labelled case is written, return that one."""
        return super().run_case(*arguments, **named) if self._made is None else self._made

    def _run_isolated(
        self, arguments: dict[str, tuple], num_processes: int, stage: str, at_success: Callable[[Any], None]
    ) -> None:
        """Preprocess cases in processes; ``at_success`` is given what :meth:`run_case_save` returns."""
        tasks = map_isolated(self.run_case_save, arguments, num_processes, always_spawn=True)
        show = getattr(self, "show_progress_bar", True)
        with contextlib.closing(tasks) as results:
            for case, result, error in tqdm(
                results, "Preprocessing cases", len(arguments), disable=not show or not arguments
            ):
                if error is None:
                    at_success(result)
                    continue
                _remove_partial(arguments[case][0])
                if isinstance(error, DiskFullError):
                    raise error  # every other case would fail as well
                files = (*arguments[case][1], arguments[case][2])
                reason = str(error) if isinstance(error, WorkerDiedError) else describe(error, files)
                record([Failure(case, LABELLED, reason, stage)])

    def _run_unlabelled(self, name: str, plans_identifier: str, configuration_name: str, num_processes: int) -> None:
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


def read_labelled(
    images: tuple[str, ...], label: str, reader_class: type[BaseReaderWriter], channels: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Read a labelled case and check it as the fingerprint does.

    Args:
        images: Image files of the case, one a channel.
        label: File of the case's label map.
        reader_class: nnU-Net's reader of these files.
        channels: Channels that dataset.json declares.

    Returns:
        Image ``(C, *S)``, segmentation ``(1, *S)`` and the reader's properties.

    Raises:
        ValueError: Names the file that is wrong, what was expected and what to do.
    """
    data, properties = read_checked(images, reader_class, channels, strict=False)
    segmentation = read_labels(label, reader_class, data.shape[1:])
    return data, segmentation, properties


def _preprocessed_dataset_json(raw_folder: Path, preprocessed: Path) -> dict[str, Any]:
    """Return the dataset.json beside the plans; planning puts it there, moving plans does not."""
    if not (preprocessed / FILE).is_file():
        raise FileNotFoundError(
            f"{preprocessed / FILE} is missing, which planning puts there; copy {raw_folder / FILE} to it, or plan "
            "this dataset"
        )
    dataset_json = load_dataset_json(preprocessed)
    check_dataset_json(preprocessed, dataset_json)
    return dataset_json


def _remove_partial(truncated: str) -> None:
    """Remove what a failed case may have written, so that training does not stumble over half of it."""
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        Path(truncated + ending).unlink(missing_ok=True)
