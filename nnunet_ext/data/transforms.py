"""Carries a validity mask through nnU-Net's augmentation, beside the segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform


class MaskToSegmentation(BasicTransform):
    """Turns the mask of an unlabelled case into nnU-Net's convention: 0 inside, -1 outside and in the padding."""

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Replace ``segmentation`` (``(1, *S)``, 1 = valid)."""
        segmentation = data_dict["segmentation"]
        data_dict["segmentation"] = torch.where(segmentation == 1, 0, -1).to(segmentation.dtype)
        return data_dict


class NoteValidity(BasicTransform):
    """Notes where the segmentation is not -1, just before nnU-Net turns -1 into background."""

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Add ``valid``, ``(1, *S)`` uint8."""
        data_dict["valid"] = (data_dict["segmentation"][:1] != -1).to(torch.uint8)
        return data_dict


class AppendValidity(BasicTransform):
    """Hands the mask on as the last target: nnU-Net's data loader passes nothing but image and segmentation."""

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Replace ``segmentation`` by a list that ends with ``valid``."""
        segmentation = data_dict["segmentation"]
        targets = list(segmentation) if isinstance(segmentation, (list, tuple)) else [segmentation]
        data_dict["segmentation"] = [*targets, data_dict.pop("valid")]
        return data_dict


def with_validity(transforms: ComposeTransforms, unlabelled: bool) -> ComposeTransforms:
    """Return training transforms that also yield a validity mask.

    Args:
        transforms: What the trainer's ``get_training_transforms`` returns; not changed.
        unlabelled: True if the segmentation that comes in is the validity mask of an unlabelled case.

    Returns:
        Transforms whose ``segmentation`` is the list of nnU-Net's targets followed by the mask (``(1, *S)`` uint8).

    Raises:
        RuntimeError: If the transforms never turn -1 into background, so that the mask has no place to be taken.
    """
    steps = list(transforms.transforms)
    place = removal_place(steps)
    before: list[BasicTransform] = [MaskToSegmentation()] if unlabelled else []
    return ComposeTransforms([*before, *steps[:place], NoteValidity(), *steps[place:], AppendValidity()])


def removal_place(steps: Sequence[BasicTransform]) -> int:
    """Return the index of the step that turns -1 into background.

    Raises:
        RuntimeError: If there is none.
    """
    for place, step in enumerate(steps):
        if isinstance(step, RemoveLabelTransform) and step.label_value == -1:
            return place
    raise RuntimeError(
        "get_training_transforms of this trainer has no RemoveLabelTransform(-1, ...), after which padding and "
        "background cannot be told apart; keep that step so that pseudo-supervision can leave out the padding"
    )
