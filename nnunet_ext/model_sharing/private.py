"""Plans and dataset.json without paths and names of patients, and without a preprocessor that only training needs."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from nnunet_ext.data.preprocessors import SAME_PER_CASE

PRIVATE_KEYS = ("unlabeled", "dataset")


def without_private_keys(dataset_json: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of dataset.json without the keys that list files of patients."""
    return {key: deepcopy(value) for key, value in dataset_json.items() if key not in PRIVATE_KEYS}


def for_inference(plans: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of plans that names stock preprocessors where ours treats a single case exactly as stock does."""
    plans = deepcopy(plans)
    for configuration in plans["configurations"].values():
        name = configuration.get("preprocessor_name")
        if name in SAME_PER_CASE:
            configuration["preprocessor_name"] = SAME_PER_CASE[name]
    return plans
