"""Classes, or regions, that are told apart: names and labels, as dataset.json has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Region = int | tuple[int, ...]


@dataclass(frozen=True)
class Classes:
    """Classes or regions that are evaluated.

    Attributes:
        regions: Name -> label, or labels of a region; as dataset.json names them, without background.
        ignored: Label of voxels that do not count, None where there is none.
    """

    regions: dict[str, Region]
    ignored: int | None = None


def classes_of(plans: dict[str, Any], dataset_json: dict[str, Any]) -> Classes:
    """Return the classes, or regions for region-based training, that nnU-Net evaluates.

    Args:
        plans: Content of the model's plans.json.
        dataset_json: Content of the model's dataset.json.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans).get_label_manager(dataset_json)
    names = {_key(value): name for name, value in dataset_json["labels"].items()}
    evaluated = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    keys = [_key(value) for value in evaluated]
    return Classes({names.get(key, str(key)): key for key in keys}, manager.ignore_label)


def _key(value: int | list[int] | tuple[int, ...]) -> Region:
    if isinstance(value, (list, tuple)):
        labels = tuple(int(label) for label in value)
        return labels if len(labels) > 1 else labels[0]
    return int(value)
