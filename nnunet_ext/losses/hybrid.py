"""The hybrid loss of ANU-Net: cross-entropy that counts undecided voxels more, and Dice with squares."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.losses._common import Gather, at_least_float32, split_target


class HybridLoss(nn.Module):
    """Weighted cross-entropy plus ``1 - Dice`` with squared denominators, for one output.

    Li et al., "ANU-Net: Attention-based nested U-Net to exploit full resolution features for medical image
    segmentation", Computers & Graphics 2020, Eq. 8, whose cross-entropy is divided by ``|p - 1/2|^gamma``. Taken
    literally (:func:`literal_hybrid_loss`) that is infinite at 1/2, its gradient pushes undecided voxels the wrong way,
    and only the foreground has a term. Here, with p the probability of the true class (of each region, that of being
    inside or outside)::

        w = (1/2 / max(|p - 1/2|, delta))^gamma,   loss = sum(w CE) / sum(w) + (1 - Dice)

    and no gradient flows through w. So a voxel on the fence counts as much as 25 sure ones, and the scale is that of
    nnU-Net's loss plus 1.

    Args:
        regions: Channels are overlapping regions (sigmoid) instead of exclusive classes (softmax).
        ignore_label: Voxels of this label count nowhere. With ``regions`` any number says that the last channel of
            the target marks the voxels to ignore.
        batch_dice: Sum over the batch before the Dice quotients.
        gamma: Exponent of the voxels' weight w; 0 weighs all voxels alike.
        delta: Least distance of a probability from 1/2 that the weight w sees, above 0 and at most 1/2.
        weight_ce: Weight of the cross-entropy, the paper's alpha.
        smooth: Added to numerator and denominator of the Dice.
        gather: Differentiable function that stacks a tensor over processes (DDP), applied to the sums of the Dice if
            ``batch_dice``, and without gradient to the sum of the weights. ``None`` in one process.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import HybridLoss
        >>> labels = torch.tensor([0, 1, 2, 2]).reshape(1, 1, 2, 2)
        >>> logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
        >>> HybridLoss()(logits, labels).backward()
        >>> logits.grad.gather(1, labels).max().item() < 0  # the probability of what is true is to rise
        True
        >>> regions = torch.cat([labels > 0, labels == 2], 1)  # regions may overlap
        >>> HybridLoss(regions=True)(torch.zeros(1, 2, 2, 2), regions).shape
        torch.Size([])
    """

    def __init__(
        self,
        regions: bool = False,
        ignore_label: int | None = None,
        batch_dice: bool = False,
        gamma: float = 2.0,
        delta: float = 0.1,
        weight_ce: float = 1.0,
        smooth: float = 1e-5,
        gather: Gather | None = None,
    ) -> None:
        super().__init__()
        if not 0 < delta <= 0.5:
            raise ValueError(f"delta is a distance from a probability of 1/2, above 0 and at most 1/2, got {delta}")
        for name, number in {"gamma": gamma, "weight_ce": weight_ce, "smooth": smooth}.items():
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} must be a number of 0 or more, got {number}")
        self.regions, self.ignore_label, self.batch_dice = regions, ignore_label, batch_dice
        self.gamma, self.delta, self.weight_ce, self.smooth = gamma, delta, weight_ce, smooth
        self.gather = gather

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one output.

        Args:
            logits: ``(B, K, *S)``, receives gradients; half precision is computed in float32.
            target: ``(B, 1, *S)`` labels 0 to K - 1 or ``ignore_label``; with ``regions`` ``(B, K, *S)``, true or 1
                inside, and one channel more for the ignored voxels if there is an ``ignore_label``.

        Returns:
            Scalar. The Dice is that of the foreground classes, or of the regions. Where all is ignored the
            cross-entropy is 0 (with a graph).

        Raises:
            TypeError: If logits or target are no tensors, or of a type that says nothing.
            ValueError: If the shapes do not fit, or exclusive classes have one channel.
        """
        target, valid = split_target(logits, target, self.regions, self.ignore_label)
        logits = at_least_float32(logits)
        if self.regions:
            truth = target.to(logits.dtype)
            ce = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            probs = logits.sigmoid()
        else:
            log_probs = functional.log_softmax(logits, 1)
            ce = -log_probs.gather(1, target.long())
            probs = log_probs[:, 1:].exp()
            classes = torch.arange(1, logits.shape[1], device=logits.device).reshape(1, -1, *[1] * (logits.ndim - 2))
            truth = (target == classes).to(logits.dtype)
        if valid is not None:
            probs, truth = probs * valid, truth * valid
        return self.weight_ce * self._cross_entropy(ce, valid) + self._dice_loss(probs, truth)

    def _cross_entropy(self, ce: Tensor, valid: Tensor | None) -> Tensor:
        # the probability of what is true is exp(-CE), for classes and for regions
        with torch.no_grad():
            distance = ((-ce).exp() - 0.5).abs_().clamp_min_(self.delta)
            weight = (0.5 / distance).pow_(self.gamma)
            if valid is not None:
                weight = weight * valid
            total = weight.sum()
            if self.gather is not None:
                total = self.gather(total.reshape(1)).mean()  # gradients are averaged over the processes later
        return (weight * ce).sum() / total.clamp_min(1e-8)

    def _dice_loss(self, probs: Tensor, truth: Tensor) -> Tensor:
        axes = tuple(range(2, probs.ndim))
        sums = torch.stack([(probs * truth).sum(axes), probs.square().sum(axes), truth.sum(axes)])
        if self.batch_dice:
            # the batch first: processes may have batches of different sizes
            sums = sums.sum(1, keepdim=True)
            if self.gather is not None:
                sums = self.gather(sums).sum(0)
        intersection, probs_squared, truth_squared = sums
        dice = (2 * intersection + self.smooth) / (probs_squared + truth_squared + self.smooth).clamp_min(1e-8)
        return 1 - dice.mean()


def literal_hybrid_loss(
    probabilities: Tensor, truth: Tensor, alpha: float = 1.0, gamma: float = 2.0, smooth: float = 1.0
) -> Tensor:
    """Return Eq. 8 of the paper for one output as it is printed, to compare with; nothing should be trained with it.

    ``1 - [alpha sum(Y log P / |P - 1/2|^gamma) + (2 sum(P Y) + s) / (sum(P^2) + sum(Y^2) + s)]``. It is infinite where
    P is 1/2, and lowers the probability of foreground voxels between 0.084 and 1/2 (gamma = 2).

    Args:
        probabilities: Probabilities of the foreground P, of any shape.
        truth: Foreground Y, 0 or 1, of the same shape.
        alpha: Weight of the cross-entropy, for which the paper gives no value.
        gamma: Exponent of the distance from 1/2, 2 in the paper.
        smooth: Number s added to numerator and denominator of the Dice, for which the paper gives no value.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import literal_hybrid_loss
        >>> literal_hybrid_loss(torch.tensor([0.9, 0.5]), torch.tensor([1.0, 1.0]))
        tensor(inf)
    """
    if probabilities.shape != truth.shape:
        raise ValueError(
            f"probabilities and truth must have one shape, got {tuple(probabilities.shape)} and {tuple(truth.shape)}"
        )
    focal = (truth * probabilities.log() / (probabilities - 0.5).abs().pow(gamma)).sum()
    intersection = (probabilities * truth).sum()
    dice = (2 * intersection + smooth) / (probabilities.square().sum() + truth.square().sum() + smooth)
    return 1 - (alpha * focal + dice)
