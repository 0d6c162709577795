"""The parts ``<N>epochs`` and ``<M>iterations``: shorter trainings, to try things out."""

from __future__ import annotations

from functools import cache

from nnunet_ext.trainers._mixin import TrainerMixin


class LengthPart(TrainerMixin):
    """Sets the length of a training; whatever depends on it is evaluated in ``initialize``."""

    length_epochs: int | None = None
    length_iterations: int | None = None

    def set_defaults(self) -> None:
        """Set the length, and save a short training often enough to continue from, too."""
        super().set_defaults()
        if self.length_epochs is not None:
            self.num_epochs = self.length_epochs
        if self.length_iterations is not None:
            self.num_iterations_per_epoch = self.length_iterations
            self.num_val_iterations_per_epoch = max(1, round(self.length_iterations / 5))
        self.save_every = max(1, min(50, self.num_epochs // 10))


@cache
def epochs_part(epochs: int) -> type:
    """Return the part that trains for ``epochs`` epochs."""
    return type("EpochsPart", (LengthPart,), {"length_epochs": epochs, "__module__": __name__})


@cache
def iterations_part(iterations: int) -> type:
    """Return the part that trains for ``iterations`` iterations an epoch."""
    return type("IterationsPart", (LengthPart,), {"length_iterations": iterations, "__module__": __name__})
