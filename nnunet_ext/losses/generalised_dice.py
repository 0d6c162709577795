"""Generalised Dice: MONAI's implementation, with nnU-Net's targets and ignore label."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.losses._common import at_least_float32, split_target


class GeneralisedDiceLoss(nn.Module):
    """Generalised Dice: every class, the background too, weighted by the inverse square of its volume.

    Sudre, Li, Vercauteren, Ourselin and Cardoso, "Generalised Dice overlap as a deep learning loss function for highly
    unbalanced segmentations", DLMIA 2017 (arXiv:1707.03237). Computed by ``monai.losses.GeneralizedDiceLoss``, whose
    weight of an absent class is that of the rarest present one. A process of DDP counts its own batch alone.

    Args:
        regions: Channels are overlapping regions (sigmoid) instead of exclusive classes (softmax).
        ignore_label: Voxels of this label count nowhere. With ``regions`` any number says that the last channel of
            the target marks the voxels to ignore.
        batch_dice: Sum over the batch before the quotient.

    Example:
        >>> import torch
        >>> from nnunet_ext.losses import GeneralisedDiceLoss
        >>> labels = torch.tensor([0, 0, 0, 1]).reshape(1, 1, 2, 2)
        >>> undecided = torch.zeros(1, 2, 2, 2)
        >>> sure = 100.0 * torch.cat([labels == 0, labels == 1], 1)
        >>> [round(GeneralisedDiceLoss()(logits, labels).item(), 4) for logits in (undecided, sure)]
        [0.625, 0.0]
    """

    def __init__(self, regions: bool = False, ignore_label: int | None = None, batch_dice: bool = False) -> None:
        super().__init__()
        from monai.losses import GeneralizedDiceLoss  # imported late: it takes a second

        self.regions, self.ignore_label = regions, ignore_label
        # the sums are weighted by inverse squared volumes, so MONAI's default of 1e-5 would be most of them
        self._loss = GeneralizedDiceLoss(batch=batch_dice, smooth_nr=1e-12, smooth_dr=1e-12)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of one scale; shapes as of :class:`~nnunet_ext.losses.ContourWeightedLoss`.

        Raises:
            TypeError: If logits or target are no tensors, or of a type that says nothing.
            ValueError: If the shapes do not fit, or exclusive classes have one channel.
        """
        target, valid = split_target(logits, target, self.regions, self.ignore_label)
        logits = at_least_float32(logits)
        if self.regions:
            probs, truth = logits.sigmoid(), target.to(logits.dtype)
        else:
            probs = functional.softmax(logits, 1)
            truth = torch.zeros_like(probs).scatter_(1, target.long(), 1.0)
        if valid is not None:
            # probabilities, not logits: a masked logit would still take part in the softmax
            probs, truth = probs * valid, truth * valid
        return self._loss(probs, truth)
