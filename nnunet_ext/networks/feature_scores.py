"""How curved and how informative the channels of feature maps are.

Liu et al., "Instructive Feature Enhancement for dichotomous medical image segmentation", MICCAI 2023
(arXiv:2306.03497). The paper is in 2D; what 3D means is said at each function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

PACKING = 100.0  # of the released code: 100 times the centre plus the mean of its neighbours


@torch.no_grad()
def curvature_scores(features: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Return the mean curvature of each channel.

    The paper's kernel K (Eq. 1; rows -1 5 -1, 5 -16 5, -1 5 -1, over 16) has a sum of 0 and is applied without padding;
    the score is the mean of its absolute response, the paper's sum divided by the number of positions. In 3D the
    operator is the mean of K over the three planes through a voxel: centre -1, face neighbours 5/24, edge neighbours
    -1/48, corners 0. No gradient flows through the scores.

    Args:
        features: ``(B, C, *S)``, 2D or 3D; half precision is computed in float32.
        axes: Axes of ``S`` to look along, at least two; ``None`` for all. Axes shorter than 3 are left out.

    Returns:
        ``(B, C)``; 0 where fewer than two axes are left.

    Raises:
        ValueError: If the axes are not those of ``S``.
    """
    features = _in_float(features)
    used = [axis for axis in _checked(features, axes) if features.shape[axis] >= 3]
    if len(used) < 2:
        return features.new_zeros(features.shape[:2])
    # With r the sum of both neighbours along an axis, 16 K = 9 - (r - 5)(r' - 5): one pass an axis and plane.
    planes = list(combinations(used, 2))
    response: Tensor | None = None
    for first, second in planes:
        rest = [axis for axis in used if axis not in (first, second)]
        part = _away_from_five(_away_from_five(features, first), second)
        for axis in rest:
            part = part.narrow(axis, 1, part.shape[axis] - 2)
        response = part if response is None else response.add_(part)
    inner = features
    for axis in used:
        inner = inner.narrow(axis, 1, inner.shape[axis] - 2)
    if response is None:
        raise ValueError("no plane is left")  # two axes make one
    response = response.sub_(inner, alpha=9 * len(planes))
    return response.abs_().flatten(2).mean(2) / (16 * len(planes))


def _away_from_five(features: Tensor, axis: int) -> Tensor:
    """Return the sum of both neighbours along an axis minus five times the centre."""
    length = features.shape[axis] - 2
    low, centre, high = (features.narrow(axis, start, length) for start in (0, 1, 2))
    return (low + high).sub_(centre, alpha=5)


@torch.no_grad()
def entropy_scores(
    features: Tensor, bins: int = 64, axes: Sequence[int] | None = None, step: int = 1, packed: bool = False
) -> Tensor:
    """Return the entropy of each channel, in bits.

    At each position i is the value and j the mean of its neighbours (8 in 2D, 26 in 3D; zeros outside, as in the
    released code). The joint histogram of both gives p, and the entropy is ``-sum p log2 p`` (Eq. 2). Its range is that
    of all i and j of the sample, so that a channel of small amplitude has a small entropy, and that neither the batch
    nor an affine change of all channels matters. No gradient flows through the scores.

    Args:
        features: ``(B, C, *S)``, 2D or 3D; half precision is computed in float32.
        bins: Of each side of the joint histogram.
        axes: Axes of ``S`` to look along; ``None`` for all.
        step: Look at every ``step``-th position along each axis.
        packed: The released code's form, for comparisons: one histogram of ``100 i + j`` with 256 bins, whose range is
            that of the whole batch, and as many zero counts more as its padding holds. Scores then depend on the other
            samples.

    Returns:
        ``(B, C)``, 0 to ``2 log2 bins``.

    Raises:
        ValueError: If an argument is out of range.
    """
    if bins < 2 or step < 1:
        raise ValueError(f"bins must be at least 2 and step at least 1, got {bins} and {step}")
    features = _in_float(features)
    centre, mean = _centre_and_neighbours(features, _checked(features, axes), step)
    positions = centre[0, 0].numel()
    if packed:
        values = centre.mul(PACKING).add_(mean)
        low, high = values.aminmax()
        index = _bin(values, low, high, 256)
        return _entropy(index, 256, float(_padded_positions(features)))
    shape = (len(features), *[1] * (features.ndim - 1))
    flat = torch.stack([centre.flatten(1).amin(1), mean.flatten(1).amin(1)]).amin(0).reshape(shape)
    top = torch.stack([centre.flatten(1).amax(1), mean.flatten(1).amax(1)]).amax(0).reshape(shape)
    index = _bin(centre, flat, top, bins).mul_(bins).add_(_bin(mean, flat, top, bins))
    return _entropy(index, bins * bins, float(positions))


def _bin(values: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Return which of the bins from low to high a value falls into, the highest value into the last; all 0 if equal."""
    scale = torch.where(high > low, bins / (high - low), 0.0)
    return ((values - low) * scale).long().clamp_(0, bins - 1)


def _entropy(index: Tensor, bins: int, total: float) -> Tensor:
    """Return the entropy of each channel from the bins ``(B, C, *S)`` of its positions."""
    channels = index.shape[:2]
    index = index.flatten(2).flatten(0, 1)
    one = torch.ones((), device=index.device)
    counts = torch.zeros(len(index), bins, device=index.device).scatter_add_(1, index, one.expand_as(index))
    shares = counts.div_(total)
    # 0 log 0 is 0
    return torch.special.xlogy(shares, shares).sum(1).div_(-math.log(2.0)).reshape(channels)


def _centre_and_neighbours(features: Tensor, axes: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
    """Return the value and the mean of the neighbours at every ``step``-th position, zeros outside."""
    box, window = features, 1
    for axis in axes:
        if features.shape[axis] == 1:
            continue
        window *= 3
        summed = box.clone()
        length = box.shape[axis] - 1
        summed.narrow(axis, 1, length).add_(box.narrow(axis, 0, length))
        summed.narrow(axis, 0, length).add_(box.narrow(axis, 1, length))
        # only what is looked at goes on to the next axis
        box = summed[(slice(None),) * axis + (slice(None, None, step),)]
    places = (slice(None), slice(None), *[slice(None, None, step)] * (features.ndim - 2))
    centre = features[places]
    for axis in range(2, features.ndim):
        if box.shape[axis] != centre.shape[axis]:
            box = box[(slice(None),) * axis + (slice(None, None, step),)]
    return centre, (box - centre).div_(max(window - 1, 1))


def _padded_positions(features: Tensor) -> int:
    count = 1
    for length in features.shape[2:]:
        count *= length + 2
    return count


def _checked(features: Tensor, axes: Sequence[int] | None) -> list[int]:
    """Return the axes as those of the whole tensor."""
    dimensions = features.ndim - 2
    if dimensions not in (2, 3):
        raise ValueError(f"features must have shape (B, C, H, W) or (B, C, D, H, W), got {tuple(features.shape)}")
    chosen = range(dimensions) if axes is None else axes
    if any(not 0 <= axis < dimensions for axis in chosen) or len(set(chosen)) != len(chosen):
        raise ValueError(f"axes must be different ones of 0 to {dimensions - 1}, got {list(chosen)}")
    return [axis + 2 for axis in chosen]


def _in_float(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
