"""The loss of pseudo-labelled patches over all scales of deep supervision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.losses.unlabelled import unlabelled_loss, unlabelled_region_loss
from nnunet_ext.training.criteria import compiles_losses, sum_over_processes
from nnunet_ext.training.host import ExtTrainer


class UnlabelledCriterion(nn.Module):
    """Cross-entropy of the kept voxels by the number of valid ones, plus Dice of the classes that are there.

    Labels and masks come at full resolution, and are brought to each scale by nnU-Net's rule for targets (nearest).

    Args:
        weights: Weight of each output; outputs of weight 0 are skipped.
        regions: Whether there are overlapping regions instead of exclusive classes.
        ddp: Whether to sum Dice and voxel counts over the processes.
        compile_loss: Whether to compile the loss of one scale.
    """

    def __init__(self, weights: Sequence[float], regions: bool, ddp: bool = False, compile_loss: bool = False) -> None:
        super().__init__()
        self.weights = tuple(weights)
        self.ddp = ddp
        function = unlabelled_region_loss if regions else unlabelled_loss
        self._function = torch.compile(function) if compile_loss and not ddp else function

    def forward(
        self,
        outputs: list[Tensor],
        labels: Tensor,
        kept: Tensor,
        valid: Tensor,
        class_weights: Tensor | None = None,
        silent: Tensor | None = None,
    ) -> Tensor:
        """Return the weighted sum over the scales.

        Args:
            outputs: Logits ``(B, K, *S_i)``, highest resolution first.
            labels: Pseudo-labels ``(B, 1, *S)`` of classes, or ``(B, K, *S)`` bool of regions.
            kept: Mask of those that count, ``(B, 1, *S)`` or ``(B, K, *S)``.
            valid: Mask ``(B, 1, *S)`` of voxels that are neither padding nor outside of the scan.
            class_weights: Weights ``(K,)`` of the classes in the cross-entropy, None for 1.
            silent: Classes ``(K,)`` bool that the labels say nothing of, None for none; not for regions.
        """
        spoken: dict[str, Any] = {} if silent is None else {"silent": silent}  # regions know no silence
        total: Tensor | None = None
        for weight, logits in zip(self.weights, outputs, strict=True):
            if weight == 0:
                continue
            size = logits.shape[2:]
            loss = self._function(
                logits,
                at_scale(labels, size),
                at_scale(kept, size),
                at_scale(valid, size),
                class_weights,
                gather=sum_over_processes(self.ddp),
                **spoken,
            )
            total = weight * loss if total is None else total + weight * loss
        if total is None:
            raise ValueError(f"at least one deep supervision weight must differ from 0, got {self.weights}")
        return total


def at_scale(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Bring labels or a mask ``(B, C, *S)`` to a size as nnU-Net brings targets to the scales of deep supervision."""
    if tuple(tensor.shape[2:]) == tuple(size):
        return tensor
    return functional.interpolate(tensor.float(), tuple(size), mode="nearest-exact").to(tensor.dtype)


def unlabelled_criterion(trainer: ExtTrainer) -> UnlabelledCriterion:
    """Return the loss of pseudo-labelled patches of a trainer, over all scales."""
    regions = trainer.label_manager.has_regions
    return UnlabelledCriterion(trainer.output_weights(), regions, trainer.is_ddp, compiles_losses(trainer))
