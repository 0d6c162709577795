"""Export of one case, from logits to files: a label map at the image's own size, written whole or not at all."""

from __future__ import annotations

import errno
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext import files
from nnunet_ext.data.completeness import check_complete
from nnunet_ext.inference.case import CaseConfiguration, Model, Prepared
from nnunet_ext.inference.fast_export import Interpolation, label_map, plan_interpolation
from nnunet_ext.inference.process_memory import peak_memory_mib
from nnunet_ext.inference.spacing_report import CaseRecord, complete_record

_CHECKED = (".nii", ".nii.gz", ".gipl")  # formats that check_complete can tell to be whole
_READ_BACK = (".nrrd", ".mha", ".png", ".bmp", ".tif", ".tiff")
Logits = torch.Tensor | np.ndarray


class Handover:
    """An array for a worker process, given away when it is pickled, so that it is not kept until the worker is done."""

    def __init__(self, array: np.ndarray) -> None:
        self.array: np.ndarray | None = array

    def __reduce__(self) -> tuple[Any, ...]:
        """Become the array itself on the other side."""
        array, self.array = self.array, None
        return _itself, (array,)


def _itself(array: np.ndarray) -> np.ndarray:
    return array


@dataclass
class Exported:
    """Result of the export of a case.

    Attributes:
        segmentation: Label map ``(*S)`` at the image's size; ``None`` once it is written.
        probabilities: Probabilities ``(K, *S)`` at the image's size, where they are asked for and not written.
        seconds: Stage, ``resampling`` or ``writing`` -> seconds that it took.
        peak_memory_mib: Peak memory of the process until the end of the export, in MiB.
    """

    segmentation: np.ndarray | None
    probabilities: np.ndarray | None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mib: float = 0.0


def why_not_fast(
    model: Model, prepared: Prepared, shape: Sequence[int], save_probabilities: bool = False
) -> str | None:
    """Return why a case has to be exported by nnU-Net's own functions, ``None`` if it need not.

    Args:
        model: Trained model that the case was prepared for.
        prepared: Case that the logits belong to.
        shape: Spatial shape ``*S`` of the logits.
        save_probabilities: Whether probabilities are to be written or returned too.
    """
    if save_probabilities:
        return "probabilities are wanted"
    if type(model.plans.get_label_manager(model.dataset_json)) is not LabelManager:
        return f"the plans have a label manager of their own ({model.plans.plans.get('label_manager')})"
    if interpolation_of(model, prepared, shape) is None:
        name = model.configuration.configuration.get("resampling_fn_probabilities")
        return f"the plans' resampling of probabilities ({name}) is not linear"
    return None


def export(
    logits: Logits,
    prepared: Prepared,
    model: Model,
    output: str | None,
    save_probabilities: bool = False,
    fast: bool = False,
    device: torch.device | None = None,
    record: CaseRecord | None = None,
) -> Exported:
    """Resample logits to the image's size, make a label map of them, and write it if there is a name for it.

    Args:
        logits: Logits ``(K, *S)`` of the prepared case.
        prepared: Case that the logits belong to; its data is not used.
        model: Trained model, which defines resampling, labels and file format where the case names no other.
        output: Path of the label map without its ending; ``None`` returns the result instead.
        save_probabilities: Whether to make probabilities too (``.npz`` and ``.pkl``, as nnU-Net).
        fast: Whether to interpolate only where needed; possible if :func:`why_not_fast` returns ``None``.
        device: Device that a fast export interpolates on.
        record: Record of the case, written just before the label map.

    Raises:
        DiskFullError: If there is no room for the result.
    """
    start = time.perf_counter()
    probabilities = None
    model = model if prepared.exported is None else prepared.exported.model
    if fast:
        segmentation = _export_fast(logits, prepared, model, device)
    else:
        converted = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            model.plans,
            CaseConfiguration(model.configuration, prepared.target, image_only=True),
            model.plans.get_label_manager(model.dataset_json),
            prepared.properties,
            return_probabilities=save_probabilities,
        )
        segmentation, probabilities = converted if save_probabilities else (converted, None)
    if prepared.exported is not None and prepared.exported.finish is not None:
        segmentation = prepared.exported.finish(segmentation)
    resampled_at = time.perf_counter()
    result = Exported(segmentation, probabilities, {"resampling": resampled_at - start})
    if output is not None:
        _write(result, prepared, model, Path(output), record, resampled_at)
        result.segmentation = result.probabilities = None
    result.seconds["writing"] = time.perf_counter() - resampled_at
    result.peak_memory_mib = peak_memory_mib()
    return result


def interpolation_of(model: Model, prepared: Prepared, logits_shape: Sequence[int]) -> Interpolation | None:
    """Return how stock would resample the logits of a case, None if not linearly; its arguments are as in stock."""
    properties = prepared.properties
    spacing = [properties["spacing"][axis] for axis in model.plans.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    current = prepared.target if len(prepared.target) == len(shape) else [spacing[0], *prepared.target]
    resampling = model.configuration.resampling_fn_probabilities
    return plan_interpolation(resampling, logits_shape, shape, current, spacing)


def _export_fast(logits: Logits, prepared: Prepared, model: Model, device: torch.device | None) -> np.ndarray:
    interpolation = interpolation_of(model, prepared, logits.shape[1:])
    if interpolation is None:
        raise ValueError("these logits are not resampled linearly; see why_not_fast")
    labels = model.plans.get_label_manager(model.dataset_json)
    properties = prepared.properties
    full_size = np.zeros(
        properties["shape_before_cropping"], np.uint8 if len(labels.foreground_labels) < 255 else np.uint16
    )
    inside = full_size[bounding_box_to_slice(properties["bbox_used_for_cropping"])]
    order = [int(label) for label in labels.regions_class_order] if labels.has_regions else None
    for candidate in dict.fromkeys((device, torch.device("cpu"))):
        try:
            label_map(logits, inside.shape, interpolation, order, out=inside, device=candidate)
            break
        except torch.cuda.OutOfMemoryError:  # the network's memory may be all that the GPU has
            if candidate is None or candidate.type == "cpu":
                raise
    return full_size.transpose(model.plans.transpose_backward)


def _write(
    result: Exported, prepared: Prepared, model: Model, output: Path, record: CaseRecord | None, since: float
) -> None:
    """Write the files of a case; the label map, which stands for a finished case, appears last."""
    segmentation: Any = result.segmentation
    properties = {**prepared.properties, "spacing": prepared.true_spacing}
    label_map_name = output.name + model.dataset_json["file_ending"]
    target = output.with_name(label_map_name)
    with (
        files.whole_files(output.parent, lambda file: file.name == label_map_name) as folder,
        files.naming_full_disk(target),
    ):
        if result.probabilities is not None:
            np.savez_compressed(folder / f"{output.name}.npz", probabilities=result.probabilities)
            (folder / f"{output.name}.pkl").write_bytes(pickle.dumps(properties))
        writer = model.plans.image_reader_writer_class()
        writer.write_seg(segmentation, str(folder / label_map_name), properties)
        check_written(folder / label_map_name, writer, segmentation.shape)
        if record is not None:  # before the label map: none is ever there without its record
            result.seconds["writing"] = time.perf_counter() - since
            record.write(complete_record(prepared.record, result.seconds, peak_memory_mib()))


def check_written(file: Path, reader: BaseReaderWriter, shape: tuple[int, ...]) -> None:
    """Check that a label map that was just written is whole: ITK ignores that there is no room.

    Args:
        file: File of the label map.
        reader: nnU-Net's reader and writer of the file format.
        shape: Spatial shape ``*S`` of the label map.

    Raises:
        OSError: If it is not whole, as of a full disk.
    """
    try:
        if not file.stat().st_size:
            raise ValueError("it is empty")
        check_complete(file)
    except ValueError as error:
        raise OSError(errno.ENOSPC, "what was written is not whole") from error
    try:
        if not file.name.endswith(_CHECKED) and reader.read_seg(str(file))[0].shape[-len(shape) :] != tuple(shape):
            raise ValueError("it has another shape")
    except Exception as error:  # readers of other formats raise what they like
        # A reader of users' own may fail for other reasons than a full disk.
        cause = errno.ENOSPC if file.name.endswith(_READ_BACK) else errno.EIO
        raise OSError(cause, "what was written is not whole") from error
