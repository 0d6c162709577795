"""What costs nothing to fill the slices between annotated ones: the nearest slice, and shapes between slices."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from scipy.ndimage import distance_transform_edt


def nearest_slice(references: Mapping[int, np.ndarray], slices: int) -> np.ndarray:
    """Return a label map ``(T, H, W)`` in which each slice is the nearest annotated one, of two the lower.

    Args:
        references: Label map ``(H, W)`` of each annotated slice.
        slices: Number of slices, T.
    """
    known = sorted(references)
    return np.stack([references[min(known, key=lambda one: (abs(one - index), one))] for index in range(slices)])


def interpolated_shapes(references: Mapping[int, np.ndarray], slices: int) -> np.ndarray:
    """Return a label map ``(T, H, W)`` whose classes are interpolated between annotated slices by signed distance.

    Below the first and above the last annotated slice it is that slice, where there is nothing to interpolate to.

    Args:
        references: Label map ``(H, W)`` of each annotated slice.
        slices: Number of slices, T.
    """
    found = nearest_slice(references, slices)
    known = sorted(references)
    classes = np.unique(np.stack(list(references.values())))
    distances = {index: _signed_distances(references[index], classes) for index in known}
    for lower, upper in pairwise(known):
        for index in range(lower + 1, upper):
            share = (index - lower) / (upper - lower)
            found[index] = classes[((1 - share) * distances[lower] + share * distances[upper]).argmax(0)]
    return found


def _signed_distances(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return ``(K, H, W)``: of each class how far inside it, in voxels; far outside where the slice has none of it."""
    far = -float(np.hypot(*labels.shape))
    distances = np.full((len(classes), *labels.shape), far)
    for number, value in enumerate(classes):
        inside = labels == value
        if inside.all():
            distances[number] = -far
        elif inside.any():
            distances[number] = distance_transform_edt(inside) - distance_transform_edt(~inside)
    return distances
