"""Weights and learning rates that change from epoch to epoch."""

from __future__ import annotations

from typing import Any

import torch

SCHEDULE = (0.1, 0.4, 0.15, 0.1)  # warm-up, ramp, way down and its end of whoever learns pseudo-labels
SCHEDULE_OF_3D_CPS = (0.0, 0.5, 0.0, 0.1)


def linear_ramp(epoch: int, num_epochs: int, final: float = 0.5, fraction: float = 0.5) -> float:
    """Return the weight of the CPS loss: linear up to ``final``, then constant.

    3D-CPS: ``final * min(1, (epoch + 1) / R)`` with ``R = round(fraction * num_epochs)``, the released code's ramp
    (500 of 1000 epochs) for any number of epochs. ``fraction`` 0 switches the ramp off.

    Args:
        epoch: Number of the epoch, from 0.
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


def ramped_weight(
    epoch: int,
    num_epochs: int,
    final: float = 0.5,
    warmup: float = 0.1,
    ramp: float = 0.4,
    down: float = 0.15,
    end: float = 0.1,
) -> float:
    """Return the weight of the loss of pseudo-labels: 0 at first, a linear ramp, constant, and a linear way down.

    Of E epochs the first ``W = round(warmup * E)`` have weight 0; from ``final / (R - W)`` it rises to ``final`` at
    ``R = round(ramp * E)`` epochs; in the last ``round(down * E)`` it falls to ``end * final``. Without warm-up and way
    down it is :func:`linear_ramp`. The way down is not published: it answers teachers that drift in the last third.

    Args:
        epoch: Number of the epoch, from 0; after the end the weight stays that of the last one.
        num_epochs: Length of the training, E.
        final: Weight between the ramps.
        warmup: Share of the training without the loss.
        ramp: Share of the training after which the weight is ``final``.
        down: Share of the training over which it falls.
        end: What is left of it in the last epoch, as a share of ``final``.
    """
    start, full, last = _turns(num_epochs, warmup, ramp, down)
    epoch = min(epoch, num_epochs - 1)
    if epoch < start:
        return 0.0
    if epoch < full:
        return final * ((epoch - start + 1) / (full - start))
    if epoch < last:
        return final
    return final * (1 - (1 - end) * (epoch - last + 1) / (num_epochs - last))


def check_schedule(
    num_epochs: int,
    unlabeled_weight: float = 0.5,
    warmup_fraction: float = 0.1,
    ramp_fraction: float = 0.4,
    ramp_down_fraction: float = 0.15,
    ramp_down_end: float = 0.1,
) -> None:
    """Refuse settings of which :func:`ramped_weight` makes no sense, by the names that trainers have for them.

    Args:
        num_epochs: Length of the training.
        unlabeled_weight: Weight between the ramps.
        warmup_fraction: Share of the training without the loss.
        ramp_fraction: Share of the training after which the weight is whole; with no warm-up it may be 0.
        ramp_down_fraction: Share of the training over which the weight falls.
        ramp_down_end: What is left of it in the last epoch.

    Raises:
        ValueError: If a value is out of range, or two of them overlap; says which.
    """
    if not 0 <= unlabeled_weight < float("inf"):
        raise ValueError(f"unlabeled_weight must be 0 or more, got {unlabeled_weight}")
    fractions = {
        "warmup_fraction": warmup_fraction,
        "ramp_fraction": ramp_fraction,
        "ramp_down_fraction": ramp_down_fraction,
        "ramp_down_end": ramp_down_end,
    }
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}")
    start, full, last = _turns(num_epochs, warmup_fraction, ramp_fraction, ramp_down_fraction)
    if full < start or full == start > 0:
        raise ValueError(
            f"warmup_fraction {warmup_fraction} and ramp_fraction {ramp_fraction} overlap: of {num_epochs} epochs the "
            f"weight would be 0 in the first {start} and whole after {full}; make ramp_fraction larger than "
            "warmup_fraction"
        )
    if last < full:
        raise ValueError(
            f"ramp_fraction {ramp_fraction} and ramp_down_fraction {ramp_down_fraction} overlap: of {num_epochs} "
            f"epochs the weight would be whole after {full} and fall from {last} on; make their sum 1 or less"
        )


def _turns(num_epochs: int, warmup: float, ramp: float, down: float) -> tuple[int, int, int]:
    """Return the first epoch of the ramp, that after it, and the first of the way down; halves go to even numbers."""
    return round(warmup * num_epochs), round(ramp * num_epochs), num_epochs - round(down * num_epochs)


class PlateauScheduler:
    """``ReduceLROnPlateau`` with the interface of nnU-Net's polynomial scheduler.

    nnU-Net calls ``step(epoch)`` before each epoch; the value to watch comes from :meth:`observe` after it. Patience,
    factor and threshold are those of the first nnU-Net, which the table of the 3D-CPS paper refers to.

    Args:
        optimizer: Optimiser whose learning rate is reduced.
        patience: Epochs without improvement before the rate is reduced.
        factor: Number that the rate is multiplied by.
        threshold: Least absolute improvement that counts.
    """

    _COUNTERS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")  # all else are settings

    def __init__(
        self, optimizer: torch.optim.Optimizer, patience: int = 30, factor: float = 0.2, threshold: float = 1e-3
    ) -> None:
        self._initial_rates = [group["lr"] for group in optimizer.param_groups]
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=patience, factor=factor, threshold=threshold, threshold_mode="abs"
        )

    def step(self, epoch: int | None = None) -> None:
        """Do nothing: the rate follows the observed losses."""

    def observe(self, loss: float) -> None:
        """Take the training loss of the epoch that just ended; lower is better."""
        self._scheduler.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: the counters, and by how much the rate is reduced."""
        groups = self._scheduler.optimizer.param_groups
        reduced = [
            group["lr"] / initial if initial else 1.0
            for group, initial in zip(groups, self._initial_rates, strict=True)
        ]
        return {name: getattr(self._scheduler, name) for name in self._COUNTERS} | {"reduced_to": reduced}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; the settings, the initial rate among them, stay those of this scheduler.

        Args:
            state: State of a checkpoint. One that does not say by how much the rate is reduced leaves the optimiser's
                rate.
        """
        for name in self._COUNTERS:
            if name in state:
                setattr(self._scheduler, name, state[name])
        reduced = state.get("reduced_to", ())
        for group, initial, share in zip(
            self._scheduler.optimizer.param_groups, self._initial_rates, reduced, strict=False
        ):
            group["lr"] = initial * share


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    """Return what a checkpoint holds of a scheduler.

    As for nnU-Net, that is nothing where the rate follows from the epoch: length and initial rate are settings of the
    trainer, which may be other ones when the training goes on.
    """
    return scheduler.state_dict() if isinstance(scheduler, PlateauScheduler) else {}


def restore_scheduler(scheduler: Any, state: dict[str, Any]) -> None:
    """Restore what :func:`scheduler_state` returned, or every number of a scheduler, of which the settings are left."""
    if isinstance(scheduler, PlateauScheduler):
        scheduler.load_state_dict(state)
