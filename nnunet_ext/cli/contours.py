"""Draws the contours that the contour-weighted loss (trainers with CWCD) finds in label files.

Contours are opaque, what lies inside of them is transparent; the legend says how much of each class is contour. A
class that is nearly all contour is thinner than twice the band: see contour_min_interior in docs/cwcd.md. Thickness
counts in the voxels of the files; with -p the labels are first transposed and resampled as the plans say, to what
training sees. Images are drawn underneath where they lie in the folder that nnU-Net expects (imagesTr beside labelsTr).
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from statistics import median
from typing import Any

from nnunet_ext.cli.values import add_no_progress_bar, natural, positive_float, positive_int

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".bmp", ".tif", ".tiff", ".gipl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext contours``."""
    parser.add_argument("-i", type=Path, required=True, metavar="LABELS", help="folder of label files")
    parser.add_argument("-o", type=Path, required=True, metavar="OUTPUT", help="folder for one PNG a file")
    parser.add_argument(
        "--kernel", type=positive_int, nargs="+", default=[3], metavar="N", help="one, or three in array order"
    )
    thickness = parser.add_mutually_exclusive_group()
    thickness.add_argument("--iterations", type=natural, default=1, metavar="N", help="erosions (default: 1)")
    thickness.add_argument("--thickness_mm", type=positive_float, metavar="MM", help="thickness in mm instead")
    parser.add_argument("--border", choices=("inside", "outside"), default="inside", help="what lies outside the image")
    parser.add_argument("-p", type=Path, metavar="PLANS.json", help="plans file: show the labels as training sees them")
    parser.add_argument(
        "-c", default="3d_fullres", metavar="CONF", help="configuration of the plans (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    add_no_progress_bar(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw; the exit status is 1 if a file failed."""
    from tqdm import tqdm

    from nnunet_ext.figures.contours import Band, LabelNames
    from nnunet_ext.files import sweep
    from nnunet_ext.training.contours import band_iterations

    if len(arguments.kernel) not in (1, 3):
        raise ValueError(f"--kernel takes one or three numbers, got {len(arguments.kernel)}: {arguments.kernel}")
    if not arguments.i.is_dir():
        raise FileNotFoundError(f"{arguments.i} is no folder; give the folder of the label files, e.g. labelsTr")
    files = sorted(path for path in arguments.i.iterdir() if path.name.endswith(ENDINGS))
    if not files:
        raise FileNotFoundError(f"{arguments.i} has no label files (expected one of {', '.join(ENDINGS)})")
    if arguments.o.resolve() == arguments.i.resolve():
        raise ValueError(f"{arguments.o} holds the label files, which pictures might replace; give another folder (-o)")
    sweep(arguments.o)
    if arguments.o.is_dir() and any(arguments.o.iterdir()) and not arguments.overwrite:
        raise FileExistsError(f"{arguments.o} is not empty; give another folder, or --overwrite")
    readers = _readers(files)
    kernel = arguments.kernel[0] if len(arguments.kernel) == 1 else tuple(arguments.kernel)
    band = Band(kernel, arguments.iterations, arguments.thickness_mm, arguments.border)
    band_iterations((1.0,) * 3, band.iterations, band.thickness_mm, band.kernel)  # refuses once what fits no file
    names, failures = LabelNames.of_folder(arguments.i), []
    plans = None if arguments.p is None else _plans(arguments.p, arguments.c)
    arguments.o.mkdir(parents=True, exist_ok=True)
    thin: dict[str, list[float]] = {}
    for file in tqdm(files, "label files", disable=arguments.no_pbar):
        try:
            for name, share in _draw_one(file, readers[_split(file)[1]], arguments.o, band, names, plans).items():
                thin.setdefault(name, []).append(share)
        except Exception as error:  # one bad file never costs the others
            text = str(error).strip() or type(error).__name__
            failures.append(text if str(file) in text else f"{file}: {text}")
    if thin:
        print(f"{'class':<24} contour, median (largest) share over the files")
    for name, values in thin.items():
        print(f"{name:<24} {median(values):.0%} ({max(values):.0%})")
    print(f"Wrote {len(files) - len(failures)} pictures to {arguments.o}")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _draw_one(file: Path, reader: Any, output: Path, band: Any, names: Any, plans: Any) -> dict[str, float]:
    """Draw one file; return the share of contour of each class it has."""
    from nnunet_ext.figures.contours import LabelNames, contours_of, draw_contours

    case, ending = _split(file)
    labels, spacing = _read(file, reader, segmentation=True)
    folder = file.resolve().parent
    image_file = folder.parent / folder.name.replace("labels", "images") / f"{case}_0000{ending}"
    image = None
    if folder.name.startswith("labels") and image_file.is_file():
        image = _read(image_file, reader, segmentation=False)[0]
        if image.shape != labels.shape:
            raise ValueError(f"{file} has shape {labels.shape}, but {image_file} has {image.shape}; give it its image")
    neighbours = spacing
    if plans is not None:
        labels, image, spacing = _as_in_training(labels, image, spacing, *plans)
        # a network in 2D sees no neighbours across slices
        neighbours = spacing if len(plans[1].spacing) == 3 else [math.inf, *spacing[1:]]
    contours = contours_of(labels, neighbours, names or LabelNames.of_labels(labels), band)
    shares = contours.shares()
    if not shares:
        raise ValueError(f"{file} has no foreground label")
    thickness = (
        f"{band.thickness_mm:g} mm"
        if band.thickness_mm
        else f"box of {band.kernel} voxels, {band.iterations} erosion(s)"
    )
    title = f"{case}: contours, {thickness}, voxels of {' x '.join(f'{s:.3g}' for s in spacing)} mm"
    draw_contours(output / f"{case}.png", title, contours, spacing, image)
    return {name: share for name, (_, share) in shares.items()}


def _split(file: Path) -> tuple[str, str]:
    ending = next(ending for ending in ENDINGS if file.name.endswith(ending))
    return file.name[: -len(ending)], ending


def _readers(files: list[Path]) -> dict[str, Any]:
    """Return nnU-Net's reader for each file ending, chosen on a file that can be read."""
    from nnunet_ext.data.reading import choose_reader

    by_ending: dict[str, list[str]] = {}
    for file in files:
        by_ending.setdefault(_split(file)[1], []).append(str(file))
    return {ending: choose_reader({"file_ending": ending}, paths)() for ending, paths in by_ending.items()}


def _read(file: Path, reader: Any, segmentation: bool) -> tuple[Any, list[float]]:
    """Read the first channel; return ``(Z, Y, X)`` and the spacing in mm."""
    from nnunet_ext.data.reading import one_line

    try:
        array, properties = reader.read_seg(str(file)) if segmentation else reader.read_images([str(file)])
    except Exception as error:
        raise ValueError(f"{file} cannot be read ({one_line(error)}); replace it") from error
    return array[0].astype("int32") if segmentation else array[0], [float(s) for s in properties["spacing"]]


def _plans(file: Path, name: str) -> tuple[Any, Any]:
    """Return the plans and a configuration of them."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ext.files import read_json

    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is no file; -p takes the plans file, e.g. nnUNet_preprocessed/DATASET/nnUNetPlans.json"
        )
    content = read_json(file, "-p takes a plans file of nnU-Net")
    if "configurations" not in content:
        raise ValueError(f'{file} has no "configurations"; -p takes a plans file of nnU-Net')
    manager = PlansManager(content)
    if name not in manager.available_configurations:
        raise ValueError(
            f"{file} has no configuration {name}; -c takes one of {', '.join(manager.available_configurations)}"
        )
    return manager, manager.get_configuration(name)


def _as_in_training(
    labels: Any, image: Any, spacing: list[float], plans: Any, configuration: Any
) -> tuple[Any, Any, list[float]]:
    """Transpose and resample as nnU-Net's preprocessing does, without its crop."""
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    order = plans.transpose_forward
    source = [spacing[axis] for axis in order]
    target = [float(s) for s in configuration.spacing]
    target = target if len(target) == 3 else [source[0], *target]  # 2D: slices stay
    labels = labels.transpose(order)
    shape = compute_new_shape(labels.shape, source, target)
    labels = configuration.resampling_fn_seg(labels[None].astype("float32"), shape, source, target)[0].astype("int32")
    if image is not None:
        image = configuration.resampling_fn_data(image.transpose(order)[None], shape, source, target)[0]
    return labels, image, target
