"""What becomes of pseudo-labels in a training: an alarm when classes drift, and how many are kept and right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nnunet_ext.training.counting import class_counts
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.semi_supervised import class_names

_ENOUGH = 5  # epochs that make a median


class DriftAlarm:
    """Watches whether a class's share in the pseudo-labels leaves what it was since the ramp.

    A teacher that follows its own mistakes lets classes grow or shrink, mostly in the last third of a training.

    Args:
        first_class: First output to watch: 1 where output 0 is the background, 0 for regions.
        decay: What the shares of earlier epochs are multiplied by at each epoch; the rest is that of the epoch.
        least: Lowest ratio to the median that is no drift.
        most: Highest ratio to the median that is no drift.
    """

    def __init__(self, first_class: int = 1, decay: float = 0.5, least: float = 0.8, most: float = 1.25) -> None:
        self.first_class, self.decay, self.least, self.most = first_class, decay, least, most
        self._share: np.ndarray | None = None
        self._history: list[list[float]] = []
        self._outside: set[int] = set()

    def observe(self, share: Sequence[float] | np.ndarray, after_ramp: bool) -> list[int]:
        """Take in the shares of an epoch.

        Args:
            share: Share of each class in the pseudo-labels of the epoch, ``(K,)``.
            after_ramp: Whether the loss of pseudo-labels has its whole weight; earlier shares are no measure.

        Returns:
            Classes that have left their median by more than is allowed, and had not in the epoch before.
        """
        now = np.asarray(share, float)
        if not np.isfinite(now).all():  # nothing was labelled
            return []
        self._share = now if self._share is None else self.decay * self._share + (1 - self.decay) * now
        if not after_ramp:
            return []
        outside = self._drifting()
        new = sorted(outside - self._outside)
        self._outside = outside
        self._history.append([float(value) for value in self._share])
        return new

    def _drifting(self) -> set[int]:
        if len(self._history) < _ENOUGH or self._share is None:
            return set()
        median = np.median(self._history, 0)
        drifts = (self._share < self.least * median) | (self._share > self.most * median)
        return {int(c) for c in np.flatnonzero(drifts & (median > 0)) if c >= self.first_class}

    def warning(
        self, classes: Sequence[int], names: Sequence[str], epoch: int, weight: str = "unlabeled_weight"
    ) -> str:
        """Return what to say of classes that :meth:`observe` returned.

        Args:
            classes: The classes.
            names: Names of the network's outputs.
            epoch: Number of the epoch.
            weight: Name of the setting that weighs the loss of pseudo-labels.
        """
        median, share = np.median(self._history, 0), np.asarray(self._share)
        listed = ", ".join(f"{names[c]} ({share[c] / median[c]:.2f} times)" for c in classes)
        return (
            f"WARNING: in epoch {epoch} the share of {listed} in the pseudo-labels left {self.least} to {self.most} "
            "times its median since the ramp: the network may be following its own mistakes. Compare with an earlier "
            f"checkpoint; a smaller {weight} or a longer ramp_down_fraction lets the labels hold it."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "share": None if self._share is None else self._share.tolist(),
            "history": [list(shares) for shares in self._history],
            "outside": sorted(self._outside),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self._share = None if state["share"] is None else np.array(state["share"])
        self._history = [list(shares) for shares in state["history"]]
        self._outside = set(state["outside"])


class WatchedTrainer(ExtTrainer, Protocol):
    """A trainer with an alarm.

    Attributes:
        drift: The alarm.
        ramp_fraction: Share of the epochs after which the loss of pseudo-labels has its whole weight.
    """

    drift: DriftAlarm
    ramp_fraction: float


def warn_of_drift(trainer: WatchedTrainer, share: Sequence[float], weight: str = "unlabeled_weight") -> None:
    """Take in the shares of an epoch, and write into the log which classes drift.

    Args:
        trainer: A trainer with an alarm.
        share: Share of each class in the pseudo-labels of the epoch.
        weight: Name of the setting that weighs the loss of pseudo-labels.
    """
    ramped = trainer.current_epoch + 1 >= round(trainer.ramp_fraction * trainer.num_epochs)
    ramped = ramped and trainer.shares_are_settled()
    drifting = trainer.drift.observe(share, ramped)
    if drifting:
        names = class_names(trainer)
        trainer.print_to_log_file(trainer.drift.warning(drifting, names, trainer.current_epoch, weight))


def quality_counts(
    labels: Tensor,
    kept: Tensor,
    valid: Tensor | None,
    outputs: int,
    regions: bool = False,
    truth: Tensor | None = None,
) -> Tensor:
    """Count pseudo-labels by class, without waiting for the device.

    Args:
        labels: ``(B, 1, *S)`` integers; with ``regions`` ``(B, K, *S)`` bool, of which the insides are counted.
        kept: Like ``labels``, non-zero where the label is learnt from.
        valid: ``(B, 1, *S)``, 0 in padding; ``None`` for no padding.
        outputs: Channels of the network, K.
        regions: Whether there are overlapping regions instead of exclusive classes.
        truth: True labels, like ``labels``, where a benchmark has them; never for training.

    Returns:
        ``(2, K)``: labels, and kept ones; with a truth ``(3, K)``: right ones among the kept.
    """
    there = torch.ones_like(labels, dtype=torch.bool) if valid is None else (valid > 0).expand_as(labels)
    masks = [there, there & (kept > 0)]
    if truth is not None:
        masks.append(masks[1] & ((labels > 0) == (truth > 0) if regions else labels == truth))
    counts = [class_counts(labels, mask, outputs, regions) for mask in masks]
    return torch.stack([count[1] if regions else count for count in counts])


def kept_share_and_precision(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which share of each class is kept, and which share of that is right; NaN where there is none.

    Args:
        counts: As counted, summed over batches; without a truth no precision is known.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts[1] / counts[0]
        precision = counts[2] / counts[1] if len(counts) > 2 else np.full_like(share, np.nan)
    return share, precision
