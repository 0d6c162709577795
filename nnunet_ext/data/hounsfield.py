"""CT that stays in Hounsfield units: how plans say so, and what is no longer done to such channels in training."""

from __future__ import annotations

from typing import Any

import numpy as np
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

from nnunet_ext.networks.reference_input import HOUNSFIELD_PER_UNIT

HOUNSFIELD = "HounsfieldNormalization"  # in plans


class HounsfieldNormalization(ImageNormalization):
    """Divides Hounsfield units by 1000 and does nothing else: no clipping, no statistics of the dataset.

    Windows are a layer of the network, which needs to know the unit.
    """

    leaves_pixels_outside_mask_at_zero_if_use_mask_for_norm_is_true = False

    def run(self, image: np.ndarray, seg: np.ndarray | None = None) -> np.ndarray:
        """Return the image in thousands of Hounsfield units.

        Args:
            image: Intensities in Hounsfield units, of any shape.
            seg: Not looked at.
        """
        scaled: np.ndarray = image.astype(self.target_dtype) / self.target_dtype(HOUNSFIELD_PER_UNIT)
        return scaled


def hounsfield_channels(configuration: Any) -> tuple[int, ...]:
    """Return which image channels of a configuration's data are CT in Hounsfield units / 1000.

    Args:
        configuration: nnU-Net's ConfigurationManager.
    """
    schemes = configuration.normalization_schemes
    return tuple(number for number, scheme in enumerate(schemes) if scheme == HOUNSFIELD)
