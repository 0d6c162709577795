"""Left atria in a folder of the user's: crops in h5 files, or pairs of NIfTI files; read at half resolution."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

H5_SPACING = 0.625  # mm in every axis; h5 files of the public crops do not say
FEW, HIDDEN, TESTS = 8, 72, 20
_NIFTI = (".nii.gz", ".nii")


@dataclass(frozen=True)
class AtriumCase:
    """One scan with its label.

    Attributes:
        name: Of the case, unique in its folder.
        image: An h5 file with both, or the image.
        label: The same h5 file, or the label.
    """

    name: str
    image: Path
    label: Path


def find_cases(folder: str | Path) -> list[AtriumCase]:
    """Return the cases of a folder, sorted by name.

    It holds h5 files with the datasets "image" and "label", as FOLDER/CASE.h5 or one for each case's folder; or
    NIfTI pairs, as imagesTr/CASE_0000.nii.gz with labelsTr/CASE.nii.gz, as CASE_image.nii.gz with CASE_label.nii.gz,
    or as CASE/image.nii.gz with CASE/label.nii.gz.

    Raises:
        ValueError: If there is none, a label is missing, or two cases have one name; names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; expected one with h5 crops or NIfTI pairs of left atria")
    files = sorted(folder.rglob("*.h5"))
    counts = {parent: sum(file.parent == parent for file in files) for parent in {file.parent for file in files}}
    cases = [
        AtriumCase(file.parent.name if file.parent != folder and counts[file.parent] == 1 else file.stem, file, file)
        for file in files
    ]
    if not cases:
        cases = [_pair(file) for ending in _NIFTI for file in sorted(folder.rglob(f"*{ending}")) if _is_image(file)]
    if not cases:
        raise ValueError(f"{folder} has neither h5 files nor NIfTI pairs; expected CASE/image.nii.gz and label.nii.gz")
    cases.sort(key=lambda case: case.name)
    for first, second in itertools.pairwise(cases):
        if first.name == second.name:
            raise ValueError(f"{first.image} and {second.image} are both the case {first.name!r}; keep one of them")
    return cases


def _stem(file: Path) -> str:
    return next(file.name[: -len(ending)] for ending in _NIFTI if file.name.endswith(ending))


def _is_image(file: Path) -> bool:
    stem = _stem(file)
    return stem == "image" or stem.endswith("_image") or (file.parent.name == "imagesTr" and stem.endswith("_0000"))


def _pair(image: Path) -> AtriumCase:
    stem, ending = _stem(image), image.name[len(_stem(image)) :]
    if image.parent.name == "imagesTr":
        name = stem.removesuffix("_0000")
        label = image.parent.parent / "labelsTr" / f"{name}{ending}"
    else:
        name = image.parent.name if stem == "image" else stem.removesuffix("_image")
        label = image.with_name(f"{stem.removesuffix('image')}label{ending}")
    if not label.is_file():
        raise ValueError(f"{image} has no label; expected {label}")
    return AtriumCase(name, image, label)


def divide(cases: Sequence[AtriumCase]) -> tuple[Sequence[AtriumCase], Sequence[AtriumCase], Sequence[AtriumCase]]:
    """Return the labelled, the unlabelled and the test cases: in this order by name.

    Raises:
        ValueError: If there are not 100.
    """
    if len(cases) != FEW + HIDDEN + TESTS:
        raise ValueError(f"{len(cases)} cases of left atria were found, expected {FEW + HIDDEN + TESTS}")
    return cases[:FEW], cases[FEW : FEW + HIDDEN], cases[FEW + HIDDEN :]


def read_case(case: AtriumCase) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Read a case at half resolution.

    Returns:
        Image, ``(*S)`` float32, means of 2 x 2 x 2 voxels; label, ``(*S)`` uint8, 1 where half of them or more are
        atrium; spacing in mm. An odd last plane is left out.

    Raises:
        ValueError: If image and label do not fit.
    """
    if case.image.suffix == ".h5":
        image, label = _read_h5(case.image)
        spacing: tuple[float, ...] = (H5_SPACING,) * 3
    else:
        image, label, spacing = _read_nifti(case)
    if image.ndim != 3 or image.shape != label.shape:
        raise ValueError(f"{case.image}: image of {image.shape} and label of {label.shape}, expected one 3D shape")
    if min(image.shape) < 2:
        raise ValueError(f"{case.image}: image of {image.shape}, expected two voxels or more in every axis")
    atrium = (label > 0).astype(np.float32)
    halved = tuple(2 * step for step in spacing)
    return _block_means(image.astype(np.float32)), (_block_means(atrium) >= 0.5).astype(np.uint8), halved


def _block_means(volume: np.ndarray) -> np.ndarray:
    even = volume[tuple(slice(0, size // 2 * 2) for size in volume.shape)]
    a, b, c = (size // 2 for size in even.shape)
    return even.reshape(a, 2, b, 2, c, 2).mean((1, 3, 5))


def _read_h5(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{file} needs h5py, which is not installed; run: pip install h5py") from None
    try:
        with h5py.File(file, "r") as content:
            missing = [name for name in ("image", "label") if name not in content]
            if missing:
                raise ValueError(f"{file} has no dataset {missing[0]!r}; expected 'image' and 'label'")
            return np.asarray(content["image"]), np.asarray(content["label"])
    except OSError as error:
        raise ValueError(f"{file} is no whole h5 file ({error}); copy it again") from error


def _read_nifti(case: AtriumCase) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    import SimpleITK

    volumes: list[Any] = []
    for file in (case.image, case.label):
        try:
            volumes.append(SimpleITK.ReadImage(str(file)))
        except RuntimeError as error:
            raise ValueError(f"{file} cannot be read as NIfTI; copy it again") from error
    image, label = (SimpleITK.GetArrayFromImage(volume) for volume in volumes)
    return image, label, tuple(float(step) for step in volumes[0].GetSpacing()[::-1])
