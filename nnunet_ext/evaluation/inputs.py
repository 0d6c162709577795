"""Model, images and labels of a profile, found and checked before the first of its predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.data.signature import digest, source_signature
from nnunet_ext.inference.image_folder import OF_MACOS
from nnunet_ext.model_sharing.folders import find_folds, read_model_json

_NAMED = 5  # cases named in an error; the others are counted


@dataclass(frozen=True)
class ProfileInputs:
    """A model, the images to predict and, if there are any, their labels.

    Attributes:
        model: Folder of the trained model, as given to -m.
        folds: Folds of the model that predict together.
        checkpoint: Name of the checkpoint file in each fold's folder.
        plans: Content of the model's plans.json.
        dataset_json: Content of the model's dataset.json.
        folder: Folder of the images to predict.
        cases: Case -> its image files, one a channel.
        labels: Case -> its label map; None where quality is not measured.
    """

    model: Path
    folds: list[int | str]
    checkpoint: str
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    folder: Path
    cases: dict[str, list[Path]]
    labels: dict[str, Path] | None

    def predictions(self, folder: Path) -> dict[str, Path]:
        """Return where the prediction of each case is."""
        return {case: folder / f"{case}{self.dataset_json['file_ending']}" for case in self.cases}

    def signature(self) -> dict[str, str]:
        """Return digests of what is predicted and with what; they change when a file does."""
        checkpoints = [self.model / f"fold_{fold}" / self.checkpoint for fold in self.folds]
        return {
            "images": files_digest(image for images in self.cases.values() for image in images),
            "model": files_digest([*checkpoints, self.model / "plans.json", self.model / "dataset.json"]),
        }


def find_inputs(
    model: Path,
    images: Path,
    labels: Path | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
) -> ProfileInputs:
    """Find everything that a profile reads.

    Args:
        model: Folder of the trained model, as given to -m.
        images: Folder of images as nnU-Net wants them, ``CASE_0000.nii.gz`` with the dataset's file ending.
        labels: Folder of label maps, ``CASE.nii.gz``; label maps of other cases are ignored.
        folds: Folds that predict together; None takes all that have the checkpoint.
        checkpoint: Name of the checkpoint file in each fold's folder.

    Raises:
        FileNotFoundError: If a folder, fold, checkpoint, image or label map is missing; names it.
        ValueError: If dataset.json is no JSON.
    """
    folds = find_folds(model, folds, checkpoint)
    plans, dataset_json = (read_model_json(model / name) for name in ("plans.json", "dataset.json"))
    ending = dataset_json["file_ending"]
    cases = list_cases(images, ending, len(dataset_json.get("channel_names", dataset_json.get("modality", [0]))))
    return ProfileInputs(
        model, folds, checkpoint, plans, dataset_json, images, cases, find_labels(labels, cases, ending)
    )


def list_cases(folder: Path, ending: str, channels: int) -> dict[str, list[Path]]:
    """Return the images of each case of a folder, one a channel.

    Raises:
        FileNotFoundError: If the folder is missing or has no image, or a case lacks a channel.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of images {folder}; expected one with CASE_0000{ending}, pass -i")
    candidates = {file for file in folder.glob(f"*{ending}") if file.is_file() and not file.name.startswith(OF_MACOS)}
    files = candidates & set(folder.glob(f"*_[0-9][0-9][0-9][0-9]{ending}"))
    without_number = candidates - files
    if files and without_number:
        # nnU-Net takes each file of this ending for a channel, and its last five letters for the channel's number.
        raise FileNotFoundError(
            f"{min(without_number)} has no channel number, expected CASE_0000{ending}; rename it, or move it elsewhere"
        )
    if not files:
        others = sorted(file.name for file in folder.iterdir() if file.is_file())
        got = f"it has e.g. {others[0]}" if others else "it has no file"
        raise FileNotFoundError(
            f"{folder} has no image CASE_0000{ending}, which dataset.json of the model wants ({got}); name another "
            "folder, or convert the images"
        )
    names = sorted({file.name[: -len(ending) - len("_0000")] for file in files})
    cases = {name: [folder / f"{name}_{channel:04d}{ending}" for channel in range(channels)] for name in names}
    missing = [image for images in cases.values() for image in images if not image.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{_first_files(missing)} missing, expected {channels} channel(s) a case as the model wants; add them, or "
            "remove the cases"
        )
    return cases


def find_labels(folder: Path | None, cases: Iterable[str], ending: str) -> dict[str, Path] | None:
    """Return the label map of each case, None without a folder.

    Raises:
        FileNotFoundError: If the folder or the label map of a case is missing.
    """
    if folder is None:
        return None
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder of labels {folder}; expected one with CASE{ending}, or no --labels"
        )
    labels = {case: folder / f"{case}{ending}" for case in cases}
    missing = [file for file in labels.values() if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{_first_files(missing)} missing, expected a label map for each image; add them, remove the images, or "
            "leave out --labels"
        )
    return labels


def files_digest(files: Iterable[Path]) -> str:
    """Return a digest of the paths, sizes and modification times of files."""
    return digest(source_signature(tuple(str(file.resolve()) for file in files)))


def _first_files(files: Sequence[Path]) -> str:
    names = ", ".join(str(file) for file in files[:_NAMED])
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f"{names}{more} {'is' if len(files) == 1 else 'are'}"
