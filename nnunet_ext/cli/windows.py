"""Draws a slice of a CT in the windows that networks of the reference module see it in.

The windows are those of ReferencePlanner where no others are given; each becomes a channel, 0 at its lower bound and 1
at its upper one. Slices count from the feet where the image says where it points.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunet_ext.cli.values import number, positive_int

_OTHER_PICTURES = (".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff", ".bmp")


def window(text: str) -> tuple[str, float, float]:
    """Return name and bounds of a window.

    Raises:
        argparse.ArgumentTypeError: If the text is not a name and two rising numbers.
    """
    name, _, bounds = text.partition(":")
    low, _, high = bounds.partition(":")
    if not name or not number(low) < number(high):
        raise argparse.ArgumentTypeError(
            f"expected NAME:LOWER:UPPER in Hounsfield units, e.g. lung:-1000:0, got {text!r}"
        )
    return name, number(low), number(high)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext windows``."""
    parser.add_argument("-i", type=Path, required=True, metavar="IMAGE", help="a CT: CASE_0000.nii.gz")
    parser.add_argument("-o", type=Path, required=True, metavar="PNG", help="picture to write, or a folder for it")
    parser.add_argument("--slice", type=positive_int, metavar="N", help="1 is the lowest (default: the middle one)")
    parser.add_argument(
        "--windows", type=window, nargs="+", metavar="NAME:LOWER:UPPER", help="(default: abdomen, chest and bone)"
    )


def target_is_picture(output: Path) -> bool:
    """Return whether an output is the picture itself, not a folder for it.

    Raises:
        ValueError: If it is a file, or called like a picture, of another format.
    """
    ending = output.suffix.lower()
    if (output.is_file() and ending != ".png") or (not output.is_dir() and ending in _OTHER_PICTURES):
        raise ValueError(f"-o {output} is neither a PNG nor a folder; name a file that ends in .png, or a folder")
    return ending == ".png" and not output.is_dir()


def _ending(file: Path) -> str:
    """Return the ending of an image's name, before which there may be dots.

    Raises:
        ValueError: If nnU-Net reads no such files.
    """
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    endings = {ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings}
    found = [ending for ending in endings if file.name.lower().endswith(ending)]
    if not found:
        raise ValueError(f"{file} ends in none of {', '.join(sorted(endings))}, which nnU-Net reads; convert it")
    return max(found, key=len)


def run(arguments: argparse.Namespace) -> int:
    """Draw."""
    from nnunet_ext.data.reading import choose_reader, read_checked
    from nnunet_ext.figures.windows import axial, check_hounsfield, draw_windows
    from nnunet_ext.files import sweep
    from nnunet_ext.planners.reference import WINDOWS

    if not arguments.i.is_file():
        raise FileNotFoundError(f"{arguments.i} is no file; -i takes the image file of a CT")
    is_picture = target_is_picture(arguments.o)
    ending = _ending(arguments.i)
    reader = choose_reader({"file_ending": ending}, [str(arguments.i)])
    image, properties = read_checked((str(arguments.i),), reader, 1)
    if len(image) != 1:
        raise ValueError(f"{arguments.i} has {len(image)} channels, expected a CT with one")
    check_hounsfield(arguments.i, image)
    windows = {name: (low, high) for name, low, high in arguments.windows} if arguments.windows else dict(WINDOWS)
    if arguments.windows and len(windows) < len(arguments.windows):
        raise ValueError("--windows has a name twice; each window needs a name of its own")
    case = arguments.i.name[: -len(ending)].removesuffix("_0000")
    target = arguments.o if is_picture else arguments.o / f"{case}.png"
    sweep(target.parent)
    draw_windows(target, case, axial(image[0], properties), windows, arguments.slice)
    print(f"Wrote {target}")
    return 0
