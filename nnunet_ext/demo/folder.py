"""What a demo is made with, and the folder that holds it."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_ext import files
from nnunet_ext.demo.dataset import DATASET_NAME

DEFAULT_EPOCHS = 32
DEFAULT_ITERATIONS = 70
_SETTINGS_FILE = "demo.json"
_OWN_FOLDERS = ("stages", "raw", "preprocessed", "results", "predictions", "logs", "report")  # the records go first


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class DemoSettings:
    """What decides the figures of a demo; a folder holds the demo of one choice.

    Attributes:
        seed: Seed of the phantoms and the trainings.
        epochs: Number of epochs of both trainings.
        iterations: Number of iterations an epoch.
        device: Device that trains: ``cpu``, ``cuda`` or ``mps``.
        labeled: Number of labelled cases; the last one is nnU-Net's validation case.
        unlabeled: Number of unlabelled cases.
        test: Number of labelled cases that no training sees.
    """

    seed: int = 0
    epochs: int = DEFAULT_EPOCHS
    iterations: int = DEFAULT_ITERATIONS
    device: str = "cpu"
    labeled: int = 5
    unlabeled: int = 40
    test: int = 12

    def trainer(self, method: str) -> str:
        """Name after ``-tr``: the same length for both methods."""
        first = {"supervised": "nnUNetTrainer", "semi": "nnUNetTrainerSemi"}[method]
        return f"{first}_{self.epochs}epochs_{self.iterations}iterations"


def claim_folder(output: Path, settings: DemoSettings, overwrite: bool) -> None:
    """Take an empty folder, or one that holds this very demo; with ``overwrite`` also others.

    Args:
        output: Folder of the demo; made where it does not exist.
        settings: Settings of the demo.
        overwrite: Remove the demo in the folder. Files that no demo wrote are never removed.

    Raises:
        DemoError: If the folder holds something else and ``overwrite`` is not set, or folders of somebody else have
            the names that the demo needs.
    """
    record = output / _SETTINGS_FILE
    if output.exists() and not output.is_dir():
        raise DemoError(f"{output} is a file; name a folder")
    for folder in (output, output / "stages", output / "preprocessed" / DATASET_NAME):
        files.sweep(folder)
    if record.is_file():
        if not overwrite:
            recorded = read_record(record, "pass --overwrite to begin anew, or name another folder")
            if recorded == asdict(settings):
                return
            raise DemoError(_other_settings(output, recorded, settings))
        for name in _OWN_FOLDERS:
            shutil.rmtree(output / name, ignore_errors=True)
    elif others := [name for name in _OWN_FOLDERS if (output / name).exists()]:
        raise DemoError(f"{output} holds {', '.join(others)}, and not from a demo; name another folder")
    elif output.is_dir() and any(output.iterdir()) and not overwrite:
        raise DemoError(f"{output} is not empty and holds no demo; pass --overwrite to use it, or name another folder")
    files.write_json(record, asdict(settings))


def read_record(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file of the demo.

    Args:
        path: JSON file.
        remedy: What to do where the file is damaged, for the message.

    Raises:
        DemoError: If it is damaged.
    """
    try:
        content: dict[str, Any] = files.read_json(path, remedy)
    except ValueError as error:
        raise DemoError(str(error)) from error
    return content


def _other_settings(output: Path, recorded: dict[str, Any], settings: DemoSettings) -> str:
    current = asdict(settings)
    changed = [
        f"{key} {recorded.get(key)} (now {value})" for key, value in current.items() if recorded.get(key) != value
    ]
    remedy = "pass --overwrite to begin anew, or name another folder"
    return f"{output} holds a demo with other settings: {', '.join(changed)}; {remedy}"
