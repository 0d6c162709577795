"""Naive scores of feature maps: loops over channels, scipy's convolution, numpy's histograms."""

import numpy as np
from scipy.ndimage import correlate, uniform_filter

PLANE = np.array([[-1, 5, -1], [5, -16, 5], [-1, 5, -1]]) / 16


def kernel(dimensions, axes):
    """Mean of the paper's kernel over the planes that the axes span, as an array of 3 ** dimensions."""
    planes = [(a, b) for a in axes for b in axes if a < b]
    total = np.zeros((3,) * dimensions)
    for plane in planes:
        place = tuple(slice(None) if axis in plane else 1 for axis in range(dimensions))
        total[place] += PLANE
    return total / len(planes)


def curvature(features, axes=None):
    dimensions = features.ndim - 2
    axes = range(dimensions) if axes is None else axes
    axes = [axis for axis in axes if features.shape[axis + 2] >= 3]
    inner = tuple(slice(1, -1) if axis in axes else slice(None) for axis in range(dimensions))
    return np.array(
        [
            [np.abs(correlate(c, kernel(dimensions, axes), mode="constant")[inner]).mean() for c in sample]
            for sample in features
        ]
    )


def neighbours(channel, axes=None):
    """Mean of the neighbours of each position, zeros outside."""
    axes = range(channel.ndim) if axes is None else axes
    size = [3 if axis in axes and channel.shape[axis] > 1 else 1 for axis in range(channel.ndim)]
    window = np.prod(size)
    box = uniform_filter(channel.astype(float), size, mode="constant") * window
    return (box - channel) / max(window - 1, 1)


def bits(counts, total):
    p = counts[counts > 0] / total
    return -(p * np.log2(p)).sum()


def joint_entropy(features, bins=64, axes=None, step=1):
    result = []
    for sample in features.astype(float):
        skip = (slice(None, None, step),) * (sample.ndim - 1)
        pairs = [(c[skip].ravel(), neighbours(c, axes)[skip].ravel()) for c in sample]
        low, high = min(min(i.min(), j.min()) for i, j in pairs), max(max(i.max(), j.max()) for i, j in pairs)
        if high == low:
            result.append([0.0] * len(pairs))
            continue
        result.append([bits(np.histogram2d(i, j, bins, [[low, high]] * 2)[0], i.size) for i, j in pairs])
    return np.array(result)


def packed_entropy(features):
    """The released code's form: one range for the whole batch, counts over the padded size."""
    values = np.array([[100 * c + neighbours(c) for c in sample] for sample in features.astype(float)])
    total = np.prod([n + 2 for n in features.shape[2:]])
    low, high = values.min(), values.max()
    return np.array([[bits(np.histogram(v, 256, (low, high))[0], total) for v in sample] for sample in values])
