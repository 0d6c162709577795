"""What a CPS training shows of itself every epoch, and the warning when a class is being lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.distributed as dist

from nnunet_ext.training.agreement import shares_and_agreement
from nnunet_ext.training.curves import Panel

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
        first_class: 1 where output 0 is the background, which cannot be lost; 0 for regions.
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
            ddp: Average over the processes.
        """
        losses = np.array([[o["loss"], o["loss_2"], o["cps"]] for o in outputs]).mean(0)
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
