"""What a CPS training shows of itself every epoch: curves, log lines, and the warning when a class is being lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist

from nnunet_ext.training import curves
from nnunet_ext.training.agreement import shares_and_agreement
from nnunet_ext.training.curves import Panel
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.semi_supervised import class_names

KEYS = (
    "cps_lambda",
    "cps_loss",
    "supervised_loss_1",
    "supervised_loss_2",
    "cps_agreement",
    "pseudo_label_share",
    "labelled_share",
    "pseudo_dice_1",
    "pseudo_dice_2",
)
PANELS = (
    Panel(
        "losses",
        (
            ("supervised_loss_1", "supervised, network 1"),
            ("supervised_loss_2", "supervised, network 2"),
            ("cps_loss", "CPS (before lambda)"),
            ("cps_lambda", "lambda"),
        ),
    ),
    Panel("Dice of the two networks with each other, unlabelled patches", (("cps_agreement", "agreement"),), mean=True),
    Panel(
        "share of each class in the pseudo-labels, and in the labelled patches (dashed)",
        (("pseudo_label_share", "pseudo"), ("labelled_share", "labelled")),
        log_scale=True,
        lowest=4,
        called="smallest",
    ),
    Panel(
        "pseudo Dice on validation patches, network 2 dashed",
        (("pseudo_dice_1", "network 1"), ("pseudo_dice_2", "network 2")),
        lowest=6,
        called="worst",
        mean=True,
    ),
)


class CPSMonitor:
    """Collects the reports of the steps and turns them into curves once an epoch.

    Args:
        first_class: First output that can be lost: 1 where output 0 is the background, 0 for regions.
        patience: Epochs after which a missing class is warned of.
        missing_share: A class counts as missing from the pseudo-labels below this fraction of its share in the
            labelled patches.
    """

    def __init__(self, first_class: int, patience: int = 3, missing_share: float = 0.01) -> None:
        self.first_class = first_class
        self.patience = patience
        self.missing_share = missing_share
        self._missing_for: np.ndarray | None = None

    def epoch(self, outputs: list[dict[str, Any]], weight: float, ddp: bool) -> dict[str, Any]:
        """Return the curves of one training epoch.

        Args:
            outputs: Reports of the steps (:class:`~nnunet_ext.training.cps_step.CPSStep`).
            weight: Weight of the CPS loss in this epoch.
            ddp: Whether to average over the processes.
        """
        losses = np.array([np.mean([o["loss"] for o in outputs]), np.mean([o["loss_2"] for o in outputs])])
        losses = np.append(losses, mean_of_taught(outputs, "cps"))
        counts = np.sum([o["counts"] for o in outputs], 0)
        labelled = np.sum([o["labelled_counts"] for o in outputs], 0)
        if ddp:
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, (losses, counts, labelled))
            losses = np.mean([e[0] for e in everyone], 0)
            counts, labelled = (np.sum([e[i] for e in everyone], 0) for i in (1, 2))
        share, agreement = shares_and_agreement(counts)
        return {
            "cps_lambda": float(weight),
            "supervised_loss_1": float(losses[0]),
            "supervised_loss_2": float(losses[1]),
            "cps_loss": float(losses[2]),
            "cps_agreement": [float(v) for v in agreement[self.first_class :]],
            "pseudo_label_share": [float(v) for v in share],
            "labelled_share": [float(v) for v in labelled / max(labelled.sum(), 1.0)],
        }

    def missing_classes(self, values: dict[str, Any]) -> list[int]:
        """Return the classes that have been missing from the pseudo-labels for ``patience`` epochs or more."""
        pseudo = np.array(values["pseudo_label_share"])
        labelled = np.array(values["labelled_share"])
        missing = (labelled > 0) & (pseudo < self.missing_share * labelled)
        missing[: self.first_class] = False
        before = np.zeros(len(missing), int) if self._missing_for is None else self._missing_for
        self._missing_for = np.where(missing, before + 1, 0)
        return [int(c) for c in np.flatnonzero(self._missing_for >= self.patience)]

    def state(self) -> list[int] | None:
        """Return the state for a checkpoint."""
        return None if self._missing_for is None else [int(v) for v in self._missing_for]

    def load_state(self, state: list[int] | None) -> None:
        """Restore a state."""
        self._missing_for = None if state is None else np.array(state, int)


def mean_of_taught(outputs: list[dict[str, Any]], key: str) -> float:
    """Return the mean of a loss of pseudo-labels over the steps that had some; NaN where none had.

    Args:
        outputs: Reports of the steps.
        key: Of the loss, which is None where a step had no pseudo-labels.
    """
    losses = [o[key] for o in outputs if o[key] is not None]
    return float(np.mean(losses)) if losses else float("nan")


class MonitoredTrainer(ExtTrainer, Protocol):
    """A trainer with a monitor.

    Attributes:
        monitor: Collects what the steps report.
        missing_class_patience: Epochs after which a class that is missing from the pseudo-labels is warned of.
    """

    monitor: CPSMonitor
    missing_class_patience: int


def log_epoch(trainer: MonitoredTrainer, values: dict[str, Any]) -> None:
    """Write the state of CPS into the log, with a warning for classes that are being lost.

    Args:
        trainer: A trainer with a monitor.
        values: Curves of the epoch, as the monitor returns them.
    """
    names = class_names(trainer)
    first = trainer.monitor.first_class
    trainer.print_to_log_file(
        f"CPS lambda {values['cps_lambda']:.4f}, loss {values['cps_loss']:.4f}, supervised "
        f"{values['supervised_loss_1']:.4f} / {values['supervised_loss_2']:.4f}"
    )
    trainer.print_to_log_file("CPS agreement (Dice)", _listed(names[first:], values["cps_agreement"], "{:.3f}"))
    trainer.print_to_log_file(
        "CPS share in pseudo-labels", _listed(names[first:], values["pseudo_label_share"][first:], "{:.2e}")
    )
    missing = trainer.monitor.missing_classes(values)
    if missing:
        trainer.print_to_log_file(
            f"WARNING: {', '.join(names[c] for c in missing)} missing from the pseudo-labels for "
            f"{trainer.missing_class_patience} epochs or more, though the labelled patches have it: both networks "
            "agree on leaving it out. A longer ramp (ramp_fraction), a smaller cps_weight or more steps let the labels "
            "teach it first; see docs/cps.md."
        )


def _listed(names: list[str], values: list[float], form: str) -> str:
    return ", ".join(f"{name} {form.format(value)}" for name, value in zip(names, values, strict=False))


def pseudo_dice(outputs: list[dict[str, Any]], suffix: str, ddp: bool) -> list[float]:
    """Return the Dice per class over all validation patches, as nnU-Net computes it for its green line.

    Args:
        outputs: Reports of nnU-Net's validation steps.
        suffix: End of the keys of the network in question.
        ddp: Whether to sum over the processes.
    """
    sums = np.array([np.sum([o[f"{name}_hard{suffix}"] for o in outputs], 0) for name in ("tp", "fp", "fn")])
    if ddp:
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, sums)
        sums = np.sum(everyone, 0)
    tp, fp, fn = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        return [float(v) for v in 2 * tp / (2 * tp + fp + fn)]


def draw(trainer: ExtTrainer, panels: Sequence[Panel] = PANELS) -> None:
    """Draw the curves of CPS beside nnU-Net's progress.png, where that is."""
    if not os.path.isfile(os.path.join(trainer.output_folder, "progress.png")):
        return
    picture = curves.draw(trainer.logger, panels, class_names(trainer))
    curves.append_to_progress_png(trainer.output_folder, picture)
