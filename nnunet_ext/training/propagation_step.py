"""The step of mask propagation: objects of the first slice of a triple are found in the other two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.losses import (
    bootstrapped_cross_entropy,
    bootstrapped_fraction,
    ohem_cross_entropy,
    propagation_loss,
)
from nnunet_ext.training.propagation_settings import STEPS_OF_PAPER, PropagationTrainer


class FrameLoss(nn.Module):
    """The loss of both frames, with the cross-entropy that the settings ask for.

    Args:
        bootstrapped: Whether a falling share of the pixels counts, instead of those that are hard.

    Attributes:
        fraction: Share of the pixels that counts where it is bootstrapped.
    """

    def __init__(self, bootstrapped: bool = False) -> None:
        super().__init__()
        self.bootstrapped = bootstrapped
        self.fraction = 1.0

    def forward(self, log_odds: Tensor, labels: Tensor, present: Tensor) -> Tensor:
        """Return :func:`~nnunet_ext.losses.propagation_loss`, whose arguments these are."""
        pixels = (
            partial(bootstrapped_cross_entropy, fraction=self.fraction) if self.bootstrapped else ohem_cross_entropy
        )
        return propagation_loss(log_odds, labels, present, pixels)


def loss_of(trainer: PropagationTrainer) -> FrameLoss:
    """Return the loss of a trainer."""
    return FrameLoss(trainer.propagation_pixel_loss == "bootstrapped")


def begin_epoch(trainer: PropagationTrainer) -> None:
    """Set the share of pixels that counts where it is bootstrapped: that of a training of the paper's length."""
    progress = trainer.current_epoch / max(1, trainer.num_epochs)
    trainer.loss.fraction = bootstrapped_fraction(progress * STEPS_OF_PAPER)


def train_step(trainer: PropagationTrainer, batch: dict[str, Any]) -> dict[str, Any]:
    """Do a training step, as nnU-Net does its own.

    Args:
        trainer: A trainer with the part, once it is initialised.
        batch: Of :class:`~nnunet_ext.data.slice_triples.SliceTripleLoader`.
    """
    trainer.optimizer.zero_grad(set_to_none=True)
    _, loss = _forward(trainer, batch)
    parameters, scaler = trainer.network.parameters(), trainer.grad_scaler
    if scaler is None:
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, trainer.propagation_clip)
        trainer.optimizer.step()
    else:
        scaler.scale(loss).backward()
        scaler.unscale_(trainer.optimizer)
        nn.utils.clip_grad_norm_(parameters, trainer.propagation_clip)
        scaler.step(trainer.optimizer)
        scaler.update()
    return {"loss": loss.detach().cpu().numpy()}


def validation_step(trainer: PropagationTrainer, batch: dict[str, Any]) -> dict[str, Any]:
    """Return loss, and true and false positives and false negatives of each label, of a validation batch.

    Args:
        trainer: A trainer with the part, its network in evaluation mode.
        batch: Of :class:`~nnunet_ext.data.slice_triples.SliceTripleLoader`.
    """
    log_odds, loss = _forward(trainer, batch)
    target = batch["target"].to(log_odds.device)
    counts = hard_counts(log_odds.argmax(2), target, batch["classes"], trainer.label_manager.foreground_labels)
    hard = dict(zip(("tp_hard", "fp_hard", "fn_hard"), counts.numpy(), strict=True))
    return {"loss": loss.detach().cpu().numpy(), **hard}


def _forward(trainer: PropagationTrainer, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return log-odds of both frames and the loss."""
    frames, masks, present, target = (
        batch[key].to(trainer.device, non_blocking=True) for key in ("data", "masks", "present", "target")
    )
    with trainer.autocast():
        log_odds = trainer.network(frames, masks.float(), present)
        loss = trainer.loss(log_odds, target, present)
    return log_odds, loss


def hard_counts(predicted: Tensor, target: Tensor, classes: Tensor, labels: Sequence[int]) -> Tensor:
    """Count pixels of objects by the label that each object has.

    Args:
        predicted: ``(B, F, *S)``: 0 or the number of an object from 1.
        target: The same of the truth; negative where a pixel does not count.
        classes: ``(B, K)``: labels of the objects, 0 for none.
        labels: Labels in the order of the result.

    Returns:
        ``(3, len(labels))`` float64 on the CPU: true positives, false positives, false negatives.
    """
    counts = torch.zeros((3, len(labels)), dtype=torch.float64)
    valid = target >= 0
    for number in range(classes.shape[1]):
        found, true = (predicted == number + 1) & valid, (target == number + 1) & valid
        each = torch.stack([found & true, found & ~true, true & ~found]).flatten(2).sum(2).cpu().double()
        for place, label in enumerate(labels):
            counts[:, place] += (each * (classes[:, number] == label).cpu()).sum(1)
    return counts
