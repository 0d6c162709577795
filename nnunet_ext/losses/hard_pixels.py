"""Cross-entropy of the hardest pixels: online hard example mining, and bootstrapping."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nnunet_ext.losses._common import at_least_float32

IGNORED = -1  # label of pixels that do not count


def ohem_cross_entropy(logits: Tensor, labels: Tensor, probability: float = 0.5, least_share: int = 16) -> Tensor:
    """Cross-entropy of the pixels whose true class is less likely than a threshold, and of a least share of them.

    Pham et al. (MPR, 2022), training of the propagation module: of each image the pixels with a cross-entropy above
    ``-log(probability)`` are kept, or the hardest sixteenth of them where those are fewer. Not in the paper: at least
    one pixel is kept where any counts, and an image without one costs 0, where the mean of nothing would be NaN.

    Args:
        logits: ``(B, K, *S)``; ``-inf`` leaves a class out.
        labels: ``(B, *S)`` integers, -1 where a pixel does not count.
        probability: Pixels whose true class is less likely are hard.
        least_share: At least one in so many of the pixels that count is kept.

    Returns:
        Scalar in at least float32: mean over the kept pixels of an image, then over the images.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import ohem_cross_entropy
        >>> logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [-2.0, 1.0, 2.0, -3.0]]])
        >>> round(ohem_cross_entropy(logits, torch.tensor([[0, 0, 1, 1]])).item(), 4)  # the second and the fourth
        2.1809
    """
    pixels, count = _sorted(logits, labels)
    hard = (pixels > -math.log(probability)).sum(1)
    return _mean_of_first(pixels, torch.maximum(hard, count // least_share), count)


def bootstrapped_cross_entropy(logits: Tensor, labels: Tensor, fraction: float = 1.0) -> Tensor:
    """Cross-entropy of the hardest fraction of the pixels of each image.

    Cheng et al. (STCN, 2021), section 4.2. Not in the paper: at least one pixel is kept where any counts, and an image
    without one costs 0.

    Args:
        logits: ``(B, K, *S)``; ``-inf`` leaves a class out.
        labels: ``(B, *S)`` integers, -1 where a pixel does not count.
        fraction: Share of the pixels that is kept, from 0 to 1.

    Returns:
        Scalar in at least float32: mean over the kept pixels of an image, then over the images.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import bootstrapped_cross_entropy
        >>> logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [-2.0, 1.0, 2.0, -3.0]]])
        >>> round(bootstrapped_cross_entropy(logits, torch.tensor([[0, 0, 1, 1]]), 0.25).item(), 4)  # the fourth
        3.0486
    """
    pixels, count = _sorted(logits, labels)
    return _mean_of_first(pixels, (count * fraction).long(), count)


def bootstrapped_fraction(step: float, start: float = 20_000, end: float = 70_000, least: float = 0.15) -> float:
    """Return the share of pixels that counts at a step: all until ``start``, then linearly fewer until ``end``.

    Cheng et al. (STCN, 2021), section 4.2, whose numbers are those of a training of 150,000 steps.

    Args:
        step: Number of the step, from 0.
        start: Step until which all count.
        end: Step from which ``least`` counts.
        least: Share of pixels at the end.

    Example:
        >>> from nnunet_ext.losses import bootstrapped_fraction
        >>> [round(bootstrapped_fraction(step), 3) for step in (0, 20_000, 45_000, 100_000)]
        [1.0, 1.0, 0.575, 0.15]
    """
    done = min(max((step - start) / (end - start), 0.0), 1.0)
    return 1.0 - (1.0 - least) * done


def _sorted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each pixel, ``(B, P)`` with the largest first, and how many count, ``(B,)``.

    Pixels that do not count cost 0 and stand behind all others: none of these costs less.
    """
    pixels = cross_entropy(at_least_float32(logits), labels.long(), ignore_index=IGNORED, reduction="none").flatten(1)
    return pixels.sort(1, descending=True).values, (labels != IGNORED).flatten(1).sum(1)


def _mean_of_first(pixels: Tensor, number: Tensor, count: Tensor) -> Tensor:
    """Return the mean of the first pixels of each image, at least one and at most as many as count."""
    number = torch.minimum(number.clamp_min(1), count)
    kept = torch.arange(pixels.shape[1], device=pixels.device) < number[:, None]
    return ((pixels * kept).sum(1) / number.clamp_min(1)).mean()
