"""A dataset without labelled cases that has unlabelled ones is legal."""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.plugin import compat


def install(module: ModuleType) -> None:
    """Extend ``get_filenames_of_train_images_and_targets`` of ``nnunetv2.utilities.utils``.

    Args:
        module: Module to extend, executed and not copied from yet.

    Raises:
        SeamError: If the function does not look as expected.
    """
    compat.replace(module, [compat.DATASET], _with_unlabelled_only)


def _with_unlabelled_only(original: Callable[..., Any]) -> Callable[..., Any]:
    def get(raw_dataset_folder: str, dataset_json: dict[str, Any] | None = None) -> Any:
        if not _has_files(os.path.join(raw_dataset_folder, "imagesTr")):
            from nnunet_ext.data.unlabeled_only import unlabelled_only

            dataset = unlabelled_only(raw_dataset_folder, dataset_json)
            if dataset is not None:
                return dataset
        return original(raw_dataset_folder, dataset_json)

    return get


def _has_files(folder: str) -> bool:
    """Whether a folder is there and has a file that is not hidden; one look, however many there are."""
    try:
        with os.scandir(folder) as entries:
            return any(not entry.name.startswith(".") for entry in entries)
    except OSError:
        return False
