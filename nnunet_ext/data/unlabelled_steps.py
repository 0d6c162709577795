"""Which steps of a training have unlabelled patches, and how many: every k-th step, in all processes alike.

The number of a step counts from the start of the training, so that a training that goes on has them at the same steps
as one that was never stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist

from nnunet_ext.data.host import Trainer


class SparingTrainer(Trainer, Protocol):
    """A trainer that need not have unlabelled patches in each step, nor as many as labelled ones.

    Attributes:
        unlabeled_every: Steps from one with unlabelled patches to the next.
        unlabeled_batch_size: Unlabelled patches of such a step, over all processes; None for as many as labelled ones.
        num_iterations_per_epoch: Steps of an epoch.
    """

    unlabeled_every: int
    unlabeled_batch_size: int | None
    num_iterations_per_epoch: int


@dataclass(frozen=True)
class UnlabelledSteps:
    """Unlabelled patches of the steps of a training.

    Attributes:
        every: Steps from one with unlabelled patches to the next; 1 for all.
        batch_size: Unlabelled patches of such a step in this process; None for as many as labelled ones.
        first: Number of the first step of a loader.
    """

    every: int = 1
    batch_size: int | None = None
    first: int = 0

    def has_unlabelled(self, step: int) -> bool:
        """Whether a step has unlabelled patches, by its number from the start of the training."""
        return step % self.every == 0


ALL_STEPS = UnlabelledSteps()


def unlabelled_steps(trainer: SparingTrainer) -> UnlabelledSteps:
    """Return the steps of a trainer from its current epoch on.

    The first batch of a loader is the one that is drawn to start it, before the first step.
    """
    first = trainer.current_epoch * trainer.num_iterations_per_epoch - 1
    size = None if trainer.unlabeled_batch_size is None else unlabelled_batch_size(trainer)
    return UnlabelledSteps(int(trainer.unlabeled_every), size, first)


def unlabelled_batch_size(trainer: SparingTrainer) -> int:
    """Return the unlabelled patches of a step in this process: a share of the setting, as nnU-Net shares batches."""
    if trainer.unlabeled_batch_size is None:
        return trainer.batch_size
    if not trainer.is_ddp:
        return int(trainer.unlabeled_batch_size)
    processes = dist.get_world_size()
    return (int(trainer.unlabeled_batch_size) + processes - 1 - dist.get_rank()) // processes


def least_unlabelled_batch_size(trainer: SparingTrainer) -> int:
    """Return the unlabelled patches of a step in the process that has the fewest."""
    if not trainer.is_ddp:
        return unlabelled_batch_size(trainer)
    of_all = trainer.unlabeled_batch_size or trainer.configuration_manager.batch_size
    return int(of_all) // dist.get_world_size()


def refuse_senseless_steps(trainer: SparingTrainer) -> None:
    """Raise where no step can have unlabelled patches as asked.

    Raises:
        ValueError: If a setting is no whole number from 1, or an epoch or a process would be left without any.
    """
    every, size, steps = trainer.unlabeled_every, trainer.unlabeled_batch_size, trainer.num_iterations_per_epoch
    if not _is_whole(every):
        raise ValueError(
            f"unlabeled_every must be a whole number from 1 (steps from one with unlabelled patches to the next), got "
            f"{every!r}; 1 has them in every step"
        )
    if every > steps:
        raise ValueError(
            f"unlabeled_every must be at most the {steps} steps of an epoch, so that each epoch has unlabelled "
            f"patches, got {every}; 1 has them in every step"
        )
    if size is None:
        return
    if not _is_whole(size):
        raise ValueError(
            f"unlabeled_batch_size must be None (as many as labelled patches) or a whole number from 1, got {size!r}"
        )
    if trainer.is_ddp and size < dist.get_world_size():
        processes = dist.get_world_size()
        raise ValueError(
            f"unlabeled_batch_size is shared by the {processes} processes that train, each of which needs a patch, got "
            f"{size}; give {processes} or more, or None for as many as labelled patches"
        )


class InOrder:
    """Puts batches of several loader processes into the order of the steps: those with unlabelled patches in theirs.

    Each process makes its batches in that order, but whichever is ready first is handed on. What comes too early waits
    here; that is never more than a few batches a process.

    Args:
        steps: Which steps have unlabelled patches.
    """

    def __init__(self, steps: UnlabelledSteps) -> None:
        self.steps = steps
        self.step = steps.first
        self.waiting: dict[bool, deque[dict[str, Any]]] = {True: deque(), False: deque()}

    def next(self, draw: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the batch of the next step.

        Args:
            draw: Returns what some process has made next.
        """
        waiting = self.waiting[self.steps.has_unlabelled(self.step)]
        while not waiting:
            batch = draw()
            self.waiting["unlabeled" in batch].append(batch)
        self.step += 1
        return waiting.popleft()


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= 1)
