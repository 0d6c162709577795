"""Naive contours and contour-weighted loss: scipy's erosion class after class, loops over samples and classes."""

import numpy as np
import torch
from scipy.ndimage import binary_erosion


def contours(labels, kernel, iterations, border, ignore_label=None):
    """Contour of an array ``(*S)``: eroded by every class, ignored voxels as part of each."""
    dims = labels.ndim
    kernel = (kernel,) * dims if isinstance(kernel, int) else kernel
    found = np.zeros(labels.shape, bool)
    ignored = np.zeros(labels.shape, bool) if ignore_label is None else labels == ignore_label
    for value in np.unique(labels):
        inside = (labels == value) | ignored
        for _ in range(iterations):
            inside = binary_erosion(inside, np.ones(kernel), border_value=int(border == "inside"))
        found |= (labels == value) & ~inside
    return found & ~ignored


def loss(logits, target, kernel=3, iterations=1, ignore_label=None, batch_dice=False, smooth=1e-5):
    """The loss of exclusive classes, per class."""
    b, k = logits.shape[:2]
    probs = torch.softmax(logits.double(), 1)
    ce, count = 0.0, 0
    sums = np.zeros((b, k, 6))
    for i in range(b):
        labels = target[i, 0].numpy()
        edge = contours(labels, kernel, iterations, "inside", ignore_label)
        for index in np.ndindex(labels.shape):
            true = labels[index]
            if ignore_label is not None and true == ignore_label:
                continue
            weight = 2 if edge[index] and true > 0 else 1
            ce -= weight * float(torch.log(probs[(i, int(true), *index)]))
            count += 1
            for c in range(1, k):
                p = float(probs[(i, c, *index)])
                on_contour = edge[index] and true == c
                first = 0 if on_contour else 3
                sums[i, c, first : first + 3] += (p * (true == c), p, true == c)
    if batch_dice:
        sums = sums.sum(0, keepdims=True)
    losses = [1 - (2 * sums[:, 1:, n] + smooth) / (sums[:, 1:, n + 1] + sums[:, 1:, n + 2] + smooth) for n in (0, 3)]
    return ce / max(count, 1) + (losses[0].mean() + losses[1].mean()) / 2


def region_loss(logits, target, kernel=3, iterations=1, ignored=None, batch_dice=False, smooth=1e-5):
    """The loss of overlapping regions; ``ignored`` is ``(B, 1, *S)``."""
    b, k = logits.shape[:2]
    probs = torch.sigmoid(logits.double()).numpy()
    ignored = torch.zeros(b, 1, *logits.shape[2:], dtype=torch.bool) if ignored is None else ignored
    ce, count = 0.0, 0
    sums = np.zeros((b, k, 6))
    for i in range(b):
        outside = ignored[i, 0].numpy()
        for c in range(k):
            inside = target[i, c].numpy() > 0
            kept = inside | outside
            for _ in range(iterations):
                kept = binary_erosion(kept, np.ones((kernel,) * kept.ndim), border_value=1)
            edge, valid = inside & ~kept & ~outside, ~outside
            p, t = probs[i, c], inside.astype(float)
            bce = -(t * np.log(p) + (1 - t) * np.log(1 - p))
            ce += ((1 + edge) * bce)[valid].sum()
            count += valid.sum()
            for n, part in ((0, edge), (3, valid & ~edge)):
                sums[i, c, n : n + 3] += ((p * t)[part].sum(), p[part].sum(), t[part].sum())
    if batch_dice:
        sums = sums.sum(0, keepdims=True)
    losses = [1 - (2 * sums[..., n] + smooth) / (sums[..., n + 1] + sums[..., n + 2] + smooth) for n in (0, 3)]
    return ce / max(count, 1) + (losses[0].mean() + losses[1].mean()) / 2
