"""The position of a slice in its scan: one more channel of the data of a 2D network.

Pham et al. give it to their networks as index / number of slices; here it runs from 0 to 1, from the feet to the head
where the slices are axial and the image says where it points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nibabel.orientations import io_orientation

from nnunet_ext.data.dataset_json import number_of_channels
from nnunet_ext.data.geometry import affine_of
from nnunet_ext.data.host import Trainer
from nnunet_ext.data.preprocessors import REFERENCE_PREPROCESSOR

COUNTED_BY = "slice_position"  # in the properties of a case, one of the two below
PATIENT, INDEX = "patient", "index"
_HEAD_FOOT = 2  # among nibabel's axes
BY_INDEX = (
    "the slices are not axial, or the images do not say where they point, so that positions count from the first slice "
    "(0) to the last (1) instead of from the feet to the head"
)


def has_position(configuration: Any) -> bool:
    """Whether the preprocessed data of a configuration have the position as their last channel.

    Args:
        configuration: nnU-Net's ConfigurationManager.
    """
    return bool(configuration.configuration.get("preprocessor_name") == REFERENCE_PREPROCESSOR)


def slice_positions(total: int, first: int = 0, number: int | None = None, from_end: bool = False) -> np.ndarray:
    """Return the positions of consecutive slices: index / (total - 1), and 0.5 for the only slice of a scan.

    Args:
        total: Number of slices of the whole scan, before it was cropped.
        first: Index in it of the first slice that is left.
        number: Number of slices that are left; None for all from the first one on.
        from_end: Whether to count from the last slice.

    Returns:
        ``(number,)`` float32.

    Example:
        >>> from nnunet_ext.data.position import slice_positions
        >>> slice_positions(5).tolist(), slice_positions(5, 1, 2, from_end=True).tolist(), slice_positions(1).tolist()
        ([0.0, 0.25, 0.5, 0.75, 1.0], [0.75, 0.5], [0.5])
    """
    index = np.arange(first, total if number is None else first + number)
    if total == 1:
        return np.full(len(index), 0.5, np.float32)
    positions: np.ndarray = ((total - 1 - index if from_end else index) / (total - 1)).astype(np.float32)
    return positions


def slicing_direction(properties: Mapping[str, Any], axis: int) -> int | None:
    """Return 1 if slices along an array axis go from the feet to the head, -1 if the other way.

    The nearest of the patient's axes counts where an image is oblique.

    Args:
        properties: Properties of the image, as ``read_images`` of nnU-Net's readers returns them.
        axis: Axis of the array as it was read.

    Returns:
        None where the slices are not axial or the image does not say where it points.
    """
    affine = affine_of(properties, of_array=True)
    if affine is None:
        return None
    nearest, sign = io_orientation(affine)[2 - axis]  # nnU-Net's arrays have the axes of the image reversed
    return int(sign) if nearest == _HEAD_FOOT else None


def append_position(data: np.ndarray, properties: dict[str, Any], transpose_forward: Sequence[int]) -> np.ndarray:
    """Append the position of each slice to preprocessed data, and note in the properties what it counts from.

    Args:
        data: ``(C, *S)``, transposed, cropped and resampled within slices: the first axis is the one of the slices.
        properties: Properties of the case as nnU-Net's preprocessor leaves them.
        transpose_forward: Order of the axes in the plans.

    Returns:
        ``(C + 1, *S)`` of the type of ``data``.

    Raises:
        ValueError: If slices were resampled, so that they are no slices of the scan any more.
    """
    left = int(properties["shape_after_cropping_and_before_resampling"][0])
    if data.shape[1] != left:
        raise ValueError(
            f"the position of slices needs a 2d configuration, which keeps them; {left} slices were resampled to "
            f"{data.shape[1]}"
        )
    direction = slicing_direction(properties, int(transpose_forward[0]))
    positions = slice_positions(
        int(properties["shape_before_cropping"][0]),
        int(properties["bbox_used_for_cropping"][0][0]),
        left,
        from_end=direction == -1,
    )
    properties[COUNTED_BY] = INDEX if direction is None else PATIENT
    channel = np.broadcast_to(positions.astype(data.dtype)[None, :, None, None], (1, *data.shape[1:]))
    return np.concatenate([data, channel])


def refuse_stale_channels(trainer: Trainer, command: str) -> None:
    """Raise if labelled cases were preprocessed before plans of the reference module had their position on or off.

    Augmentation would take the last channel of the image for the position, whatever it is.

    Args:
        trainer: An initialised trainer; the data of other plans are not looked at.
        command: Command that preprocesses the labelled cases.

    Raises:
        RuntimeError: If a case has other channels than the plans say.
    """
    configuration = trainer.configuration_manager
    with_one_more = has_position(configuration)
    arguments = configuration.configuration.get("architecture", {}).get("arch_kwargs", {})
    if not with_one_more and "position" not in arguments:
        return
    cases = sorted(Path(trainer.preprocessed_dataset_folder).glob("*.b2nd"))
    for file in [case for case in cases if not case.stem.endswith("_seg")][:1]:
        try:
            found = blosc2.open(urlpath=str(file), mode="r").shape[0]
        except (OSError, RuntimeError):  # who reads it says so
            return
        expected = number_of_channels(trainer.dataset_json) + int(with_one_more)
        if found != expected:
            what = "image and position of slices have" if with_one_more else "the image has"
            raise RuntimeError(
                f"{file} has {found} channel(s), but {what} {expected} by the plans "
                f"{trainer.plans_manager.plans_name}: it was preprocessed with other plans. Run: {command}"
            )
