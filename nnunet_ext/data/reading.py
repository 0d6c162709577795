"""Reading one case, with the checks that nnU-Net makes later, or never."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_ext.data.completeness import check_complete

LARGEST_VALUE = 1e15  # the squares of a hundred million such voxels still have a sum in float32
_COMPLEX_WARNING: type[Warning] = getattr(np, "exceptions", np).ComplexWarning


def choose_reader(dataset_json: dict[str, Any], images: Iterable[str]) -> type[BaseReaderWriter]:
    """Return nnU-Net's choice of a reader, made on the first image that any reader can open.

    Args:
        dataset_json: The dataset's dataset.json.
        images: Files to try; nnU-Net itself asks the first only, and would fail if that one is damaged.

    Raises:
        ValueError: If no image can be opened.
    """
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    example = None
    for image in images:
        example = example or image
        # nnU-Net prints a traceback for every reader that cannot open the file.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                return determine_reader_writer_from_dataset_json(dataset_json, image, verbose=False)
            except RuntimeError:
                continue
    raise ValueError(
        f"none of nnU-Net's readers opens any image of this dataset, e.g. {example} (file_ending "
        f"{dataset_json['file_ending']!r} in dataset.json); replace the files or correct dataset.json"
    )


def read_checked(
    images: tuple[str, ...], reader_class: type[BaseReaderWriter], channels: int, strict: bool = True
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the channels of one case and check what nnU-Net would only notice later, or never.

    Args:
        images: Image files of the case, one a channel.
        reader_class: nnU-Net's reader, as the plans name it.
        channels: Number of channels expected.
        strict: Compare origin and direction of the channels too; otherwise only shape and spacing, as nnU-Net does.

    Returns:
        ``(C, *S)`` float32 and the reader's properties of the first channel.

    Raises:
        ValueError: If a file is cut off or unreadable, is not one 3D (or 2D) image, has NaN, infinite or absurd
            values, or its geometry differs from that of the first channel.
    """
    reader = reader_class()
    data = np.zeros(0, np.float32)
    first_properties: dict[str, Any] = {}
    for index, image in enumerate(images):
        check_complete(image)
        array, properties = read_quietly(reader.read_images, image)
        if array.ndim != 4 or (len(images) > 1 and len(array) != 1):
            raise ValueError(describe_channels(image, array, reader_class, images, channels))
        check_values(image, array)
        check_spacing(image, properties)
        if index == 0:
            first_properties, data = properties, array
            if len(images) > 1:
                data = np.empty((len(images), *array.shape[1:]), array.dtype)
        else:
            _check_same_geometry(image, array, properties, images[0], data, first_properties, strict)
        if len(images) > 1:
            data[index] = array[0]
    if len(data) != channels:
        raise ValueError(describe_channels(images[0], data, reader_class, images, channels))
    return data, first_properties


def read_labels(
    label: str, reader_class: type[BaseReaderWriter], shape: tuple[int, ...], image: str = "its image"
) -> np.ndarray:
    """Read the label map of a case and check that it lies on the grid of its image.

    Args:
        label: File of the label map.
        reader_class: nnU-Net's reader of the label map.
        shape: Shape of the image, ``*S``.
        image: Name of the image, for the message.

    Returns:
        ``(1, *S)``.

    Raises:
        ValueError: If the file is cut off or unreadable, or has another shape.
    """
    return read_labels_and_properties(label, reader_class, shape, image)[0]


def read_labels_and_properties(
    label: str, reader_class: type[BaseReaderWriter], shape: tuple[int, ...], image: str = "its image"
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read a label map as :func:`read_labels` does, and return the reader's properties, too."""
    check_complete(label)
    segmentation, properties = read_quietly(reader_class().read_seg, label)
    if segmentation.shape[1:] != tuple(shape):
        raise ValueError(
            f"{label} has shape {segmentation.shape[1:]}, but {image} has {tuple(shape)}; they must lie on the same "
            "grid"
        )
    return segmentation, properties


def read_quietly(read: Callable[[Any], tuple[np.ndarray, dict[str, Any]]], *files: str) -> tuple[np.ndarray, dict]:
    """Call a method of nnU-Net's readers, and name the file that it cannot read.

    Args:
        read: Method of a reader to call: ``read_images``, or ``read_seg``, which takes one file.
        files: Images of one case, one a channel; or a label map.

    Raises:
        ValueError: If a file cannot be read, or has complex values, of which the readers drop a half.
    """
    argument: Any = list(files) if getattr(read, "__name__", "") == "read_images" else files[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", _COMPLEX_WARNING)
            return read(argument)
    except Exception as error:
        reason = one_line(error)
        remedy = "replace or remove it"
        if isinstance(error, _COMPLEX_WARNING):
            reason, remedy = "complex values", "save e.g. their magnitude"
        elif "orthonormal" in str(error):
            remedy = (
                'its axes are sheared: resample it, rewrite its header, or set "overwrite_image_reader_writer": '
                '"NibabelIO" in dataset.json (and plan again)'
            )
        raise ValueError(f"{files[0]} cannot be read ({reason}); {remedy}") from error


def check_values(name: str, array: np.ndarray) -> None:
    """Refuse values with which normalisation and resampling give no numbers.

    Args:
        name: Name of the image, for the message.
        array: Voxels, in any shape.

    Raises:
        ValueError: If a value is NaN or infinite, or so large that its square overflows in sums over a volume.
    """
    # Both are NaN if any value is; a mask of finite values would cost a quarter of the image.
    low, high = (float(value) for value in (array.min(initial=0), array.max(initial=0)))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} has NaN or infinite values; replace them by values that mean something")
    if max(-low, high) > LARGEST_VALUE:
        raise ValueError(
            f"{name} has values from {low:g} to {high:g}, expected at most {LARGEST_VALUE:g}: larger ones overflow in "
            "preprocessing; replace them by values that mean something"
        )


def check_spacing(name: str, properties: dict[str, Any]) -> None:
    """Refuse a spacing that is none.

    Args:
        name: Name of the image, for the message.
        properties: Properties of the image, as nnU-Net's readers return them.

    Raises:
        ValueError: If it is not three positive, finite lengths.
    """
    try:
        values = [float(value) for value in properties["spacing"]]
    except (KeyError, TypeError, ValueError):
        values = []
    if len(values) != 3 or not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(
            f"{name}: its spacing is {properties.get('spacing')}, expected 3 positive values in mm; correct the file's "
            "header"
        )


def reads_natural_images(reader_class: type[BaseReaderWriter]) -> bool:
    """Return whether a reader is nnU-Net's of PNG and the like, which has all colours of a case in one file."""
    return any(base.__name__ == "NaturalImage2DIO" for base in reader_class.__mro__)  # importing it takes long


def describe_channels(
    image: str, array: np.ndarray, reader_class: type[BaseReaderWriter], images: tuple[str, ...], channels: int
) -> str:
    """Return what is wrong with the number of channels of a case.

    Args:
        image: File whose number of channels is wrong.
        array: Voxels of that file, or of all channels.
        reader_class: nnU-Net's reader of the images.
        images: All files of the case.
        channels: Number of channels expected.
    """
    if reads_natural_images(reader_class):
        kind = {1: "grey", 3: "RGB", 4: "RGB with transparency (RGBA)"}.get(len(array), f"of {len(array)} channels")
        expected = "RGB" if channels == 3 else f"{channels} grey image(s), one a channel"
        return (
            f"{image} is {kind}, expected {expected}, as dataset.json names {channels} channel(s); save it so (the "
            f"case has {', '.join(images)})"
        )
    if array.ndim == 4 and len(images) == 1:
        return (
            f"{image} has {len(array)} channel(s), expected {channels} (dataset.json); split 4D images into one file a "
            "channel"
        )
    if array.ndim == 4 and len(array) == 1:
        return f"{images[0]} and so on are {len(images)} channel(s), expected {channels} (dataset.json)"
    return f"{image} has an array of shape {array.shape}, expected one 3D image a file; split it into channels"


def describe(error: Exception, images: tuple[str, ...]) -> str:
    """Return what was wrong, with the file named."""
    text = str(error).strip() or type(error).__name__
    is_named = any(image in text for image in images)
    return text if is_named else f"{images[0]}: {text} ({type(error).__name__})"


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
    geometry, expected = _geometry(properties, strict), _geometry(first, strict)
    for key, value in expected.items():
        actual = geometry.get(key)
        if actual is None or not np.allclose(actual, value, atol=1e-3):
            raise ValueError(
                f"{image} has {key} {_rounded(actual)}, but {first_image} has {_rounded(value)}; channels of one case "
                "must lie on the same grid"
            )


def _geometry(properties: dict[str, Any], strict: bool) -> dict[str, Any]:
    """Return what channels must share: the spacing in array order; if strict, where they lie as well."""
    geometry = {"spacing": properties["spacing"]}
    if strict:
        itk = properties.get("sitk_stuff", {})
        geometry.update({key: itk[key] for key in ("origin", "direction") if key in itk})
        if "nibabel_stuff" in properties:
            geometry["affine"] = properties["nibabel_stuff"]["original_affine"]
    return geometry


def _rounded(values: Any) -> str:
    return "none" if values is None else str(np.round(np.asarray(values, float), 4).tolist())
