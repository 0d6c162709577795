"""Which preprocessed unlabelled cases a trainer uses, and that they were made with its plans."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blosc2
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from tqdm import tqdm

from nnunet_ext.data import unlabeled_store as store
from nnunet_ext.data.dataset_json import load_dataset_json
from nnunet_ext.data.host import Trainer
from nnunet_ext.data.signature import changed_plans, plans_signature, source_signature
from nnunet_ext.data.splits import hidden_cases_of_fold
from nnunet_ext.data.unlabeled import UnlabeledCase, find_unlabeled_cases, where_looked

_NAMED = 10  # cases named in a message; the others are counted


def unlabeled_dataset(trainer: Trainer) -> store.UnlabeledDataset:
    """Return the unlabelled cases of a trainer's dataset, configuration and fold, and say in its log how many of them.

    Raises:
        FileNotFoundError: If there is none, or one is missing that the split asks for.
        RuntimeError: If cases are damaged, or were preprocessed with other plans.
        ValueError: If the split is contradictory.
    """
    preprocessed = Path(trainer.preprocessed_dataset_folder_base)
    folder = store.unlabeled_folder(preprocessed, trainer.configuration_manager.data_identifier)
    hidden = set(hidden_cases_of_fold(preprocessed, trainer.fold))
    found = {name: store.read_metadata(folder, name) for name in store.finished_cases(folder)}
    command = unlabelled_command(trainer)
    names = [n for n, metadata in found.items() if n in hidden or not (metadata or {}).get("hidden_label")]
    _refuse_damaged(folder, names, command)
    missing = sorted(hidden - found.keys())
    if missing:
        raise FileNotFoundError(
            f"splits_final.json withholds the labels of {missing[:5]}, but they are not preprocessed as unlabelled "
            f"cases in {folder}.{_reasons(folder, missing)} Run: {command}"
        )
    if not names:
        failed = store.failed_cases(folder)
        where = f"\n{where_looked(_raw_folder(trainer))}" if nnUNet_raw.is_set() else ""
        raise FileNotFoundError(
            f"no preprocessed unlabelled case in {folder}.{_reasons(folder, list(failed))} Run: {command}{where}"
        )
    _refuse_stale(trainer, folder, {name: found[name] or {} for name in names}, command)
    _log_number(trainer, folder, names, hidden, command)
    return store.UnlabeledDataset(folder, names)


def _refuse_damaged(folder: Path, names: list[str], command: str) -> None:
    damaged = [problem for problem in (store.damage(folder, name) for name in names) if problem is not None]
    if damaged:
        more = f" (and {len(damaged) - 1} more case(s) are damaged)" if len(damaged) > 1 else ""
        raise RuntimeError(f"{damaged[0]}{more}; to make the damaged cases again, run: {command}")


def _refuse_stale(trainer: Trainer, folder: Path, cases: dict[str, dict[str, Any]], command: str) -> None:
    signature = plans_signature(trainer.plans_manager, trainer.configuration_manager)
    changes = {name: changed_plans(metadata, signature) for name, metadata in cases.items()}
    stale = [name for name, changed in changes.items() if changed != []]
    if stale:
        changed = changes[stale[0]]
        what = "" if changed is None else f" ({', '.join(changed)} changed)"
        raise RuntimeError(
            f"{len(stale)} of {len(cases)} unlabelled cases in {folder} (e.g. {stale[0]}) were preprocessed with other "
            f"plans than {trainer.plans_manager.plans_name}, configuration {trainer.configuration_name}, are "
            f"now{what}. Run: {command}"
        )


def _log_number(trainer: Trainer, folder: Path, names: list[str], hidden: set[str], command: str) -> None:
    """Say how many unlabelled cases are used, and name those of the raw dataset that are not, where it is there.

    The log lies in the model's folder, which names no patient, so names go to stderr only.
    """
    if getattr(trainer, "local_rank", 0) != 0:  # one process says it
        return
    withheld = f", {len(hidden)} of them labelled ones whose labels this fold withholds" if hidden else ""
    try:
        raw = _raw_folder(trainer)
        cases, failures = find_unlabeled_cases(raw, load_dataset_json(raw), hidden)
    except (OSError, ValueError, RuntimeError) as error:
        trainer.print_to_log_file(
            f"Unlabelled cases: {len(names)} used{withheld}. They could not be compared with the raw dataset."
        )
        _name(trainer, [f"  {error}"])
        return
    reasons = store.failed_cases(folder) | {failure.case: failure.reason for failure in failures}
    missing = sorted({*cases, *(failure.case for failure in failures)} - set(names))
    total = len(missing) + len(names)
    trainer.print_to_log_file(f"Unlabelled cases: {len(names)} used, of {total} in the raw dataset{withheld}")
    if missing:
        trainer.print_to_log_file(
            f"WARNING: {len(missing)} unlabelled case(s) are NOT trained on (named on stderr). To preprocess them: "
            f"{command}"
        )
        _name(trainer, [f"  {name}: {reasons.get(name, 'not preprocessed yet')}" for name in missing])
    changed = [
        name for name in names if name in cases and _scan_changed(store.read_metadata(folder, name), cases[name])
    ]
    if changed:
        trainer.print_to_log_file(
            f"WARNING: the scans of {len(changed)} unlabelled case(s) changed since they were preprocessed (named on "
            f"stderr). To do them again: {command}"
        )
        _name(trainer, [f"  {name}" for name in changed])


def _name(trainer: Trainer, lines: list[str]) -> None:
    if trainer.local_rank == 0:
        tqdm.write(_listed(lines, "\n"), file=sys.stderr)


def _scan_changed(metadata: dict[str, Any] | None, case: UnlabeledCase) -> bool:
    """Whether the files of which a case was made are there and differ; elsewhere copied data cannot be compared."""
    before = (metadata or {}).get("source")
    try:
        now = source_signature(case.images)
    except OSError:
        return False
    if not isinstance(before, dict) or before.get("files", [])[: len(case.images)] != list(case.images):
        return False
    return before != now


def _reasons(folder: Path, names: list[str]) -> str:
    failed = store.failed_cases(folder)
    reasons = [f"{name}: {failed[name]}" for name in names if name in failed]
    return f" When last tried, {len(reasons)} failed ({_listed(reasons, '; ')})." if reasons else ""


def _listed(entries: list[str], separator: str) -> str:
    more = f"{separator}  and {len(entries) - _NAMED} more" if len(entries) > _NAMED else ""
    return separator.join(entries[:_NAMED]) + more


def _raw_folder(trainer: Trainer) -> Path:
    return Path(str(nnUNet_raw)) / trainer.plans_manager.dataset_name


def labelled_names(trainer: Trainer) -> list[str]:
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
            f"into imagesTr and labelsTr and run {labelled_command(trainer)}"
        )
    return sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))


def check_labelled_cases(trainer: Trainer, names: Iterable[str]) -> None:
    """Check that the preprocessed labelled cases are whole; only the heads of their files are read.

    Args:
        trainer: Names the folder, and the command for the message.
        names: The cases that are used.

    Raises:
        RuntimeError: If a file is missing or damaged; names it and the command that makes it again.
    """
    folder = Path(trainer.preprocessed_dataset_folder)
    for name in names:
        problem = labelled_damage(folder, name)
        if problem is not None:
            raise RuntimeError(f"{problem}; to make the labelled cases again, run: {labelled_command(trainer)}")


@contextmanager
def naming_damaged_validation(trainer: Trainer) -> Iterator[None]:
    """Name the damaged case where nnU-Net's validation, which reads whole cases, fails on one.

    Raises:
        RuntimeError: In place of what was raised, if a preprocessed case of the validation cannot be read.
    """
    try:
        yield
    except Exception as error:
        problem = _unreadable(trainer)
        if problem is None:
            raise
        raise RuntimeError(f"{problem}; run: {labelled_command(trainer)}") from error


def _unreadable(trainer: Trainer) -> str | None:
    """Return which case of the validation cannot be read and why, or None if all can, or cannot be listed."""
    try:
        _, dataset = trainer.get_tr_and_val_datasets()
    except Exception:
        return None
    for name in dataset.identifiers:
        problem = reading_problem(dataset, name)
        if problem is not None:
            return f"the preprocessed case {name} in {dataset.source_folder} cannot be read ({problem})"
    return None


def reading_problem(dataset: Any, name: str) -> str | None:
    """Return why a preprocessed case cannot be read, or None if it can; reads it as a whole.

    Args:
        dataset: nnU-Net's dataset.
        name: The case.
    """
    try:
        for array in dataset.load_case(name)[:3]:
            if array is not None:
                array[...]
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def labelled_damage(folder: Path, name: str) -> str | None:
    """Return what is wrong with a preprocessed labelled case, or None; only the heads of its files are read."""
    if (folder / f"{name}.npz").is_file():  # the format of earlier versions of nnU-Net
        return None
    shapes = []
    for file in (folder / f"{name}.b2nd", folder / f"{name}_seg.b2nd"):
        if not file.is_file():
            return f"{file} is missing"
        try:
            shapes.append(tuple(blosc2.open(urlpath=str(file), mode="r").shape))
        except Exception as error:  # whatever blosc2 says of a file that is none of its own
            return f"{file} is damaged ({error})"
    if shapes[0][1:] != shapes[1][1:]:
        return f"{folder / name}_seg.b2nd has shape {shapes[1]}, but the image has {shapes[0]}"
    properties = folder / f"{name}.pkl"
    if not properties.is_file() or properties.stat().st_size == 0:
        return f"{properties} is {'empty' if properties.is_file() else 'missing'}"
    return None


def labelled_command(trainer: Trainer) -> str:
    """Return the command that preprocesses the labelled cases of a trainer."""
    return (
        f"nnUNetv2_preprocess -d {trainer.plans_manager.dataset_name[7:10]} "
        f"-plans_name {trainer.plans_manager.plans_name} -c {trainer.configuration_name}"
    )


def unlabelled_command(trainer: Trainer) -> str:
    """Return the command that preprocesses those unlabelled cases of a trainer that are missing or stale."""
    return (
        f"nnUNetv2_ext preprocess_unlabeled -d {trainer.plans_manager.dataset_name} "
        f"-p {trainer.plans_manager.plans_name} -c {trainer.configuration_name}"
    )
