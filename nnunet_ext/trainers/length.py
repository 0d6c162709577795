"""The parts ``<N>epochs`` and ``<M>iterations``: shorter trainings, to try things out."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from nnunet_ext.trainers._mixin import TrainerMixin


class LengthPart(TrainerMixin):
    """Sets the length of a training; whatever depends on it is evaluated in ``initialize``."""

    length_epochs: int | None = None
    length_iterations: int | None = None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.length_epochs is not None:
            self.num_epochs = self.length_epochs
        if self.length_iterations is not None:
            self.num_iterations_per_epoch = self.length_iterations
            self.num_val_iterations_per_epoch = max(1, round(self.length_iterations / 5))
        # A short training must leave a checkpoint to continue from, too.
        self.save_every = max(1, min(50, self.num_epochs // 10))


@cache
def epochs_part(epochs: int) -> type:
    """Return the part that trains for ``epochs`` epochs."""
    return type("EpochsPart", (LengthPart,), {"length_epochs": epochs, "__module__": __name__})


@cache
def iterations_part(iterations: int) -> type:
    """Return the part that trains for ``iterations`` iterations an epoch."""
    return type("IterationsPart", (LengthPart,), {"length_iterations": iterations, "__module__": __name__})
