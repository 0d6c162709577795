"""Cross pseudo supervision: Dice + cross-entropy of one network against the hard labels of its peer.

3D-CPS (Huang, Zhang, Yan and Hassan, "3D Cross Pseudo Supervision (3D-CPS): A semi-supervised nnU-Net architecture for
abdominal organ segmentation", FLARE 2022) applies nnU-Net's loss to the peer's hard labels. Nothing here needs nnU-Net.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.losses._common import Gather, at_least_float32, check_inputs, check_logits, count_terms, soft_dice


def pseudo_labels(logits: Tensor, regions: bool = False) -> Tensor:
    """Return the hard labels of a network, without gradient.

    Args:
        logits: ``(B, K, *S)``, K >= 2 for exclusive classes.
        regions: Channels are overlapping regions (sigmoid) instead of exclusive classes (softmax).

    Returns:
        ``(B, 1, *S)`` int64 class indices (the lowest index wins ties), or with ``regions`` ``(B, K, *S)`` bool, true
        where the region's probability exceeds 0.5.

    Raises:
        TypeError: If logits are no tensor, or not of a floating-point type.
        ValueError: If logits have no axes, or one channel for exclusive classes.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import pseudo_labels
        >>> logits = torch.tensor([[-1.0, 2.0], [3.0, 0.5]]).reshape(1, 2, 1, 2)  # two channels, two voxels
        >>> pseudo_labels(logits).flatten()
        tensor([1, 0])
        >>> pseudo_labels(logits, regions=True).reshape(2, 2)
        tensor([[False,  True],
                [ True,  True]])
    """
    check_logits(logits, regions)
    logits = logits.detach()
    # the index beside the maximum is that of argmax, which on CPUs takes 15 times as long along this axis
    return logits > 0 if regions else logits.max(1, keepdim=True).indices


def cross_pseudo_loss(
    logits: Tensor,
    labels: Tensor,
    valid_mask: Tensor | None = None,
    batch_dice: bool = False,
    smooth: float = 1e-5,
    gather: Gather | None = None,
) -> Tensor:
    """Dice + cross-entropy against exclusive hard labels, at one scale.

    Equals nnU-Net's Dice (background excluded) + cross-entropy on the valid voxels; the probabilities are computed
    once for both terms, in float32 (float64 stays float64).

    Args:
        logits: ``(B, K, *S)``, K >= 2, receives gradients.
        labels: ``(B, 1, *S)`` integer class indices; never receives gradients.
        valid_mask: ``(B, 1, *S)``, non-zero where the loss counts; ``None`` keeps every voxel.
        batch_dice: Sum over the batch before the Dice quotient.
        smooth: Added to numerator and denominator of the Dice.
        gather: Differentiable function that stacks a tensor over processes (DDP), applied to the sums of the Dice if
            ``batch_dice``, and without gradient to the number of valid voxels. ``None`` in one process.

    Returns:
        Scalar; 0 from the cross-entropy (with a graph) where no voxel is valid.

    Raises:
        TypeError: If logits or labels are no tensors, or of a type that says nothing.
        ValueError: If the shapes do not fit, or there is one channel.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import cross_pseudo_loss, pseudo_labels
        >>> logits, peer_logits = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 8, 8)
        >>> loss = cross_pseudo_loss(logits, pseudo_labels(peer_logits))
        >>> loss.backward()
        >>> sure = 100.0 * torch.eye(3)[:, :, None]  # one sample a class, of one voxel
        >>> round(cross_pseudo_loss(sure, pseudo_labels(sure), batch_dice=True).item(), 4)  # 0 - 1
        -1.0
    """
    check_inputs(logits, labels, False, "labels", valid_mask)
    log_probs = functional.log_softmax(at_least_float32(logits), 1)
    targets = labels[:, 0].long()
    if valid_mask is not None:
        targets = torch.where(valid_mask[:, 0] > 0, targets, -100)
    total = functional.nll_loss(log_probs, targets, ignore_index=-100, reduction="sum")
    ce = total / count_terms(logits, valid_mask, 1, gather)

    probs = log_probs[:, 1:].exp()
    onehot = torch.zeros_like(log_probs).scatter_(1, labels.long(), 1.0)[:, 1:]
    return ce - soft_dice(probs, onehot, valid_mask, batch_dice, smooth, gather)[0].mean()


def cross_pseudo_region_loss(
    logits: Tensor,
    labels: Tensor,
    valid_mask: Tensor | None = None,
    batch_dice: bool = False,
    smooth: float = 1e-5,
    gather: Gather | None = None,
) -> Tensor:
    """Dice + binary cross-entropy against hard labels of overlapping regions, at one scale.

    Args:
        logits: ``(B, K, *S)``, one channel a region, receives gradients.
        labels: ``(B, K, *S)`` bool or 0/1; never receives gradients.
        valid_mask: ``(B, 1, *S)``, non-zero where the loss counts; ``None`` keeps every voxel.
        batch_dice: Sum over the batch before the Dice quotient.
        smooth: Added to numerator and denominator of the Dice.
        gather: Differentiable function that stacks a tensor over processes (DDP), as for :func:`cross_pseudo_loss`.

    Returns:
        Scalar; 0 from the cross-entropy (with a graph) where no voxel is valid.

    Raises:
        TypeError: If logits or labels are no tensors, or of a type that says nothing.
        ValueError: If the shapes do not fit.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import cross_pseudo_region_loss, pseudo_labels
        >>> logits, peer_logits = torch.randn(2, 1, 8, 8, requires_grad=True), torch.randn(2, 1, 8, 8)
        >>> mask = torch.zeros(2, 1, 8, 8)
        >>> mask[:, :, :4] = 1  # the upper half of each image
        >>> cross_pseudo_region_loss(logits, pseudo_labels(peer_logits, regions=True), mask).backward()
        >>> [logits.grad[:, :, rows].any().item() for rows in (slice(4), slice(4, None))]
        [True, False]
    """
    check_inputs(logits, labels, True, "labels", valid_mask)
    logits = at_least_float32(logits)
    targets = labels.to(logits.dtype)
    bce = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if valid_mask is not None:
        bce = bce * (valid_mask > 0)
    ce = bce.sum() / count_terms(logits, valid_mask, logits.shape[1], gather)
    return ce - soft_dice(logits.sigmoid(), targets, valid_mask, batch_dice, smooth, gather)[0].mean()
