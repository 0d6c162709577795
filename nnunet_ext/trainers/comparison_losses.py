"""The parts ``GDL`` and ``DWCE``: losses that contour weighting is compared with."""

from __future__ import annotations

from torch import nn

from nnunet_ext.losses import DistanceWeightedCrossEntropy, GeneralisedDiceLoss
from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.training.criteria import supervised_criterion


class GDLPart(TrainerMixin):
    """Generalised Dice instead of nnU-Net's loss; nothing else changes."""

    has_own_loss = True

    def _build_loss(self) -> nn.Module:
        labels, batch_dice = self.label_manager, self.configuration_manager.batch_dice
        return supervised_criterion(
            self, lambda strides: GeneralisedDiceLoss(labels.has_regions, labels.ignore_label, batch_dice)
        )


class DWCEPart(TrainerMixin):
    """Cross-entropy weighted by the distance to the nearest boundary instead of nnU-Net's loss."""

    has_own_loss = True

    def _build_loss(self) -> nn.Module:
        labels, spacing = self.label_manager, self.configuration_manager.spacing

        def of_scale(strides: tuple[int, ...]) -> nn.Module:
            size = [s * stride for s, stride in zip(spacing, strides, strict=True)]
            return DistanceWeightedCrossEntropy(size, labels.has_regions, labels.ignore_label)

        return supervised_criterion(self, of_scale)
