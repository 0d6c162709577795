"""Weights and learning rates that change from epoch to epoch."""

from __future__ import annotations

from typing import Any

import torch


def linear_ramp(epoch: int, num_epochs: int, final: float = 0.5, fraction: float = 0.5) -> float:
    """Return the weight of the CPS loss: linear up to ``final``, then constant.

    3D-CPS: ``final * min(1, (epoch + 1) / R)`` with ``R = round(fraction * num_epochs)``, the released code's ramp
    (500 of 1000 epochs) for any number of epochs. ``fraction`` 0 switches the ramp off.

    Args:
        epoch: Epoch, from 0.
        num_epochs: Length of the training.
        final: Weight after the ramp.
        fraction: Share of the training that the ramp takes, 0 to 1.

    Raises:
        ValueError: If ``fraction`` is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"ramp_fraction must lie between 0 and 1, got {fraction}")
    length = round(fraction * num_epochs)
    return final * min(1.0, (epoch + 1) / length) if length > 0 else final


class PlateauScheduler:
    """``ReduceLROnPlateau`` with the interface of nnU-Net's polynomial scheduler.

    nnU-Net calls ``step(epoch)`` before each epoch; the value to watch comes from :meth:`observe` after it. Patience,
    factor and threshold are those of the first nnU-Net, which the table of the 3D-CPS paper refers to.

    Args:
        optimizer: Optimiser whose learning rate is reduced.
        patience: Epochs without improvement before the rate is reduced.
        factor: The rate is multiplied by this.
        threshold: A smaller absolute improvement counts as none.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, patience: int = 30, factor: float = 0.2, threshold: float = 1e-3
    ) -> None:
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=patience, factor=factor, threshold=threshold, threshold_mode="abs"
        )

    def step(self, epoch: int | None = None) -> None:
        """Do nothing: the rate follows the observed losses."""

    def observe(self, loss: float) -> None:
        """Take the training loss of the epoch that just ended; lower is better."""
        self._scheduler.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return self._scheduler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self._scheduler.load_state_dict(state)
