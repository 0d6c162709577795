"""A step of two networks that learn labels alone, where a batch has no unlabelled patches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from nnunet_ext.training.cps_step import SupervisedStep, report_of, supervised_loss_of, update_both


class PairStep(SupervisedStep, Protocol):
    """A step of two networks that can learn labels alone; :class:`CPSViewsStep` tells what each name is."""

    networks: tuple[nn.Module, nn.Module]
    optimizers: tuple[Any, Any]
    number_of_outputs: int
    regions: bool
    grad_scaler: Any
    clip: float

    @property
    def autocast(self) -> Callable[[], AbstractContextManager]:
        """Makes the context of a forward pass."""
        ...


def supervised_pair(step: PairStep, labelled: Tensor, target: Any) -> dict[str, Any]:
    """Train each of two networks on labelled patches, as nnU-Net trains its one.

    Args:
        step: Networks, optimisers and loss.
        labelled: Patches ``(B, C, *S)``, on the device.
        target: Their labels, as nnU-Net's losses get them.

    Returns:
        As a step with pseudo-labels does, with counts of 0, and None for the loss of pseudo-labels.
    """
    losses = []
    for number, (network, optimizer) in enumerate(zip(step.networks, step.optimizers, strict=True)):
        optimizer.zero_grad(set_to_none=True)
        with step.autocast():
            output = network(labelled)
            outputs = list(output) if isinstance(output, (list, tuple)) else [output]
            loss = supervised_loss_of(step, number, outputs, target)
        (loss if step.grad_scaler is None else step.grad_scaler.scale(loss)).backward()
        losses.append(loss.detach())
    update_both(step.networks, step.optimizers, step.grad_scaler, step.clip)
    full = target[0] if isinstance(target, list) else target
    counts = full.new_zeros((3, step.number_of_outputs)).long()
    report = report_of(losses, [loss.new_zeros(()) for loss in losses], counts, target, step.regions)
    return report | {"cps": None}
