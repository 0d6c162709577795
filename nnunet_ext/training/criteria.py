"""From settings to losses, with the weights of deep supervision in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn
from torch.nn import functional

from nnunet_ext.data.host import Trainer
from nnunet_ext.losses.cross_pseudo import cross_pseudo_loss, cross_pseudo_region_loss
from nnunet_ext.plugin import compat
from nnunet_ext.training.host import ExtTrainer


def deep_supervision_weights(number_of_outputs: int, lowest: float = 0.0) -> tuple[float, ...]:
    """Return nnU-Net's weights: halved from output to output, the lowest resolution left out, sum 1.

    Args:
        number_of_outputs: Number of outputs, which begin with the highest resolution.
        lowest: Weight of the last output before the weights are scaled; under DDP it must not be 0 (1e-6 in nnU-Net),
            or its parameters would take no part in the backward pass.
    """
    weights = np.array([1 / 2**i for i in range(number_of_outputs)])
    if number_of_outputs > 1:
        weights[-1] = lowest
    return tuple(float(w) for w in weights / weights.sum())


def least_weight(trainer: Trainer) -> float:
    """Return the least weight that an output of a trainer may have: DDP wants every parameter to take part.

    With torch.compile it does not, as nnU-Net found.
    """
    return 1e-6 if trainer.is_ddp and not compat.compiles(trainer) else 0.0


def nnunet_weights(trainer: Trainer) -> tuple[float, ...]:
    """Return nnU-Net's weights of a trainer's outputs."""
    return deep_supervision_weights(len(strides_of_scales(trainer)), least_weight(trainer))


def strides_of_scales(trainer: Trainer) -> list[tuple[int, ...]]:
    """Return by what each axis of each output is downsampled."""
    scales = compat.deep_supervision_scales(trainer) if trainer.enable_deep_supervision else None
    if scales is None:
        return [(1,) * len(trainer.configuration_manager.patch_size)]
    return [tuple(round(1 / factor) for factor in scale) for scale in scales]


def sum_over_processes(ddp: bool) -> Callable[[Tensor], Tensor] | None:
    """Return what a loss sums Dice and voxel counts over the processes of DDP with, None for one process."""
    return AllGatherGrad.apply if ddp else None


def summed_counts(counts: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes of DDP, without gradient."""
    total = counts.detach().clone()
    dist.all_reduce(total)
    return total


def compiles_losses(trainer: Trainer) -> bool:
    """Whether a trainer compiles its losses: where nnU-Net compiles, but for DDP, whose sums are not compiled."""
    return compat.compiles(trainer) and not trainer.is_ddp


def compiled(trainer: Trainer, loss: nn.Module) -> nn.Module:
    """Return a loss, compiled where the trainer compiles its losses."""
    if compiles_losses(trainer):
        loss.compile()
    return loss


class DeepSupervision(nn.Module):
    """A loss of its own for each output; nnU-Net's wrapper has one for all.

    Args:
        losses: One loss an output, ``(logits, target) -> scalar``.
        weights: One weight an output; outputs of weight 0 are skipped.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = tuple(weights)

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        """Return the weighted sum; single tensors are the first output alone."""
        if isinstance(outputs, Tensor):
            return self.losses[0](outputs, targets)
        parts = zip(self.weights, self.losses, outputs, targets, strict=True)
        return cast(Tensor, sum(weight * loss(output, target) for weight, loss, output, target in parts if weight != 0))


def supervised_criterion(trainer: ExtTrainer, make: Callable[[tuple[int, ...]], nn.Module]) -> DeepSupervision:
    """Return the loss of a trainer over all scales.

    Args:
        trainer: A trainer of ours.
        make: Makes the loss of one scale from its strides.
    """
    return DeepSupervision([make(strides) for strides in strides_of_scales(trainer)], trainer.output_weights())


class PseudoCriterion(nn.Module):
    """The loss of one network against the labels of its peer, over all scales of deep supervision.

    Args:
        weights: One weight an output; outputs of weight 0 are skipped.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = tuple(weights)

    def loss_of_scale(self, scale: int, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of one output, on the voxels where the mask is not 0."""
        raise NotImplementedError

    def forward(self, outputs: list[Tensor], labels: list[Tensor], valid_mask: Tensor | None) -> Tensor:
        """Return the weighted sum over the scales.

        Args:
            outputs: Logits ``(B, K, *S_i)``, highest resolution first.
            labels: The peer's hard labels at the same scales.
            valid_mask: Mask ``(B, 1, *S_0)`` of the voxels that count, or None for all.
        """
        total: Tensor | float = 0.0
        for scale, (weight, logits, target) in enumerate(zip(self.weights, outputs, labels, strict=True)):
            if weight != 0:
                mask = resize_mask(valid_mask, logits.shape[2:])
                total = total + weight * self.loss_of_scale(scale, logits, target, mask)
        if not isinstance(total, Tensor):
            raise ValueError(f"at least one deep supervision weight must differ from 0, got {self.weights}")
        return total


class CrossPseudoCriterion(PseudoCriterion):
    """nnU-Net's kind of loss against the labels of the peer.

    Args:
        weights: One weight an output; outputs of weight 0 are skipped.
        regions: Whether there are overlapping regions instead of exclusive classes.
        batch_dice: Whether the Dice is that of the batch as a whole, as the plans say.
        ddp: Whether to sum Dice and voxel counts over the processes.
        compile_loss: Whether to compile the loss of one scale.
    """

    def __init__(
        self, weights: Sequence[float], regions: bool, batch_dice: bool, ddp: bool, compile_loss: bool = False
    ) -> None:
        super().__init__(weights)
        self.batch_dice = batch_dice
        self.ddp = ddp
        function: Callable = cross_pseudo_region_loss if regions else cross_pseudo_loss
        self._function = torch.compile(function) if compile_loss and not ddp else function

    def loss_of_scale(self, scale: int, logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """Return the loss of one output, on the voxels where the mask is not 0."""
        return self._function(logits, target, mask, batch_dice=self.batch_dice, gather=sum_over_processes(self.ddp))


def cross_pseudo_criterion(trainer: ExtTrainer) -> CrossPseudoCriterion:
    """Return nnU-Net's kind of loss against the labels of a trainer's peer network, over all scales."""
    return CrossPseudoCriterion(
        trainer.output_weights(),
        trainer.label_manager.has_regions,
        trainer.configuration_manager.batch_dice,
        trainer.is_ddp,
        compile_loss=compiles_losses(trainer),
    )


def resize_mask(mask: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """Resize a mask ``(B, 1, *S)`` by nearest neighbour, the way nnU-Net resizes targets for deep supervision."""
    if mask is None or tuple(mask.shape[2:]) == tuple(size):
        return mask
    return functional.interpolate(mask.float(), tuple(size), mode="nearest-exact")
