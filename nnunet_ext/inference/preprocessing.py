"""nnU-Net's preprocessing of an image without a segmentation: the same values without the steps that only masks need.

Its own makes a copy of the whole image, and fills the holes of what differs from 0 to find the box around it, which
they do not change.
"""

from __future__ import annotations

import hashlib
import inspect
from functools import lru_cache
from typing import Any

import numpy as np
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.data.geometry import nonzero_box
from nnunet_ext.plugin import compat

_WITHOUT_MASK = (  # normalisations that look at the mask only where use_mask_for_norm says so
    *("ZScoreNormalization", "CTNormalization", "NoNormalization"),
    *("RescaleTo01Normalization", "RGBTo01Normalization"),
)
# of what this replaces, as it was when this was written
_KNOWN = "0320a7989c09b21d814e96b34885ba96cdd37dea206c3ae096c559f6bebf3705"


@lru_cache(maxsize=1)
def _nnunet_is_as_known() -> bool:
    try:
        source = "".join(map(inspect.getsource, (DefaultPreprocessor.run_case_npy, crop_to_nonzero)))
    except OSError:
        return False
    return hashlib.sha256(source.encode()).hexdigest() == _KNOWN


def needs_no_mask(preprocessor: DefaultPreprocessor, configuration: ConfigurationManager) -> bool:
    """Whether :func:`preprocess_image` does what a preprocessor would do with an image.

    Args:
        preprocessor: Preprocessor of the plans.
        configuration: Configuration that it prepares images for.
    """
    return (
        type(preprocessor).run_case_npy is DefaultPreprocessor.run_case_npy
        and compat.normalizes_as_nnunet(preprocessor)
        and _nnunet_is_as_known()
        and not any(configuration.use_mask_for_norm)
        and all(scheme in _WITHOUT_MASK for scheme in configuration.normalization_schemes)
    )


def preprocess_image(
    data: np.ndarray,
    properties: dict[str, Any],
    plans: PlansManager,
    configuration: ConfigurationManager,
    preprocessor: DefaultPreprocessor,
    owned: bool,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Crop, normalise and resample an image as nnU-Net's ``run_case_npy`` does.

    Args:
        data: Image ``(C, *S)``.
        properties: Properties of the image; those that nnU-Net adds are added to them.
        plans: Plans of the model.
        configuration: Configuration of the model, with the spacing of this case.
        preprocessor: Preprocessor of the plans, which normalises.
        owned: Whether the image may be overwritten.

    Returns:
        The image ``(C, *S)`` float32, and its properties.
    """
    if data.dtype != np.float32 or not owned or not data.flags.writeable:
        data = data.astype(np.float32)
    data = data.transpose([0, *[axis + 1 for axis in plans.transpose_forward]])
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    properties["shape_before_cropping"] = data.shape[1:]
    box = nonzero_box(data)
    of_all_channels: tuple[slice, ...] = (slice(None), *box)
    data = data[of_all_channels]
    properties["bbox_used_for_cropping"] = [[extent.start, extent.stop] for extent in box]
    properties["shape_after_cropping_and_before_resampling"] = data.shape[1:]
    target = list(configuration.spacing)
    if len(target) < 3:  # in 2D nnU-Net never resamples between slices
        target = [spacing[0], *target]
    new_shape = compute_new_shape(data.shape[1:], spacing, target)
    inside = np.broadcast_to(np.int8(0), (1, *data.shape[1:]))
    statistics = plans.foreground_intensity_properties_per_channel
    data = compat.normalized(preprocessor, data, inside, configuration, statistics)
    return configuration.resampling_fn_data(data, new_shape, spacing, target), properties
