"""What CPS with two views shows beside 3D-CPS's curves: how much of each class is kept, and steps that kept nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.distributed as dist

from nnunet_ext.training import cps_monitor
from nnunet_ext.training.cps_monitor import CPSMonitor
from nnunet_ext.training.curves import Panel
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.semi_supervised import class_names

KEPT = Panel(
    "kept share of the pseudo-labels of each class",
    (("kept_share", "kept"),),
    lowest=4,
    called="least kept",
    mean=True,
)
KEYS = (*cps_monitor.KEYS, "kept_share", "nothing_kept")
PANELS = (*cps_monitor.PANELS[:-1], KEPT, cps_monitor.PANELS[-1])


class CPSViewsMonitor(CPSMonitor):
    """Collects what the steps report of labels that count, too.

    Attributes:
        kept: Share of the labels of each class that counted in the last epoch, ``(2, K)``: of network 1 and network 2;
            NaN where there were none.
    """

    kept: np.ndarray

    def epoch(self, outputs: list[dict[str, Any]], weight: float, ddp: bool) -> dict[str, Any]:
        """Return the curves of one training epoch.

        Args:
            outputs: Reports of the steps (:class:`~nnunet_ext.training.cps_views_step.CPSViewsStep`).
            weight: Weight of the loss of pseudo-labels in this epoch; without it nothing is kept or not.
            ddp: Whether to average over the processes.
        """
        values = super().epoch(outputs, weight, ddp)
        labels = np.sum([o["counts"][:2] for o in outputs], 0)
        kept = np.sum([o.get("kept_counts", np.zeros_like(labels)) for o in outputs], 0)
        nothing = float(sum(np.any(o.get("nothing_kept", 0)) for o in outputs))
        if ddp:
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, (labels, kept, nothing))
            labels, kept, nothing = (np.sum([e[i] for e in everyone], 0) for i in (0, 1, 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            self.kept = np.where(labels > 0, kept / labels, np.nan)
            share = np.where(labels.sum(0) > 0, kept.sum(0) / labels.sum(0), np.nan)
        return values | {
            "kept_share": [float(v) for v in share],
            "nothing_kept": float(nothing) if weight else float("nan"),
        }

    def missing_classes(self, values: dict[str, Any]) -> list[int]:
        """Return the classes that have been missing for long; while labels alone teach, none is."""
        return super().missing_classes(values) if values["cps_lambda"] else []


def log_kept(trainer: ExtTrainer, monitor: CPSViewsMonitor, values: dict[str, Any], chosen: bool) -> None:
    """Write into the log how much of the labels of each network counted.

    Args:
        trainer: Trainer with the log.
        monitor: What collects the reports of its steps.
        values: Curves of the epoch, as the monitor returns them.
        chosen: Whether labels may not count at all, beside those in padding.
    """
    names = class_names(trainer)
    for number, shares in enumerate(monitor.kept if chosen else (), 1):
        listed = ", ".join(f"{name} {share:.3f}" for name, share in zip(names, shares, strict=True))
        trainer.print_to_log_file(f"CPS share of the labels of network {number} that is kept", listed)
    if not np.isnan(values["nothing_kept"]):
        trainer.print_to_log_file(f"CPS steps in which a network learnt no pseudo-label: {values['nothing_kept']:.0f}")
