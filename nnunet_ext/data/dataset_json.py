"""dataset.json: read, and checked for what would otherwise fail later and elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_ext.files import read_json

FILE = "dataset.json"
_CHANNELS = 'an object such as {"0": "CT"}'
_LABELS = 'an object such as {"background": 0, "organ": 1}'


def load_dataset_json(raw_folder: str | Path) -> dict[str, Any]:
    """Read a dataset.json.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is no JSON, or a name occurs twice in it; JSON would silently keep the last.
    """
    path = Path(raw_folder) / FILE

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            names = [name for name, _ in pairs]
            duplicates = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"{path} has {duplicates[:5]} more than once; names must be unique, rename or remove one")
        return content

    content: dict[str, Any] = read_json(path, "correct or restore it", object_pairs_hook=refuse_duplicates)
    return content


def check_dataset_json(raw_folder: str | Path, dataset_json: dict[str, Any]) -> None:
    """Check that dataset.json has what nnU-Net cannot do without, and in the right form.

    Args:
        raw_folder: Folder of the dataset.json, for the messages.
        dataset_json: Content of the dataset.json.

    Raises:
        ValueError: Names the key that is missing, or its value.
    """
    path = Path(raw_folder) / FILE
    for key, meaning in (("file_ending", '".nii.gz", for example'), ("labels", '{"background": 0, "organ": 1, ...}')):
        if key not in dataset_json:
            raise ValueError(f"{path} has no {key!r}; add it: {meaning}")
    channels = dataset_json.get("channel_names", dataset_json.get("modality"))
    if channels is None:
        raise ValueError(f'{path} has no \'channel_names\'; add it: {{"0": "CT"}}, for example')
    ending = dataset_json["file_ending"]
    _expect(path, "file_ending", ending, 'text such as ".nii.gz"', isinstance(ending, str) and ending.startswith("."))
    name = "channel_names" if "channel_names" in dataset_json else "modality"
    _expect(path, name, channels, _CHANNELS, isinstance(channels, dict) and bool(channels))
    labels = dataset_json["labels"]
    _expect(path, "labels", labels, _LABELS, isinstance(labels, dict) and bool(labels))
    for label, value in labels.items():
        numbers = value if isinstance(value, (list, tuple)) else [value]
        right = bool(numbers) and all(_is_whole(number) for number in numbers)
        _expect(path, f"labels[{label!r}]", value, "a whole number, or a list of them for a region", right)
    class_order = dataset_json.get("regions_class_order")
    right = class_order is None or (
        isinstance(class_order, (list, tuple)) and all(_is_whole(number) for number in class_order)
    )
    _expect(path, "regions_class_order", class_order, "a list of whole numbers", right)
    _check_listed(path, dataset_json.get("dataset", {}))


def raw_dataset_folder(dataset_name: str) -> Path:
    """Return the folder of a dataset in ``nnUNet_raw``.

    Raises:
        FileNotFoundError: If it has no dataset.json.
    """
    from nnunetv2.paths import nnUNet_raw

    folder = Path(str(nnUNet_raw)) / dataset_name
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder / 'dataset.json'} does not exist; set nnUNet_raw, or name another dataset")
    return folder


def check_raw_dataset(dataset_name_or_id: str | int) -> Path:
    """Return the folder of a dataset in ``nnUNet_raw`` once its dataset.json is found to be right.

    nnU-Net's own classes read the file before ours can, and say nothing helpful of it.

    Raises:
        FileNotFoundError: If there is no dataset.json.
        ValueError: If it is no JSON, or something in it is wrong; names the key.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    folder = raw_dataset_folder(maybe_convert_to_dataset_name(dataset_name_or_id))
    check_dataset_json(folder, load_dataset_json(folder))
    return folder


def check_number_of_training_cases(raw_folder: str | Path, dataset_json: dict[str, Any]) -> None:
    """Check what nnU-Net's planning takes from dataset.json.

    Raises:
        ValueError: If ``numTraining`` is no number.
    """
    number = dataset_json.get("numTraining")
    right = isinstance(number, (int, float)) and _is_whole(number) and number >= 0
    _expect(Path(raw_folder) / FILE, "numTraining", number, "the number of labelled cases", right)


def _check_listed(path: Path, dataset: Any) -> None:
    """Check the labelled cases that are listed instead of lying in imagesTr."""
    _expect(path, "dataset", dataset, 'an object {"CASE": {"images": [...], "label": ...}}', isinstance(dataset, dict))
    for name, entry in dataset.items():
        right = isinstance(entry, dict) and isinstance(entry.get("label"), str) and _is_paths(entry.get("images"))
        _expect(path, f"dataset[{name!r}]", entry, '{"images": ["path_0000.nii.gz"], "label": "path.nii.gz"}', right)


def _expect(path: Path, key: str, value: Any, expected: str, right: bool) -> None:
    if not right:
        raise ValueError(f"{path}: {key} is {value!r:.80}, expected {expected}; correct it")


def _is_paths(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(image, str) for image in value)


def _is_whole(value: Any) -> bool:
    """Whether nnU-Net can make a label of a value; it takes what ``int`` takes."""
    try:
        return not isinstance(value, bool) and int(value) == float(value)
    except (TypeError, ValueError, OverflowError):
        return False


def numbers_of_files(dataset_json: dict[str, Any]) -> tuple[int, ...]:
    """Return how many image files a case may have: one a channel, or one with all of them where nnU-Net reads RGB."""
    channels = len(channel_names(dataset_json))
    return (channels, 1) if dataset_json["file_ending"].lower() in (".png", ".bmp", ".tif") else (channels,)


def number_of_channels(dataset_json: dict[str, Any]) -> int:
    """Return the number of image channels that dataset.json declares."""
    return len(channel_names(dataset_json))


def channel_names(dataset_json: dict[str, Any]) -> list[str]:
    """Return the names of the image channels, in the order of nnU-Net (that of the file)."""
    names = dataset_json["channel_names"] if "channel_names" in dataset_json else dataset_json["modality"]
    return [str(name) for name in names.values()]
