"""A case of which some slices are annotated: its label map is read, checked against image and model, and split up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.data.geometry import affine_of
from nnunet_ext.data.reading import read_labels_and_properties
from nnunet_ext.inference.case import Model, Prepared, prepare
from nnunet_ext.inference.propagated import GivenSlices, slices_of_crop
from nnunet_ext.inference.spacing import PlansSpacing, SpacingRule
from nnunet_ext.propagation.sparse import (
    Annotated,
    SliceNumbers,
    along_another_axis,
    annotated_slices,
    axis_name,
    slice_numbers,
)

CHANNEL = len("_0000")
_SAME = 1e-3  # mm of spacing, and of the cosines of directions, by which headers of the same scan differ
_SHIFT = 0.5  # voxels of origin
_LISTED = 10  # slices that are named in a message


@dataclass(kw_only=True)
class SparseCase(Prepared):
    """A case ready for a propagation model, with what is annotated.

    Attributes:
        case: Its name.
        file: Its sparse label map.
        given: Slices that are annotated as a whole, as they are in the file.
        voxels: Index of each annotated voxel of other slices in the flattened image, and its label.
        numbers: How slices are numbered in the file.
        notes: Lines to print.
    """

    case: str
    file: str
    given: GivenSlices
    voxels: tuple[np.ndarray, np.ndarray] | None
    numbers: SliceNumbers
    notes: tuple[str, ...] = ()


def prepare_sparse(
    source: tuple[Any, ...], labels: str, rule: SpacingRule, model: Model, named: Sequence[int] = ()
) -> SparseCase:
    """Read and preprocess a case and its sparse label map.

    Args:
        source: Image files, one a channel.
        labels: File of the label map.
        rule: Taken as runs of cases give it; the spacing is always that of the plans.
        model: Propagation model.
        named: Numbers of the annotated slices, from 1 in the order of the file; without them, the voxels that do not
            have the ignore label of the dataset are annotated.

    Raises:
        ValueError: If image and label map do not fit each other or the model, or there is no slice to begin with.
    """
    prepared = prepare(source, None, PlansSpacing(), model)
    map_of_labels = _read(labels, prepared, model, str(source[0]))
    axis, ignore = int(model.plans.transpose_forward[0]), model.dataset_json["labels"].get("ignore")
    numbers = slice_numbers(prepared.properties, axis, map_of_labels.shape[axis])
    try:
        for number in named:
            numbers.index(number)
    except ValueError as error:
        raise ValueError(f"{labels}: --slices: {error}") from error
    if map_of_labels.shape[axis] == 1 and not named:
        annotated = Annotated((0,), ())
    else:
        annotated = _find(labels, map_of_labels, axis, ignore, named, prepared.properties)
    _check_values(labels, map_of_labels, axis, annotated, model, ignore)
    given = GivenSlices(axis, annotated.whole, map_of_labels.take(annotated.whole, axis))
    voxels = _voxels(map_of_labels, axis, annotated.partly, ignore)
    name = case_of(str(source[0]), model.dataset_json["file_ending"])
    case = SparseCase(**vars(prepared), case=name, file=labels, given=given, voxels=voxels, numbers=numbers)
    case.notes = tuple(_notes(case, annotated, map_of_labels, named))
    return case


def case_of(image: str, ending: str) -> str:
    """Return the name of the case that an image file is of."""
    return Path(image).name.removesuffix(ending)[:-CHANNEL]


def _read(labels: str, prepared: Prepared, model: Model, image: str) -> np.ndarray:
    """Return the label map of an image as integers ``(*S)``.

    Raises:
        ValueError: If it has another shape, spacing or place, or values that are no integers.
    """
    back, shape = model.plans.transpose_backward, prepared.properties["shape_before_cropping"]
    original = tuple(int(shape[axis]) for axis in back)
    values, properties = read_labels_and_properties(labels, model.plans.image_reader_writer_class, original, image)
    _check_geometry(labels, properties, image, prepared)
    result = values[0]
    if not np.array_equal(result, np.rint(result)) or result.min(initial=0) < 0 or result.max(initial=0) > 2**15 - 1:
        raise ValueError(f"{labels} has values that are no labels (integers of 0 or more); save the labels themselves")
    return result.astype(np.int16)


def _check_geometry(labels: str, properties: Mapping[str, Any], image: str, prepared: Prepared) -> None:
    """Raise ValueError if a label map does not lie where its image does, though it has the same shape."""
    own, expected = properties["spacing"], prepared.true_spacing
    if not np.allclose(own, expected, rtol=_SAME, atol=_SAME):
        raise ValueError(
            f"{labels} has the spacing {_rounded(own)} mm (slices first), but {image} has {_rounded(expected)}; they "
            "must lie on the same grid: save the label map with the image's header"
        )
    pointing, wanted = (affine_of(values, of_array=True) for values in (properties, prepared.properties))
    if pointing is not None and wanted is not None and not np.allclose(pointing, wanted, atol=1e-2):
        raise ValueError(
            f"the axes of {labels} point otherwise than those of {image}: it is flipped or turned, or its header is "
            "not the image's; save it as it was drawn on this image"
        )
    place, wanted = (_origin_of(values) for values in (properties, prepared.properties))
    if place is not None and wanted is not None and np.abs(place - wanted).max() > _SHIFT * min(expected):
        raise ValueError(
            f"{labels} has its origin at {_rounded(place)} mm, but {image} at {_rounded(wanted)}; they must lie on the "
            "same grid: save the label map with the image's header"
        )


def _origin_of(properties: Mapping[str, Any]) -> np.ndarray | None:
    """Return where the first voxel of the array lies, as the reader counts; None where it does not say."""
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        return np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), float)[:3, 3]
    origin = properties.get("sitk_stuff", {}).get("origin")
    return None if origin is None else np.asarray(origin, float)


def _rounded(values: Any) -> str:
    return " ".join(f"{float(value):.4g}" for value in values)


def _find(
    labels: str, values: np.ndarray, axis: int, ignore: int | None, named: Sequence[int], properties: Mapping[str, Any]
) -> Annotated:
    """Return the annotated slices.

    Raises:
        ValueError: If there is none along the axis of the model.
    """
    if not named and ignore is None:
        raise ValueError(
            f"{labels}: the model's dataset.json has no ignore label that would tell which slices are annotated; name "
            "them by --slices, from 1 in the order of the file"
        )
    along = axis_name(properties, axis)
    numbers = {one: slice_numbers(properties, one, total) for one, total in enumerate(values.shape)}
    indices = {one: [by.index(number) for number in named if number <= by.total] for one, by in numbers.items()}
    other, slices = along_another_axis(values, axis, ignore, indices if named else {})
    if slices:
        there = sorted(numbers[other].number(index) for index in slices)
        raise ValueError(
            f"{labels} is annotated in the slices {listed(there)} along the axis "
            f"{axis_name(properties, other)}, but the model carries masks along {along}, in whose slices it was "
            f"trained; annotate slices along {along}"
        )
    found = annotated_slices(values, axis, ignore)
    if named:
        chosen = set(indices[axis])
        found = Annotated(*(tuple(index for index in part if index in chosen) for part in (found.whole, found.partly)))
    if not found.whole:
        partly = f" ({len(found.partly)} are annotated in part)" if found.partly else ""
        marked = f"the voxels with the ignore label {ignore} are not annotated" if ignore is not None else "none is"
        raise ValueError(
            f"{labels} has no slice along {along} of which each voxel is annotated{partly}; {marked}: annotate one "
            "slice or more as a whole, background included"
        )
    return found


def _check_values(
    labels: str, values: np.ndarray, axis: int, annotated: Annotated, model: Model, ignore: int | None
) -> None:
    """Raise ValueError if annotated slices have labels that the model does not know, or none has a class."""
    known = {int(label) for label in model.plans.get_label_manager(model.dataset_json).all_labels}
    found = {int(value) for value in np.unique(values.take((*annotated.whole, *annotated.partly), axis))}
    unknown = sorted(found - known - {ignore})
    if unknown:
        raise ValueError(
            f"{labels} has the label(s) {listed(unknown)}, which the model does not have: its dataset.json has "
            f"{listed(sorted(known))}; correct the label map, or take a model of these classes"
        )
    in_whole = values.take(annotated.whole, axis)
    if values.shape[axis] > 1 and not np.isin(in_whole, sorted(known - {0})).any():
        raise ValueError(
            f"{labels}: none of its {len(annotated.whole)} annotated slice(s) has a class, so that there is nothing to "
            "carry to other slices; annotate one in which there is something"
        )


def _voxels(
    values: np.ndarray, axis: int, partly: Sequence[int], ignore: int | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return places and labels of the annotated voxels in slices that are annotated in part."""
    if not partly or ignore is None:
        return None
    kept = np.zeros(values.shape, bool)
    along, labels = np.moveaxis(kept, axis, 0), np.moveaxis(values, axis, 0)
    along[list(partly)] = labels[list(partly)] != ignore
    places = np.flatnonzero(kept)
    return places, values.reshape(-1)[places]


def _notes(case: SparseCase, annotated: Annotated, values: np.ndarray, named: Sequence[int]) -> list[str]:
    notes = []
    unknown = {case.numbers.index(number) for number in named} - {*annotated.whole, *annotated.partly}
    if unknown:
        numbers = sorted(case.numbers.number(index) for index in unknown)
        notes.append(
            f"{case.case}: slice(s) {listed(numbers)} are named, but have the ignore label throughout; nothing is "
            "carried from there"
        )
    if annotated.partly:
        numbers = sorted(case.numbers.number(index) for index in annotated.partly)
        notes.append(
            f"{case.case}: slice(s) {listed(numbers)} are annotated in part: what is annotated of them is kept, but "
            "nothing is carried from them"
        )
    inside = slices_of_crop(case)
    left_out = [index for index in case.given.indices if index not in inside]
    if left_out:
        numbers = sorted(case.numbers.number(index) for index in left_out)
        notes.append(f"{case.case}: the image is 0 in slice(s) {listed(numbers)}; nothing is carried from there")
    if len(case.given.indices) == values.shape[case.given.axis] > 1:
        notes.append(
            f"{case.case}: every slice is annotated, so that there is nothing to find; where empty slices are "
            "not, name the others by --slices"
        )
    return notes


def missing_classes(case: SparseCase, model: Model) -> dict[int, str]:
    """Return the classes that no whole slice has, with their names: they cannot be found.

    Args:
        case: The case.
        model: Propagation model.
    """
    there = {int(value) for value in np.unique(case.given.labels)}
    return {label: name for label, name in class_names(model).items() if label not in there}


def class_names(model: Model) -> dict[int, str]:
    """Return what each label but background is called: the names of its regions where the dataset has these.

    Args:
        model: Propagation model.
    """
    names: dict[int, list[str]] = {}
    for name, labels in model.dataset_json["labels"].items():
        for label in labels if isinstance(labels, (list, tuple)) else [labels]:
            names.setdefault(int(label), []).append(name)
    known = model.plans.get_label_manager(model.dataset_json).all_labels
    return {int(label): ", ".join(names[int(label)]) for label in known if label > 0}


def listed(values: Sequence[int]) -> str:
    """Return numbers as text, the first ones where there are many."""
    shown = ", ".join(map(str, values[:_LISTED]))
    return shown if len(values) <= _LISTED else f"{shown} and {len(values) - _LISTED} more"
