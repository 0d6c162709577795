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

from nnunet_ext.networks._checks import check_features

# values of a block, by where it lies: on a CPU what fits into its cache (1 MB of float32), where each pass is several
# times faster; elsewhere what bounds the memory for copies (128 MB each)
_BLOCK = {"cpu": 2**18}
_BLOCK_ELSEWHERE = 2**25
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
        ValueError: If the features are not 2D or 3D, or the axes are not those of ``S``.

    Example:
        >>> import torch
        >>> from nnunet_ext.networks import curvature_scores
        >>> ramp = torch.arange(6.0).expand(6, 6)
        >>> curvature_scores(torch.stack([ramp, ramp**2])[None])  # a plane is not curved
        tensor([[0.0000, 0.3750]])
    """
    check_features(features)
    features = _in_single_or_double(features)
    long_axes = [axis for axis in _tensor_axes(features, axes) if features.shape[axis] >= 3]
    if len(long_axes) < 2:
        return features.new_zeros(features.shape[:2])
    maps = features.flatten(0, 1)
    scores = [_curvature(maps[block], [axis - 1 for axis in long_axes]) for block in _blocks(maps)]
    return torch.cat(scores).reshape(features.shape[:2])


def _curvature(maps: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the mean absolute response ``(N,)`` of maps ``(N, *S)`` along at least two axes."""
    # With r the sum of both neighbours along an axis, 16 K = 9 - (r - 5)(r' - 5), summed over the planes.
    planes = list(combinations(axes, 2))
    response = _interior(maps, axes).mul(9 * len(planes))
    along_axis = {axis: _neighbours_minus_five_centres(maps, axis) for axis in axes[:-1]}
    for first, second in planes:
        product = _neighbours_minus_five_centres(along_axis[first], second)
        response.sub_(_interior(product, [axis for axis in axes if axis not in (first, second)]))
    return response.abs_().flatten(1).mean(1).div_(16 * len(planes))


def _interior(maps: Tensor, axes: Sequence[int]) -> Tensor:
    """Return maps without the first and the last position of some axes."""
    for axis in axes:
        maps = maps.narrow(axis, 1, maps.shape[axis] - 2)
    return maps


def _neighbours_minus_five_centres(maps: Tensor, axis: int) -> Tensor:
    """Return the sum of both neighbours along an axis minus five times the centre."""
    length = maps.shape[axis] - 2
    low, centre, high = (maps.narrow(axis, start, length) for start in (0, 1, 2))
    return (low + high).sub_(centre, alpha=5)


@torch.no_grad()
def entropy_scores(
    features: Tensor, bins: int = 64, axes: Sequence[int] | None = None, step: int = 1, packed: bool = False
) -> Tensor:
    """Return the entropy of each channel, in bits.

    At each position i is the value and j the mean of its neighbours (8 in 2D, 26 in 3D; zeros outside, as in the
    released code). The joint histogram of both gives p, and the entropy is ``-sum p log2 p`` (Eq. 2). Its range is that
    of all i and j of the sample, so that a channel of small amplitude has a small entropy, and that neither the batch
    nor a positive factor of all channels matters. A constant channel other than 0 has some entropy, from its border
    with the zeros outside. Values that are not finite fall into the first bin. No gradient flows through the scores.

    Args:
        features: ``(B, C, *S)``, 2D or 3D; half precision is computed in float32.
        bins: Number of bins along each side of the joint histogram.
        axes: Axes of ``S`` to look along; ``None`` for all.
        step: Look at every ``step``-th position along each axis.
        packed: The released code's form, for comparisons: one histogram of ``100 i + j`` with 256 bins, whose range is
            that of the whole batch, and as many zero counts more as its padding holds. Scores then depend on the other
            samples.

    Returns:
        ``(B, C)``, 0 to ``2 log2 bins`` (8 if packed).

    Raises:
        ValueError: If an argument is out of range, or the features are not 2D or 3D.

    Example:
        >>> import torch
        >>> from nnunet_ext.networks import entropy_scores
        >>> board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(4, 4)
        >>> scores = entropy_scores(torch.stack([torch.zeros(8, 8), board])[None])
        >>> bool(scores[0, 0] == 0 < scores[0, 1])  # a map of zeros tells nothing
        True
    """
    if bins < 2 or step < 1:
        raise ValueError(f"bins must be at least 2 and step at least 1, got {bins} and {step}")
    check_features(features)
    features = _in_single_or_double(features)
    axes = [axis - 1 for axis in _tensor_axes(features, axes)]
    maps = features.flatten(0, 1)
    pairs = [_centre_and_neighbours(maps[block], axes, step) for block in _blocks(maps)]
    if packed:
        values = [centre.mul(PACKING).add_(mean) for centre, mean in pairs]
        low, high = (torch.stack(limits) for limits in zip(*(block.aminmax() for block in values), strict=True))
        low, high, total = low.amin().expand(len(maps)), high.amax().expand(len(maps)), _padded_positions(features)
        pairs = [(block, block) for block in values]
    else:
        low, high = _ranges(pairs, len(features))
        total = pairs[0][0][0].numel()
    scores, start = [], 0
    for centre, mean in pairs:
        shape = (len(centre), *[1] * (centre.ndim - 1))
        lowest, highest = (limit[start : start + len(centre)].reshape(shape) for limit in (low, high))
        index = _bins(mean, lowest, highest, 256 if packed else bins)
        if not packed:
            index.add_(_bins(centre, lowest, highest, bins), alpha=bins)
        scores.append(_entropy(index, 256 if packed else bins * bins, float(total)))
        start += len(centre)
    return torch.cat(scores).reshape(features.shape[:2])


def _ranges(pairs: Sequence[tuple[Tensor, Tensor]], samples: int) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest value of each map's sample, ``(N,)`` both."""
    flat_pairs = [[maps.flatten(1) for maps in pair] for pair in pairs]
    # amin and amax are vectorised, aminmax along an axis is not
    low = torch.cat([torch.minimum(*(maps.amin(1) for maps in pair)) for pair in flat_pairs])
    high = torch.cat([torch.maximum(*(maps.amax(1) for maps in pair)) for pair in flat_pairs])
    channels = len(low) // samples
    low, high = low.reshape(samples, -1).amin(1), high.reshape(samples, -1).amax(1)
    return low.repeat_interleave(channels), high.repeat_interleave(channels)


def _bins(values: Tensor, low: Tensor, high: Tensor, bins: int) -> Tensor:
    """Return, as floats, which of the bins from low to high a value falls into, the highest value into the last.

    All into the first where low and high are equal.
    """
    scale = torch.where(high > low, bins / (high - low), 0.0)
    # what is not finite has no bin, and as an index it would end the process on a GPU
    return (values - low).mul_(scale).nan_to_num_(0.0).clamp_(0, bins - 1).floor_()


def _entropy(index: Tensor, bins: int, total: float) -> Tensor:
    """Return the entropy ``(N,)`` of maps from the bins ``(N, *S)`` of their positions, as floats."""
    index = index.flatten(1).long()
    ones = torch.ones((), device=index.device).expand_as(index)
    counts = torch.zeros(len(index), bins, device=index.device).scatter_add_(1, index, ones)
    shares = counts.div_(total)
    # 0 log 0 is 0
    return torch.special.xlogy(shares, shares).sum(1).div_(-math.log(2.0))


def _centre_and_neighbours(maps: Tensor, axes: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
    """Return the value and the mean of the neighbours at every ``step``-th position of maps ``(N, *S)``, zeros outside.

    Along an axis that is not in ``axes``, or has one position, there are no neighbours.
    """
    box, window = maps, 1
    for axis in range(1, maps.ndim):
        # Only what is looked at goes on to the next axis. Along the last one values lie side by side in memory, and it
        # is faster to add up all and to leave some out after that.
        stride = step if axis < maps.ndim - 1 else 1
        summed = _strided(box, axis, 0, stride)
        if axis in axes and maps.shape[axis] > 1:
            window *= 3
            low, high = _strided(box, axis, stride - 1, stride), _strided(box, axis, 1, stride)
            summed = summed.clone()
            # the first position has nothing below it, and the last may have nothing above it
            after = summed.narrow(axis, 1, summed.shape[axis] - 1)
            after.add_(low.narrow(axis, 0, after.shape[axis]))
            before = summed.narrow(axis, 0, min(summed.shape[axis], high.shape[axis]))
            before.add_(high.narrow(axis, 0, before.shape[axis]))
        box = summed
    centre = maps
    for axis in range(1, maps.ndim):
        centre = _strided(centre, axis, 0, step)
    centre = centre.contiguous()
    return centre, torch.sub(box[..., ::step], centre).div_(max(window - 1, 1))


def _strided(maps: Tensor, axis: int, start: int, step: int) -> Tensor:
    """Return every ``step``-th position along an axis, a view."""
    return maps[(slice(None),) * axis + (slice(start, None, step),)]


def _blocks(maps: Tensor) -> list[slice]:
    """Return parts of the maps that are worked on one after another; their number follows from the shape alone."""
    if torch.compiler.is_compiling() or maps.numel() == 0:
        return [slice(None)]
    length = max(1, _BLOCK.get(maps.device.type, _BLOCK_ELSEWHERE) // maps[0].numel())
    return [slice(start, start + length) for start in range(0, len(maps), length)]


def _padded_positions(features: Tensor) -> int:
    """Return the number of positions of a channel with one more on each side of each axis."""
    count = 1
    for length in features.shape[2:]:
        count *= length + 2
    return count


def _tensor_axes(features: Tensor, axes: Sequence[int] | None) -> list[int]:
    """Return axes of ``S`` as those of the whole tensor; ``None`` is all of them."""
    dimensions = features.ndim - 2
    chosen = range(dimensions) if axes is None else axes
    if any(not 0 <= axis < dimensions for axis in chosen) or len(set(chosen)) != len(chosen):
        raise ValueError(f"axes must be different ones of 0 to {dimensions - 1}, got {list(chosen)}")
    return [axis + 2 for axis in chosen]


def _in_single_or_double(features: Tensor) -> Tensor:
    """Return features in float32; float64 stays as it is."""
    return features if features.dtype == torch.float64 else features.float()
