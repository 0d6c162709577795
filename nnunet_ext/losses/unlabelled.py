"""Losses of unlabelled and of mixed patches: Dice + cross-entropy against hard labels of which a part is kept.

The divisor of the cross-entropy is that of Yang, Qi, Feng, Zhang and Shi, "Revisiting Weak-to-Strong Consistency in
Semi-Supervised Semantic Segmentation" (CVPR 2023, "UniMatch"), section 3: all valid voxels, not the kept ones. Classes
without a pseudo-labelled voxel take no part in the Dice: its slope would wipe out what little a network predicts of
them. Nothing here needs nnU-Net.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from nnunet_ext.losses._common import (
    Gather,
    at_least_float32,
    check_inputs,
    check_mask,
    count_terms,
    mean_of_present,
    soft_dice,
)


def unlabelled_loss(
    logits: Tensor,
    labels: Tensor,
    kept: Tensor,
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    batch_dice: bool = True,
    smooth: float = 1e-5,
    gather: Gather | None = None,
    silent: Tensor | None = None,
) -> Tensor:
    """Dice + cross-entropy against pseudo-labels of exclusive classes, of which a part is kept, at one scale.

    With all valid voxels kept and every foreground class among the labels of each Dice it equals
    :func:`~nnunet_ext.losses.cross_pseudo_loss`.

    Args:
        logits: ``(B, K, *S)``, K >= 2, receives gradients.
        labels: ``(B, 1, *S)`` integer class indices; never receives gradients.
        kept: ``(B, 1, *S)``, non-zero where the label is learnt from.
        valid: ``(B, 1, *S)``, 0 in padding; nothing is kept there, and the cross-entropy is divided by the number of
            the others. ``None`` counts every voxel.
        class_weights: ``(K,)`` weight of the cross-entropy by label; the Dice has none. ``None`` for 1.
        batch_dice: Sum over the batch before the Dice quotient; without it a class counts in the samples that have it.
        smooth: Added to numerator and denominator of the Dice.
        gather: Differentiable function that stacks a tensor over processes (DDP), applied to the sums of the Dice if
            ``batch_dice``, and without gradient to the number of valid voxels. ``None`` in one process.
        silent: ``(K,)`` bool, classes that the labels say nothing of, as whoever makes them cannot see these yet: the
            cross-entropy of another label is that of the label *or any of them*, which neither favours nor denies them
            (the marginal loss of Shi, Xiao, Chen and Zhou, "Marginal loss and exclusion loss for partially supervised
            multi-organ segmentation", 2021). In the Dice they are left out, and where another class is the label they
            count as it. ``None`` for none.

    Returns:
        Scalar; 0 (with a graph) where nothing is kept.

    Raises:
        TypeError: If logits or labels are no tensors, or of a type that says nothing.
        ValueError: If the shapes do not fit, or there is one channel.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import pseudo_labels, unlabelled_loss
        >>> student, teacher = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 8, 8)
        >>> confidence = teacher.softmax(1).amax(1, keepdim=True)
        >>> unlabelled_loss(student, pseudo_labels(teacher), confidence >= 0.8).backward()
        >>> nothing = torch.zeros(2, 1, 8, 8)
        >>> unlabelled_loss(student, pseudo_labels(teacher), nothing).item()
        0.0
    """
    kept = _checked(logits, labels, kept, valid, class_weights, regions=False)
    log_probs, targets = _log_probs_and_targets(logits, labels, kept)
    weight = None if class_weights is None else class_weights.to(log_probs.dtype)
    if silent is None:
        hidden = torch.where(kept, targets, -100)[:, 0]
        total = functional.nll_loss(log_probs, hidden, weight, ignore_index=-100, reduction="sum")
    else:
        entropy = _marginal_entropy(log_probs, targets, silent)
        total = ((entropy if weight is None else entropy * weight[targets]) * kept).sum()
    probs, onehot = log_probs[:, 1:].exp(), _foreground(log_probs, targets)
    if silent is not None:
        probs = _joined(probs, onehot, silent)
    dice, voxels = soft_dice(probs, onehot, kept, batch_dice, smooth, gather)
    voxels = voxels if silent is None else voxels * ~silent[1:]
    return total / count_terms(logits, valid, 1, gather) - mean_of_present(dice.flatten(), voxels.flatten())


def unlabelled_region_loss(
    logits: Tensor,
    labels: Tensor,
    kept: Tensor,
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    batch_dice: bool = True,
    smooth: float = 1e-5,
    gather: Gather | None = None,
) -> Tensor:
    """Dice + binary cross-entropy against pseudo-labels of overlapping regions, of which a part is kept, at one scale.

    Args:
        logits: ``(B, K, *S)``, one channel a region, receives gradients.
        labels: ``(B, K, *S)`` bool or 0/1; never receives gradients.
        kept: ``(B, K, *S)``, non-zero where the label of the channel is learnt from.
        valid: ``(B, 1, *S)``, as for :func:`unlabelled_loss`; the divisor is K times their number.
        class_weights: ``(2, K)`` weights of the cross-entropy of each region, outside and inside; ``None`` for 1.
        batch_dice: Sum over the batch before the Dice quotient; without it a region counts in the samples that have it.
        smooth: Added to numerator and denominator of the Dice.
        gather: Differentiable function that stacks a tensor over processes (DDP), as for :func:`unlabelled_loss`.

    Returns:
        Scalar; 0 (with a graph) where nothing is kept.

    Raises:
        TypeError: If logits or labels are no tensors, or of a type that says nothing.
        ValueError: If the shapes do not fit.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import pseudo_labels, unlabelled_region_loss
        >>> student, teacher = torch.randn(2, 2, 8, 8, requires_grad=True), torch.randn(2, 2, 8, 8)
        >>> confidence = teacher.abs().sigmoid()
        >>> kept = (confidence >= 0.8) & torch.tensor([True, False])[:, None, None]  # of the first region alone
        >>> unlabelled_region_loss(student, pseudo_labels(teacher, regions=True), kept).backward()
        >>> [student.grad[:, region].any().item() for region in (0, 1)]
        [True, False]
    """
    kept = _checked(logits, labels, kept, valid, class_weights, regions=True)
    logits = at_least_float32(logits)
    targets = labels.to(logits.dtype)
    total = (_weighted_bce(logits, targets, class_weights) * kept).sum()
    dice, voxels = soft_dice(logits.sigmoid(), targets, kept, batch_dice, smooth, gather)
    count = count_terms(logits, valid, logits.shape[1], gather)
    return total / count - mean_of_present(dice.flatten(), voxels.flatten())


def bcp_loss(
    logits: Tensor,
    labels: Tensor,
    kept: Tensor,
    labelled: Tensor,
    valid: Tensor | None = None,
    class_weights: Tensor | None = None,
    pseudo_weight: float = 0.5,
    regions: bool = False,
    smooth: float = 1e-5,
    silent: Tensor | None = None,
) -> Tensor:
    """Dice + cross-entropy of patches that are labelled in one part and pseudo-labelled in the other, at one scale.

    Bai, Chen, Li, Shen and Wang, "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation" (CVPR 2023),
    section 3.3: the two parts have a loss of their own, and weights of their own. Not in the paper: the weights are
    divided by their sum, the Dice has no background (unless it is a region) and no class that its part lacks.

    Args:
        logits: ``(B, K, *S)``, output for the mixed patches, receives gradients.
        labels: ``(B, 1, *S)`` integer class indices, mixed as the patches; with ``regions`` ``(B, K, *S)``.
        kept: ``(B, 1, *S)``, with ``regions`` ``(B, K, *S)``: non-zero where the label is learnt from. In the labelled
            part that is everywhere but on voxels to ignore, whose label may be any number.
        labelled: ``(B, 1, *S)``, non-zero in the labelled part of each patch.
        valid: ``(B, 1, *S)``, as for :func:`unlabelled_loss`; ``None`` counts every voxel.
        class_weights: Weights of the cross-entropy in the pseudo-labelled part, as for :func:`unlabelled_loss` or
            :func:`unlabelled_region_loss`; ``None`` for 1.
        pseudo_weight: Weight of the pseudo-labelled part; that of the labelled part is 1.
        regions: Channels are overlapping regions instead of exclusive classes.
        smooth: Added to numerator and denominator of the Dice.
        silent: ``(K,)`` bool, classes that the pseudo-labels say nothing of, as for :func:`unlabelled_loss`; not for
            regions.

    Returns:
        Scalar, the mean over the patches; a part without a kept voxel adds 0 (with a graph).

    Raises:
        TypeError: If logits or labels are no tensors, or of a type that says nothing.
        ValueError: If the shapes do not fit, or there is one channel for exclusive classes.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import bcp_loss
        >>> everywhere = torch.ones(1, 1, 4, 4)
        >>> box = torch.zeros(1, 1, 4, 4)
        >>> box[..., 1:3, 1:3] = 1  # labelled inside the box, pseudo-labelled outside
        >>> labels = torch.tensor([0, 1, 1, 0]).expand(1, 1, 4, 4)
        >>> sure = 100.0 * torch.cat([labels == 0, labels == 1], 1)
        >>> round(bcp_loss(sure, labels, everywhere, box).item(), 4)  # 0 - 1 in both parts
        -1.0
    """
    kept = _checked(logits, labels, kept, valid, class_weights, regions)
    check_mask(labelled, (logits.shape[0], 1, *logits.shape[2:]), "labelled")
    labelled = labelled > 0
    entropy, probs, onehot = _terms(logits, labels, kept, class_weights, labelled, regions, silent)
    losses = []
    for part in (labelled, ~labelled):
        there = kept & part
        axes = tuple(range(1, logits.ndim))
        count = (part if valid is None else part & (valid > 0)).sum(axes) * entropy.shape[1]
        unseen = None if part is labelled else silent  # true labels speak of every class
        own = probs if unseen is None else _joined(probs, onehot, unseen)
        dice, voxels = soft_dice(own, onehot, there, False, smooth, None)
        voxels = voxels if unseen is None else voxels * ~unseen[1:]
        losses.append((entropy * there).sum(axes) / count.clamp_min(1) - mean_of_present(dice, voxels))
    return (losses[0] + pseudo_weight * losses[1]).mean() / (1.0 + pseudo_weight)


def _checked(
    logits: Tensor, labels: Tensor, kept: Tensor, valid: Tensor | None, weights: Tensor | None, regions: bool
) -> Tensor:
    """Check the shapes, and return where a valid voxel is kept, as bool."""
    check_inputs(logits, labels, regions, "labels")
    classes = logits.shape[1]
    check_mask(kept, (logits.shape[0], classes if regions else 1, *logits.shape[2:]), "kept")
    check_mask(valid, (logits.shape[0], 1, *logits.shape[2:]), "valid")
    check_mask(weights, (2, classes) if regions else (classes,), "class_weights")
    return kept > 0 if valid is None else (kept > 0) & (valid > 0)


def _log_probs_and_targets(logits: Tensor, labels: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    # labels of voxels that are not kept may be any number
    return functional.log_softmax(at_least_float32(logits), 1), torch.where(kept, labels, 0).long()


def _foreground(log_probs: Tensor, targets: Tensor) -> Tensor:
    return torch.zeros_like(log_probs).scatter_(1, targets, 1.0)[:, 1:]


def _terms(
    logits: Tensor,
    labels: Tensor,
    kept: Tensor,
    weights: Tensor | None,
    labelled: Tensor,
    regions: bool,
    silent: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cross-entropy of each voxel, weighted where pseudo-labelled, probabilities and one-hot labels."""
    if regions:
        logits = at_least_float32(logits)
        targets = labels.to(logits.dtype)
        entropy = _weighted_bce(logits, targets, None)
        if weights is not None:
            entropy = torch.where(labelled, entropy, entropy * _of_label(targets, weights.to(logits.dtype)))
        return entropy, logits.sigmoid(), targets
    log_probs, targets = _log_probs_and_targets(logits, labels, kept)
    entropy = functional.nll_loss(log_probs, targets[:, 0], reduction="none")[:, None]
    if silent is not None:
        entropy = torch.where(labelled, entropy, _marginal_entropy(log_probs, targets, silent))
    if weights is not None:
        entropy = entropy * torch.where(labelled, 1.0, weights.to(log_probs.dtype)[targets])
    return entropy, log_probs[:, 1:].exp(), _foreground(log_probs, targets)


def _marginal_entropy(log_probs: Tensor, targets: Tensor, silent: Tensor) -> Tensor:
    """Return the cross-entropy ``(B, 1, *S)`` of the label or any silent class; a silent label stands for itself."""
    own = log_probs.gather(1, targets)
    # Not -inf, whose logsumexp has no gradient; e^-10000 is 0 in every type.
    others = torch.where(silent.reshape(-1, *(1,) * (log_probs.ndim - 2)), log_probs, -1e4).logsumexp(1, keepdim=True)
    return -torch.where(silent[targets], own, torch.logaddexp(own, others))


def _joined(probs: Tensor, onehot: Tensor, silent: Tensor) -> Tensor:
    """Return foreground probabilities in which silent classes count as the class that is the label."""
    unseen = silent[1:].reshape(-1, *(1,) * (probs.ndim - 2))
    return torch.where((onehot > 0) & ~unseen, probs + (probs * unseen).sum(1, keepdim=True), probs)


def _weighted_bce(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    bce = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return bce if weights is None else bce * _of_label(targets, weights.to(logits.dtype))


def _of_label(targets: Tensor, weights: Tensor) -> Tensor:
    by_sign = weights.reshape(2, -1, *(1,) * (targets.ndim - 2))
    return torch.where(targets > 0, by_sign[1], by_sign[0])
