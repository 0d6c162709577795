"""One case on its way to the network: read, given its spacings, checked, preprocessed."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.data.completeness import check_complete
from nnunet_ext.data.geometry import nonzero_box
from nnunet_ext.data.position import has_position
from nnunet_ext.data.reading import (
    check_spacing,
    check_values,
    describe_channels,
    read_checked,
    read_labels,
    read_quietly,
    reads_natural_images,
)
from nnunet_ext.inference.axes import find_axes
from nnunet_ext.inference.image_folder import channel_files_message
from nnunet_ext.inference.preprocessing import needs_no_mask, preprocess_image
from nnunet_ext.inference.process_memory import peak_memory_mib, total_memory_bytes
from nnunet_ext.inference.resampling import with_less_memory
from nnunet_ext.inference.spacing import CaseGeometry, PlansSpacing, SpacingChoice, SpacingRule, check_shape

_OF_PREPARATION = (  # keys of a configuration that say how an image is prepared
    *("preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm"),
    *("resampling_fn_data", "resampling_fn_data_kwargs"),
)


@dataclass(frozen=True)
class Model:
    """Plans of a trained model, from which its cases are prepared and its logits are exported; it can be pickled.

    Attributes:
        plans: nnU-Net's PlansManager of the trained model.
        configuration: nnU-Net's ConfigurationManager, with the spacing that the network was trained at.
        dataset_json: Content of the model's dataset.json.
        verbose: Whether nnU-Net's preprocessor prints what it does.
        stock_resampling: Whether images are resampled by the plans' own function, to the last bit, whatever the memory.
    """

    plans: PlansManager
    configuration: ConfigurationManager
    dataset_json: dict[str, Any]
    verbose: bool = False
    stock_resampling: bool = False

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return len(self.dataset_json.get("channel_names") or self.dataset_json["modality"])

    @property
    def dimensions(self) -> int:
        """Axes that are resampled: 2 or 3."""
        return len(self.configuration.spacing)


@dataclass
class Prepared:
    """A case ready for the network.

    Attributes:
        data: Network input ``(C, *S)``, float32, resampled; with the one-hot previous stage where there is one.
        properties: Properties of the image as nnU-Net's preprocessor leaves them, with the declared spacing, for
            resampling back.
        true_spacing: Spacing of the image in mm, in array order, for writing.
        target: Spacing of ``data``, as nnU-Net's configurations have it: in the plans' axis order, 2 values in 2d.
        record: Entry of the case in ``spacing_report.json``; see ``docs/inference.md``.
        carried: The same image prepared for a propagation model, where that prepares it otherwise.
        exported: How its logits are exported, where not by the model that it was prepared for.
    """

    data: np.ndarray
    properties: dict[str, Any]
    true_spacing: Any
    target: list[float]
    record: dict[str, Any] = field(default_factory=dict)
    carried: Prepared | None = None
    exported: ExportedBy | None = None


@dataclass(frozen=True)
class ExportedBy:
    """Another model that exports logits than the one that a case was prepared for; it can be pickled.

    Attributes:
        model: Plans and labels of the logits.
        finish: Makes the label map that is written from the one that the model makes, both ``(*S)`` of the image.
    """

    model: Model
    finish: Callable[[np.ndarray], np.ndarray] | None = None


class CaseConfiguration(ConfigurationManager):
    """A configuration that resamples to the spacing of one case, with as little memory as it can."""

    def __init__(
        self, configuration: ConfigurationManager, target: Sequence[float], image_only: bool, stock: bool = False
    ) -> None:
        super().__init__({**configuration.configuration, "spacing": list(target)})
        self._image_only, self._stock = image_only, stock

    @cached_property
    def resampling_fn_data(self) -> Callable[..., Any]:
        """The plans' function, or one that gives the same values with less memory."""
        own: Callable[..., Any] = super().resampling_fn_data
        return own if self._stock else with_less_memory(own)

    @cached_property
    def resampling_fn_seg(self) -> Callable[..., Any]:
        """The plans' function; without a previous stage one that makes zeros, as its result is not used."""
        return _empty_segmentation if self._image_only else super().resampling_fn_seg


def _empty_segmentation(seg: np.ndarray, new_shape: Sequence[int], *_: Any) -> np.ndarray:
    return np.zeros((len(seg), *(int(n) for n in new_shape)), np.int8)


def prepare(
    source: tuple[str, ...] | tuple[np.ndarray, dict[str, Any]],
    previous: str | np.ndarray | None,
    rule: SpacingRule,
    model: Model,
    carrier: Model | None = None,
) -> Prepared:
    """Read and preprocess one case.

    Args:
        source: Image files, one a channel; or an array ``(C, *S)`` and its properties, as nnU-Net's readers return it.
        previous: Segmentation of the previous stage of a cascade: a file, or an array ``(1, *S)``; ``None`` without
            one.
        rule: Rule that chooses the declared and the target spacing of the case.
        model: Trained model that the case is prepared for.
        carrier: Propagation model that it is prepared for as well, from the image that was read once.

    Raises:
        ValueError: If a file cannot be read, has no usable spacing or non-finite values, or if the spacing chosen
            leaves too few voxels, or more than memory would hold.
    """
    start = time.perf_counter()
    try:
        data, seg, properties = _read(source, previous, model)
    except ValueError as error:
        natural = reads_natural_images(model.plans.image_reader_writer_class)
        if isinstance(source[0], str) and len(source) != model.channels and not natural:
            ending = model.dataset_json["file_ending"]
            raise ValueError(channel_files_message(source, model.channels, ending, str(error))) from error
        raise
    read_at = time.perf_counter()
    name = str(source[0]) if isinstance(source[0], str) else "the image"
    holder = [data]
    del data  # the preprocessor makes a copy; nobody needs the image after that
    carried = None
    alike = seg is None and isinstance(rule, PlansSpacing) and carrier is not None and prepares_alike(model, carrier)
    if carrier is not None and not alike:
        carried = _preprocess([holder[0]], None, properties, PlansSpacing(), carrier, name)
    of_files = isinstance(source[0], str)  # an array is the caller's
    prepared = _preprocess(holder, seg, properties, rule, model, name, owned=of_files)
    prepared.carried = carried
    prepared.record["seconds"] = {"reading": read_at - start, "preprocessing": time.perf_counter() - read_at}
    prepared.record["peak_memory_mib"] = {"preprocessing": peak_memory_mib()}
    return prepared


def _preprocess(
    holder: list[np.ndarray],
    seg: np.ndarray | None,
    properties: dict[str, Any],
    rule: SpacingRule,
    model: Model,
    name: str,
    owned: bool = False,
) -> Prepared:
    """Choose the spacings of an image, which is taken out of its holder, and preprocess it."""
    try:
        geometry = _geometry(holder[0], properties, model)
        choice = rule.choose(geometry)
        check_shape(choice, geometry, rule)
        if not isinstance(rule, PlansSpacing):  # what stock would try is tried
            _check_memory(choice, geometry, rule, model)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    target = [to for to in (choice.target[axis] for axis in model.plans.transpose_forward) if to is not None]
    true_spacing = properties["spacing"]
    properties = {**properties, "spacing": list(choice.declared)}
    preprocessor = model.configuration.preprocessor_class(verbose=model.verbose)
    needs_no_segmentation = has_position(model.configuration) or (
        type(preprocessor).run_case_npy is DefaultPreprocessor.run_case_npy
    )
    image_only = seg is None and needs_no_segmentation
    configuration = CaseConfiguration(model.configuration, target, image_only, model.stock_resampling)
    try:
        if image_only and needs_no_mask(preprocessor, configuration):
            prepared, properties = preprocess_image(
                holder.pop(), properties, model.plans, configuration, preprocessor, owned
            )
        else:
            prepared, resampled_seg, properties = preprocessor.run_case_npy(
                holder.pop(), seg, properties, model.plans, configuration, model.dataset_json
            )
    except Exception as error:
        raise RuntimeError(f"{name} cannot be preprocessed: {type(error).__name__}: {error}") from error
    if seg is not None:
        labels = model.plans.get_label_manager(model.dataset_json).foreground_labels
        prepared = np.vstack((prepared, convert_labelmap_to_one_hot(resampled_seg[0], labels, prepared.dtype)))
    record = _record(geometry, choice, prepared.shape[1:])
    return Prepared(np.ascontiguousarray(prepared, np.float32), properties, true_spacing, target, record)


def prepares_alike(one: Model, other: Model) -> bool:
    """Whether two models prepare an image in the same way, up to rounding, so that it need be done once only."""
    if one.plans.transpose_forward != other.plans.transpose_forward:
        return False
    if one.plans.image_reader_writer_class is not other.plans.image_reader_writer_class:
        return False
    statistics = (model.plans.foreground_intensity_properties_per_channel for model in (one, other))
    settings = ([model.configuration.configuration.get(key) for key in _OF_PREPARATION] for model in (one, other))
    return operator.eq(*statistics) and operator.eq(*settings)


def _read(
    source: tuple[Any, ...], previous: str | np.ndarray | None, model: Model
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    if isinstance(source[0], str):
        name = source[0]
        data, properties = _read_images(source, model)
    else:
        name, data, properties = "the image", np.asarray(source[0]), dict(source[1])
    if data.ndim != 4:
        raise ValueError(f"{name} has an array of shape {data.shape}, expected (C, *S) with 3 spatial axes")
    if len(data) != model.channels and isinstance(source[0], str):
        reader = model.plans.image_reader_writer_class
        if reads_natural_images(reader):
            raise ValueError(describe_channels(name, data, reader, source, model.channels))
    if len(data) != model.channels:
        names = f": {', '.join(source)}" if isinstance(source[0], str) else ""
        raise ValueError(f"{name} has {len(data)} channel(s), expected {model.channels} (dataset.json){names}")
    check_values(name, data)
    check_spacing(name, properties)
    if previous is None:
        return data, None, properties
    if isinstance(previous, str):
        try:
            seg = read_labels(previous, model.plans.image_reader_writer_class, data.shape[1:], name)
            return data, seg, properties
        except ValueError as error:
            raise ValueError(f"{error} (it must be the previous stage's result)") from error
    if previous.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"the previous stage's segmentation has shape {previous.shape[1:]}, but {name} has {data.shape[1:]}"
        )
    return data, previous, properties


def _read_images(files: tuple[str, ...], model: Model) -> tuple[np.ndarray, dict[str, Any]]:
    """Read as nnU-Net does; where that fails, find out which file is to blame."""
    reader = model.plans.image_reader_writer_class
    for file in files:
        check_complete(file)
    try:
        return read_quietly(reader().read_images, *files)
    except ValueError:
        read_checked(files, reader, model.channels, strict=False)
        raise


def _geometry(data: np.ndarray, properties: Mapping[str, Any], model: Model) -> CaseGeometry:
    values = tuple(float(value) for value in properties["spacing"])
    plan: list[float | None] = [None, None, None]
    resampled = list(model.plans.transpose_forward)[-model.dimensions :]
    for axis, value in zip(resampled, model.configuration.spacing, strict=True):
        plan[axis] = float(value)
    first, second, third = plan
    shape = (data.shape[1], data.shape[2], data.shape[3])
    return CaseGeometry(shape, _non_zero_shape(data), values, (first, second, third), find_axes(properties))  # type: ignore[arg-type]


def _non_zero_shape(data: np.ndarray) -> tuple[int, int, int]:
    """Return the size of the box that nnU-Net's preprocessor crops to."""
    first, second, third = (extent.stop - extent.start for extent in nonzero_box(data))
    return first, second, third


def _check_memory(choice: SpacingChoice, geometry: CaseGeometry, rule: SpacingRule, model: Model) -> None:
    """Refuse a resampled volume that the memory of this machine cannot hold even if it holds nothing else."""
    heads = model.plans.get_label_manager(model.dataset_json).num_segmentation_heads
    shape = choice.resampled_shape(geometry.cropped_shape)
    channels = model.channels + has_position(model.configuration)
    bytes_per_voxel = 4 * channels + 2 * heads  # image float32, logits float16
    required, total = math.prod(shape) * bytes_per_voxel, total_memory_bytes()
    if total is not None and required > total:
        max_voxels = int(0.5 * total / bytes_per_voxel)
        raise ValueError(
            f"{rule.describe()} makes a volume of {' x '.join(map(str, shape))} voxels, whose image and logits of "
            f"{heads} classes alone take {required / 2**30:.1f} GiB; this machine has {total / 2**30:.1f} GiB. Use a "
            f"coarser spacing, or e.g. --max_voxels {max_voxels}"
        )


def _record(geometry: CaseGeometry, choice: SpacingChoice, resampled: tuple[int, ...]) -> dict[str, Any]:
    def xyz(values: Sequence[float | None]) -> list[float | None]:
        return [None if value is None else round(float(value), 6) for value in geometry.axes.to_xyz(values)]

    return {
        "true_spacing": xyz(geometry.spacing),
        "declared_spacing": xyz(choice.declared),
        "target_spacing": xyz(choice.target),
        "stretch": xyz(choice.stretch(geometry)),
        "direction_known": geometry.axes.known,
        "shape": list(geometry.axes.to_xyz(geometry.shape)),
        "resampled_shape": list(geometry.axes.to_xyz(choice.resampled_shape(geometry.cropped_shape))),
        "voxels": int(np.prod(resampled)),
    }
