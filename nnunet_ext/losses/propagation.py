"""The loss of mask propagation: hard pixels' cross-entropy and Lovasz, on the log-odds of the objects."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nnunet_ext.losses.hard_pixels import IGNORED, ohem_cross_entropy


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovasz-softmax loss: over the classes that an image has, then over the images.

    Berman et al. (2018), by segmentation-models-pytorch, which takes the softmax of what it is given: so logits or
    log-odds go in, never probabilities, of which it would take the softmax once more.

    Args:
        logits: ``(B, K, *S)``; ``-inf`` leaves a class out that the labels do not have.
        labels: ``(B, *S)`` integers, -1 where a pixel does not count; an image without a pixel costs 0.

    Returns:
        Scalar in float32.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import lovasz_softmax
        >>> foreground = torch.tensor([[0.9, 0.6, 0.4, 0.2]])
        >>> logits = torch.stack([1 - foreground, foreground], 1).log()
        >>> round(lovasz_softmax(logits, torch.tensor([[1, 0, 1, 0]])).item(), 6)
        0.454167
    """
    from segmentation_models_pytorch.losses import LovaszLoss  # takes seconds

    counting = (labels != IGNORED).flatten(1).any(1)
    if not bool(counting.any()):
        return 0.0 * logits.float().nan_to_num(0.0, 0.0, 0.0).sum()
    loss: Tensor = LovaszLoss("multiclass", per_image=True, ignore_index=IGNORED)(
        logits[counting].float().flatten(2)[..., None], labels[counting].long().flatten(1)[..., None]
    )
    return loss * (counting.sum() / len(counting))


def propagation_loss(
    log_odds: Tensor,
    labels: Tensor,
    present: Tensor,
    pixel_loss: Callable[[Tensor, Tensor], Tensor] = ohem_cross_entropy,
) -> Tensor:
    """Loss of the frames of propagated masks: cross-entropy of hard pixels plus Lovasz.

    Pham et al. (MPR, 2022), training of the propagation module: the sum over the frames and the mean over the batch.
    An object that a sample does not have is no class of it.

    Args:
        log_odds: ``(B, F, K + 1, *S)``: of background and K objects in each of F frames.
        labels: ``(B, F, *S)`` integers: 0, the number of an object from 1, or -1 where a pixel does not count.
        present: ``(B, K)`` bool: which objects a sample has.
        pixel_loss: Cross-entropy of ``(N, K + 1, *S)`` against ``(N, *S)``, mean over N.

    Returns:
        Scalar in float32, 0 with a graph where no pixel counts.

    Raises:
        ValueError: If the shapes do not belong together.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import propagation_loss
        >>> labels, present = torch.tensor([[[0, 1, 2, 1]]]), torch.tensor([[True, True]])
        >>> log_odds = 20 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 2).float()
        >>> propagation_loss(log_odds, labels, present).item() < 1e-6
        True
    """
    batch, frames, classes = log_odds.shape[:3]
    expected = (batch, frames, *log_odds.shape[3:])
    if labels.shape != expected or present.shape != (batch, classes - 1):
        raise ValueError(
            f"log_odds of shape {tuple(log_odds.shape)} go with labels of {expected} and present of "
            f"{(batch, classes - 1)}, got {tuple(labels.shape)} and {tuple(present.shape)}"
        )
    with torch.autocast(log_odds.device.type, enabled=False):
        has_class = torch.cat([present.new_ones(batch, 1), present.bool()], 1)
        has_class = has_class.view(batch, 1, classes, *[1] * (log_odds.ndim - 3))
        odds = log_odds.float().masked_fill(~has_class, -torch.inf).flatten(0, 1)
        labels = labels.flatten(0, 1)
        return frames * (pixel_loss(odds, labels) + lovasz_softmax(odds, labels))
