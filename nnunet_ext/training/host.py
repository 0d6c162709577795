"""What trainers of ours have beside nnU-Net's own, whatever their parts, for readers and type checkers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from nnunet_ext.data.host import Trainer


class ExtTrainer(Trainer, Protocol):
    """A trainer of ours, as far as what it is made of uses it.

    Attributes:
        seed: Base of all seeds of the training.
    """

    seed: int

    def shares_are_settled(self) -> bool:
        """Return whether the share of each class in unlabelled patches changes no more by itself."""
        ...

    def output_weights(self) -> tuple[float, ...]:
        """Return the weights of the network's outputs, the first output first."""
        ...

    def pseudo_criterion(self) -> nn.Module:
        """Return the loss against pseudo-labels."""
        ...

    def autocast(self) -> AbstractContextManager:
        """Return the context of a forward pass."""
        ...

    def using_network(self, network: nn.Module) -> AbstractContextManager[None]:
        """Let another network be the trainer's network inside the block."""
        ...


class TwoNetworkTrainer(ExtTrainer, Protocol):
    """A trainer with a second network.

    Attributes:
        network_2: The second network, compiled and wrapped as the first is.
        optimizer_2: Optimiser of the second network.
        lr_scheduler_2: Scheduler of its learning rate.
        companion: What makes and supervises a second network of another kind, None where both are alike.
        pretrained_file: File of pretrained weights as it was given, None where there is none.
    """

    network_2: nn.Module
    optimizer_2: Any
    lr_scheduler_2: Any
    companion: Any
    pretrained_file: str | None

    def target_choices(self) -> tuple[Any, Any]:
        """Return which of a batch's labels each network learns, as a :class:`TargetChoice` of ``pair_scales``."""
        ...
