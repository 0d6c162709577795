"""Folders of trained models: plans and folds read from them, and places where a model may be written without harm."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnunet_ext import __version__, files

FROM_TRAINING = "expected a model folder written by nnUNetv2_train"
_CHUNK = 2**20  # bytes of a file that are hashed at a time
_NEEDED = {"plans.json": ("configurations",), "dataset.json": ("labels", "file_ending")}


def read_model_json(path: Path) -> dict[str, Any]:
    """Return the content of a file that each model has.

    Args:
        path: File ``plans.json`` or ``dataset.json`` in the folder of a trained model.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is no JSON, or lacks what nnU-Net needs of it.
    """
    content: dict[str, Any] = files.read_json(path, FROM_TRAINING)
    unusable = [key for key in _NEEDED.get(path.name, ()) if not isinstance(content.get(key), (dict, str))]
    if unusable:
        key = unusable[0]
        state = f"{key} {content[key]!r:.60}, which cannot be" if key in content else f"no {key}"
        raise ValueError(f"{path} has {state}; {FROM_TRAINING}")
    return content


def model_folder(dataset: str, trainer: str, plans: str, configuration: str) -> Path:
    """Return where nnU-Net keeps a model.

    Args:
        dataset: Dataset number or name.
        trainer: Name of the trainer.
        plans: Name of the plans.
        configuration: Name of the configuration.

    Raises:
        ValueError: If nnUNet_results is not set.
    """
    from nnunetv2.paths import nnUNet_results
    from nnunetv2.utilities.file_path_utilities import get_output_folder

    if nnUNet_results is None:
        raise ValueError("nnUNet_results is not set, the folder of trained models; set it, or name a model with -m")
    return Path(get_output_folder(dataset, trainer, plans, configuration))


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits; the same file is read once."""
    status = file.stat()
    return _sha256_of(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _sha256_of(file: Path, size: int, changed: int) -> str:
    total = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            total.update(chunk)
    return total.hexdigest()


def as_folds(folds: Sequence[int | str] | None) -> list[int | str] | None:
    """Return folds as numbers, but for ``all``."""
    return None if folds is None else [fold if fold == "all" else int(fold) for fold in folds]


def find_folds(
    model: Path,
    folds: Sequence[int | str] | None,
    checkpoint_name: str,
    remedy: str = "finish the training, or name another by -chk",
) -> list[int | str]:
    """Return the folds of a model that have a checkpoint.

    Args:
        model: Folder of the trained model, as given to -m.
        folds: Folds to use; None takes all that have the checkpoint.
        checkpoint_name: Name of the checkpoint file in each fold's folder.
        remedy: What is to be done where no fold has the checkpoint, for the message.

    Raises:
        FileNotFoundError: If the folder, the checkpoint or a wanted fold is missing.
    """
    if not model.is_dir():
        raise FileNotFoundError(
            f"there is no model folder {model}; expected nnUNet_results/DATASET/TRAINER__PLANS__CONF"
        )
    names = [f.parent.name[len("fold_") :] for f in sorted(model.glob(f"fold_*/{checkpoint_name}"))]
    # Only what nnU-Net itself writes: it would take "+1" for fold 1.
    available: list[int | str] = [f if f == "all" else int(f) for f in names if re.fullmatch(r"all|0|[1-9][0-9]*", f)]
    if not available:
        raise FileNotFoundError(f"no fold of {model} has {checkpoint_name}; {remedy}")
    missing = [f for f in folds or () if f not in available]
    if missing:
        raise FileNotFoundError(f"{model} has no fold_{missing[0]}/{checkpoint_name}; it has the folds {available}")
    return list(folds) if folds else available


def folds_that_predict(model: Path, folds: Sequence[int | str] | None, checkpoint_name: str) -> list[int | str]:
    """Return the folds of a model that nnU-Net predicts with: where none are named, all but ``fold_all``.

    Args:
        model: Folder of the trained model, as given to -m.
        folds: Folds to use; None takes all that have the checkpoint, but for ``all``.
        checkpoint_name: Name of the checkpoint file in each fold's folder.

    Raises:
        FileNotFoundError: If the folder, the checkpoint or a wanted fold is missing.
    """
    found = find_folds(model, folds, checkpoint_name)
    if folds is not None:
        return found
    found = [fold for fold in found if fold != "all"]
    if not found:
        raise FileNotFoundError(f"no fold of {model} but fold_all has {checkpoint_name}; name it with -f all")
    return found


def is_archive(output: Path) -> bool:
    """Whether a model is written to this path as an archive; endings may be in capital letters."""
    return output.suffix.lower() == ".zip"


def check_target(
    model: Path, output: Path, overwrite: bool, command: str = "export", flag: str = "--overwrite"
) -> None:
    """Refuse a place where writing a model would take something away that this command did not write.

    Args:
        model: Folder of the trained model that is read.
        output: Folder or archive that is to be written.
        overwrite: Whether an earlier result of the same command may be replaced.
        command: Name of the subcommand that writes, ``export`` or ``prune``.
        flag: Flag that sets ``overwrite`` on the command line, for messages.

    Raises:
        FileExistsError: If something is at ``output``, and is not to be or cannot be replaced.
        ValueError: If ``output`` holds the model, or the model holds it.
    """
    source, target = model.resolve(), output.resolve()
    if source.is_relative_to(target):
        raise ValueError(f"{output} holds the model that is to be exported; name another place")
    if target.is_relative_to(source):
        raise ValueError(f"{output} lies inside the model {model} that is to be exported; name another place")
    if output.is_dir() and is_archive(output):
        raise FileExistsError(f"{output} is a folder; name a file for the archive")
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        if not overwrite:
            raise FileExistsError(f"{output} exists; pass {flag} to replace it, or name another place")
        reason = _why_not_ours(output, command)
        if reason is not None:
            raise FileExistsError(
                f"{output} {reason}, and {flag} replaces only what nnUNetv2_ext {command} wrote; remove it by hand, "
                "or name another place"
            )
    elif output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is neither a file nor a folder; name another place")


def check_plain_name(name: object, key: str, file: Path) -> None:
    """Refuse names of datasets and plans that would lead out of the folder in which they name a folder.

    Raises:
        ValueError: If it is no plain name.
    """
    if not isinstance(name, str) or name.strip() in ("", ".", "..") or set(name) & set("/\\:\0"):
        raise ValueError(f"{file} has {key} {name!r}, expected the plain name of a folder; correct the file")


@contextlib.contextmanager
def building(output: Path, command: str, inside: str) -> Iterator[Path]:
    """Give an empty folder to build a model in, and put it, or its archive, at its place once the block ends well.

    A record of what was written goes with it, by which a later call knows what it may replace.

    Args:
        output: Folder or archive that is to be written.
        command: Name of the subcommand that writes, for the record.
        inside: Folder of the model inside an archive.
    """
    output = output.resolve()
    files.sweep(output.parent)
    if not is_archive(output):
        with files.whole(output) as built:
            built.mkdir()
            yield built
            _write_record(built, command)
        return
    with files.whole(output) as archive:
        built = archive.with_suffix("")
        built.mkdir()
        try:
            yield built
            _write_record(built, command)
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
                for path in sorted(p for p in built.rglob("*") if p.is_file()):
                    packed.write(path, f"{inside}/{path.relative_to(built).as_posix()}")
        finally:
            files.remove(built)


def copy_fingerprint(model: Path, built: Path) -> None:
    """Copy the fingerprint of a model's dataset, if it is there."""
    if (model / "dataset_fingerprint.json").is_file():
        shutil.copyfile(model / "dataset_fingerprint.json", built / "dataset_fingerprint.json")


def record_name(command: str) -> str:
    """Return the name of the file by which a command knows what it wrote."""
    return f"nnunet_ext_{command}.json"


def _write_record(built: Path, command: str) -> None:
    written = {path.relative_to(built).as_posix(): path.stat().st_size for path in built.rglob("*") if path.is_file()}
    record = {"command": command, "version": __version__, "files": dict(sorted(written.items()))}
    files.write_json(built / record_name(command), record)


def _why_not_ours(output: Path, command: str) -> str | None:
    """Return why a folder or archive is not, or not only, what the command wrote; None if it is."""
    record = _read_record(output, record_name(command))
    if record is None or record.get("command") != command or not isinstance(record.get("files"), dict):
        return f"has no {record_name(command)}, by which an earlier result of this command is known"
    sizes = _sizes(output, record_name(command))
    for name, size in sorted(sizes.items()):
        if record["files"].get(name) != size:
            return f"holds {name}, which was put there or changed since"
    return None


def _sizes(output: Path, record: str) -> dict[str, int | None]:
    """Return the files of a result, but for its record, and their sizes; None for links."""
    if output.is_dir():
        paths = [path for path in output.rglob("*") if path.is_symlink() or not path.is_dir()]
        sizes = {
            path.relative_to(output).as_posix(): None if path.is_symlink() else path.stat().st_size for path in paths
        }
        del sizes[record]
        return sizes
    with zipfile.ZipFile(output) as archive:
        entries = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}
    (record_entry,) = [name for name in entries if name.rpartition("/")[2] == record]
    folder = record_entry.removesuffix(record)
    return {name.removeprefix(folder): size for name, size in entries.items() if name != record_entry}


def _read_record(output: Path, name: str) -> dict[str, Any] | None:
    try:
        if output.is_dir():
            content = json.loads((output / name).read_text(encoding="utf-8"))
        else:
            with zipfile.ZipFile(output) as archive:
                (entry,) = [file for file in archive.namelist() if file.rpartition("/")[2] == name]
                content = json.loads(archive.read(entry))
    except (OSError, ValueError, zipfile.BadZipFile, KeyError):
        return None
    return content if isinstance(content, dict) else None
