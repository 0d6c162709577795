"""What made a preprocessed unlabelled case, so that stale ones are noticed."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imports torch, which workers that only read scans can do without
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

# Ours treats one case exactly as the stock preprocessor does; only the iteration over the cases differs.
_SAME_PER_CASE = {"SemiSupervisedPreprocessor": "DefaultPreprocessor"}


def plans_signature(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> dict[str, Any]:
    """Return everything of the plans on which a preprocessed case depends, as JSON values."""
    configuration = configuration_manager.configuration
    signature = {
        "preprocessor": _SAME_PER_CASE.get(configuration["preprocessor_name"], configuration["preprocessor_name"]),
        "image_reader_writer": plans_manager.plans["image_reader_writer"],
        "transpose_forward": plans_manager.transpose_forward,
        "foreground_intensity_properties_per_channel": plans_manager.foreground_intensity_properties_per_channel,
        **{
            key: configuration[key]
            for key in (
                "spacing",
                "normalization_schemes",
                "use_mask_for_norm",
                "resampling_fn_data",
                "resampling_fn_data_kwargs",
                "resampling_fn_seg",
                "resampling_fn_seg_kwargs",
                "patch_size",
            )
        },
    }
    return json.loads(json.dumps(signature, default=float))


def source_signature(images: tuple[str, ...]) -> dict[str, Any]:
    """Return path, size (bytes) and modification time (ns) of each file.

    Raises:
        OSError: If a file cannot be looked at.
    """
    stats = [os.stat(image) for image in images]
    return {
        "files": list(images),
        "size": [s.st_size for s in stats],
        "mtime_ns": [s.st_mtime_ns for s in stats],
    }


def digest(signature: dict[str, Any]) -> str:
    """Return a hexadecimal SHA-256 of a signature."""
    return hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()
