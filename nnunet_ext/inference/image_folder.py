"""Images of a folder, case by case, as nnU-Net finds them; a file that is no image is named and costs no other case."""

from __future__ import annotations

from pathlib import Path

OF_MACOS = "._"  # notes that macOS puts beside every file on disks of others
_CHANNEL = len("_0000")


def list_inputs(folder: Path, ending: str) -> tuple[list[list[str]], dict[str, str]]:
    """Return the images of each case of a folder, and the files that cannot be images.

    Args:
        folder: Folder of images named ``CASE_0000.nii.gz``, one file a channel.
        ending: File ending of the dataset, e.g. ``.nii.gz``.

    Returns:
        Images of each case, channels in order, cases in order of their names; and case or file -> what is wrong.

    Raises:
        FileNotFoundError: If there is no such folder, or nothing with this ending in it.
    """
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "is not there"
        raise FileNotFoundError(f"-i {folder} {state}, expected a folder of images named CASE_0000{ending}; name it")
    cases: dict[str, list[str]] = {}
    wrong: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(OF_MACOS) or not path.name.endswith(ending):
            continue
        stem = path.name[: -len(ending)]
        case, channel = stem[:-_CHANNEL], stem[-_CHANNEL:]
        if not case or channel[0] != "_" or not (channel[1:].isascii() and channel[1:].isdigit()):
            wrong[path.name] = f"{path} has no channel number, expected CASE_0000{ending}; rename or remove it"
        elif (reason := _why_no_file(path)) is not None:
            wrong[case] = f"{path} {reason}, expected an image; replace or remove it"
        else:
            cases.setdefault(case, []).append(str(path))
    if not cases and not wrong:
        raise FileNotFoundError(f"no images in {folder}; expected files named CASE_0000{ending}, one a channel")
    return [images for case, images in sorted(cases.items()) if case not in wrong], wrong


def _why_no_file(path: Path) -> str | None:
    if path.is_file():
        return None
    if path.is_dir():
        return "is a folder"
    return "is a link that leads nowhere" if path.is_symlink() else "is no regular file"


def channel_files_message(images: tuple[str, ...], channels: int, ending: str, reason: str) -> str:
    """Return the message on a case whose number of files is not that of the channels.

    Args:
        images: Image files of the case, in the order of channels.
        channels: Number of image channels that the model takes.
        ending: File ending of the dataset, e.g. ``.nii.gz``.
        reason: Message of the error that reading the files raised.
    """
    names = [Path(image).name for image in images]
    case = names[0][: -len(ending) - _CHANNEL] if names[0].endswith(ending) else names[0]
    expected = ", ".join(f"{case}_{channel:04d}{ending}" for channel in range(channels))
    return (
        f"{case} has the channel file(s) {', '.join(names)}, expected {channels}: {expected} (channel_names in "
        f"dataset.json); add or remove files ({reason})"
    )
