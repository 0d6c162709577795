"""Reading one case, with the checks that nnU-Net makes later, or never."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from typing import Any

import nibabel
import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter


def choose_reader(dataset_json: dict[str, Any], images: Iterable[str]) -> type[BaseReaderWriter]:
    """Return nnU-Net's choice of a reader, made on the first image that any reader can open.

    Args:
        dataset_json: The dataset's dataset.json.
        images: Candidates; nnU-Net itself asks the first only, and would fail if that one is damaged.

    Raises:
        ValueError: If no image can be opened.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    first = None
    for image in images:
        first = first or image
        # nnU-Net prints a traceback for every reader that cannot open the file.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                return determine_reader_writer_from_dataset_json(dataset_json, image, verbose=False)
            except RuntimeError:
                continue
    raise ValueError(
        f"none of nnU-Net's readers opens any image of this dataset, e.g. {first} (file_ending "
        f"{dataset_json['file_ending']!r} in dataset.json); replace the files or correct dataset.json"
    )


def read_checked(
    images: tuple[str, ...], reader_class: type[BaseReaderWriter], channels: int, strict: bool = True
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the channels of one case and check what nnU-Net would only notice later, or never.

    Args:
        images: One file a channel.
        reader_class: nnU-Net's reader, as the plans name it.
        channels: Number of channels expected.
        strict: Compare origin and direction of the channels too; without, only shape and spacing, as nnU-Net does.

    Returns:
        ``(C, *S)`` float32 and the reader's properties of the first channel.

    Raises:
        ValueError: If a file is unreadable, is not one 3D (or 2D) image, has NaN or infinite values, or its geometry
            differs from that of the first channel.
    """
    reader = reader_class()
    data = np.zeros(0, np.float32)
    first: dict[str, Any] = {}
    for index, image in enumerate(images):
        try:
            array, properties = reader.read_images([image])
        except Exception as error:
            raise ValueError(f"{image} cannot be read ({one_line(error)}); replace or remove it") from error
        if array.ndim != 4 or (len(images) > 1 and len(array) != 1):
            raise ValueError(
                f"{image} has an array of shape {array.shape}, expected one 3D image a file; split it into channels"
            )
        # Both are NaN if any value is; a mask of finite values would cost a quarter of the image.
        if not (np.isfinite(array.min()) and np.isfinite(array.max())) or nifti_has_non_finite(image, array, reader):
            raise ValueError(f"{image} has NaN or infinite values; replace them by values that mean something")
        if index == 0:
            first, data = properties, array
            if len(images) > 1:
                data = np.empty((len(images), *array.shape[1:]), array.dtype)
        else:
            _check_same_geometry(image, array, properties, images[0], data, first, strict)
        if len(images) > 1:
            data[index] = array[0]
    if len(data) != channels:
        raise ValueError(
            f"{images[0]} has {len(data)} channel(s), expected {channels} (dataset.json); split 4D images into one "
            "file a channel"
        )
    return data, first


def nifti_has_non_finite(image: str, array: np.ndarray, reader: BaseReaderWriter) -> bool:
    """Look into a NIfTI file of floats itself: ITK's reader turns NaN and infinite values into 0 and says nothing.

    It takes as long as the reading did, so it is done only where there is a 0 that may have been something else.
    """
    if not image.endswith((".nii", ".nii.gz")) or type(reader).__name__.startswith("Nibabel") or array.all():
        return False
    stored: Any = nibabel.load(image)
    if not np.issubdtype(stored.get_data_dtype(), np.floating):
        return False
    return not np.isfinite(np.asanyarray(stored.dataobj)).all()


def describe(error: Exception, images: tuple[str, ...]) -> str:
    """Return what was wrong, with the file named."""
    text = str(error).strip() or type(error).__name__
    named = any(image in text for image in images)
    return text if named else f"{images[0]}: {text} ({type(error).__name__})"


def one_line(error: Exception) -> str:
    """Return the last line of what a library says, where the reason stands."""
    text = str(error).strip()
    return text.splitlines()[-1].strip() if text else type(error).__name__


def _check_same_geometry(
    image: str,
    array: np.ndarray,
    properties: dict,
    first_image: str,
    first_array: np.ndarray,
    first: dict,
    strict: bool,
) -> None:
    if array.shape[1:] != first_array.shape[1:]:
        raise ValueError(
            f"{image} has shape {array.shape[1:]}, but {first_image} has {first_array.shape[1:]}; channels of one case "
            "must lie on the same grid"
        )
    for key, expected in (_geometry(first) if strict else {"spacing": first["spacing"]}).items():
        found = _geometry(properties).get(key)
        if found is None or not np.allclose(found, expected, atol=1e-3):
            raise ValueError(
                f"{image} has {key} {found}, but {first_image} has {expected}; channels of one case must lie on the "
                "same grid"
            )


def _geometry(properties: dict[str, Any]) -> dict[str, Any]:
    geometry = {"spacing": properties["spacing"]}
    geometry.update(properties.get("sitk_stuff", {}))
    if "nibabel_stuff" in properties:
        geometry["affine"] = properties["nibabel_stuff"]["original_affine"]
    return geometry
