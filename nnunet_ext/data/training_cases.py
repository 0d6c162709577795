"""Which preprocessed unlabelled cases a trainer uses, and that they were made with its plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunet_ext.data import dataset as store
from nnunet_ext.data.signature import digest, plans_signature
from nnunet_ext.data.splits import hidden_cases_of_fold
from nnunet_ext.data.unlabeled import where_looked


def unlabeled_dataset(trainer: Any) -> store.UnlabeledDataset:
    """Return the unlabelled cases of a trainer's dataset, configuration and fold.

    Raises:
        FileNotFoundError: If there is none, or one is missing that the split asks for.
        RuntimeError: If cases were preprocessed with other plans.
        ValueError: If the split is contradictory.
    """
    preprocessed = Path(trainer.preprocessed_dataset_folder_base)
    folder = store.unlabeled_folder(preprocessed, trainer.configuration_manager.data_identifier)
    hidden = set(hidden_cases_of_fold(preprocessed, trainer.fold))
    found = {name: store.read_metadata(folder, name) for name in store.finished_cases(folder)}
    command = _command(trainer)
    missing = sorted(hidden - {name for name, metadata in found.items() if metadata is not None})
    if missing:
        raise FileNotFoundError(
            f"splits_final.json withholds the labels of {missing[:5]}, but they are not preprocessed as unlabelled "
            f"cases in {folder}. Run: {command}"
        )
    names = [n for n, metadata in found.items() if metadata and (n in hidden or not metadata.get("hidden_label"))]
    if not names:
        raise FileNotFoundError(
            f"no preprocessed unlabelled case in {folder}. Run: {command}\n"
            f"{where_looked(Path(str(nnUNet_raw)) / trainer.plans_manager.dataset_name)}"
        )
    expected = digest(plans_signature(trainer.plans_manager, trainer.configuration_manager))
    stale = [n for n in names if (found[n] or {}).get("plans_digest") != expected]
    if stale:
        raise RuntimeError(
            f"{len(stale)} of {len(names)} unlabelled cases in {folder} (e.g. {stale[0]}) were preprocessed with other "
            f"plans than {trainer.plans_manager.plans_name}, configuration {trainer.configuration_name}, are now. "
            f"Run: {command}"
        )
    return store.UnlabeledDataset(folder, names)


def labelled_names(trainer: Any) -> list[str]:
    """Return the names of a trainer's preprocessed labelled cases, sorted.

    nnU-Net says "found more than one file ending" where there is none.

    Raises:
        FileNotFoundError: If the folder does not exist or has no labelled case; names it and the command.
    """
    folder = Path(trainer.preprocessed_dataset_folder)
    endings = (".b2nd", ".npz")
    files = [file.name for file in folder.iterdir() if not file.name.startswith(".")] if folder.is_dir() else []
    if not any(name.endswith(endings) for name in files):
        what = "has no preprocessed labelled case" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{folder} {what}, but {type(trainer).__name__} needs labelled cases beside the unlabelled ones: put them "
            f"into imagesTr and labelsTr and run nnUNetv2_preprocess -d {trainer.plans_manager.dataset_name[7:10]} "
            f"-plans_name {trainer.plans_manager.plans_name} -c {trainer.configuration_name}"
        )
    return sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))


def _command(trainer: Any) -> str:
    return (
        f"nnUNetv2_ext preprocess_unlabeled -d {trainer.plans_manager.dataset_name} "
        f"-p {trainer.plans_manager.plans_name} -c {trainer.configuration_name}"
    )
