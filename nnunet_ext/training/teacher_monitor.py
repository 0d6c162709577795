"""What a training with a mean teacher shows of itself every epoch: curves, log lines, and warnings of lost classes."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
import torch.distributed as dist

from nnunet_ext.training import curves
from nnunet_ext.training.cps_monitor import CPSMonitor, mean_of_taught
from nnunet_ext.training.cps_views_monitor import KEPT
from nnunet_ext.training.curves import Panel
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.semi_supervised import class_names

KEYS = (
    "unlabeled_weight",
    "unlabeled_loss",
    "supervised_loss",
    "teacher_agreement",
    "pseudo_label_share",
    "labelled_share",
    "kept_share",
    "nothing_kept",
    "pseudo_dice_teacher",
    "pseudo_dice_student",
)
PANELS = (
    Panel(
        "losses",
        (
            ("supervised_loss", "supervised"),
            ("unlabeled_loss", "unlabelled (before its weight)"),
            ("unlabeled_weight", "weight of the unlabelled loss"),
        ),
    ),
    Panel(
        "Dice of the student on strong views with the teacher on weak ones",
        (("teacher_agreement", "agreement"),),
        mean=True,
    ),
    Panel(
        "share of each class in the pseudo-labels, and in the labelled patches (dashed)",
        (("pseudo_label_share", "pseudo"), ("labelled_share", "labelled")),
        log_scale=True,
        lowest=4,
        called="smallest",
    ),
    KEPT,
    Panel(
        "pseudo Dice on validation patches, student dashed",
        (("pseudo_dice_teacher", "teacher"), ("pseudo_dice_student", "student")),
        lowest=6,
        called="worst",
        mean=True,
    ),
)


class TeacherMonitor(CPSMonitor):
    """Collects the reports of the steps and turns them into curves once an epoch.

    What is counted of pseudo-labels is counted where patches are pseudo-labelled: nowhere else in mixed patches.
    """

    def epoch(self, outputs: list[dict[str, Any]], weight: float, ddp: bool) -> dict[str, Any]:
        """Return the curves of one training epoch; NaN where nothing was labelled by the teacher.

        Args:
            outputs: Reports of the steps (:class:`~nnunet_ext.training.mean_teacher_step.MeanTeacherStep`).
            weight: Weight of the loss of pseudo-labels in this epoch.
            ddp: Whether to average over the processes.
        """
        losses = np.array([np.mean([o["loss"] for o in outputs]), mean_of_taught(outputs, "unlabeled_loss")])
        sums = [np.sum([o[key] for o in outputs], 0) for key in ("counts", "kept_counts", "labelled_counts")]
        sums.append(np.sum([o.get("nothing_kept", 0) for o in outputs]))
        if ddp:
            everyone: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, (losses, *sums))
            losses = np.mean([e[0] for e in everyone], 0)
            sums = [np.sum([e[i] for e in everyone], 0) for i in range(1, 5)]
        (teacher, student, both), kept, labelled, nothing = sums
        size = teacher + student
        with np.errstate(invalid="ignore", divide="ignore"):
            agreement = np.where(size > 0, 2 * both / size, np.nan)
            kept_share = np.where(teacher > 0, kept / teacher, np.nan)
        share = teacher / max(teacher.sum(), 1.0) if weight else np.full(len(teacher), np.nan)
        return {
            "unlabeled_weight": float(weight),
            "supervised_loss": float(losses[0]),
            "unlabeled_loss": float(losses[1]) if weight else float("nan"),
            "teacher_agreement": [float(v) for v in agreement[self.first_class :]],
            "pseudo_label_share": [float(v) for v in share],
            "labelled_share": [float(v) for v in labelled / max(labelled.sum(), 1.0)],
            "kept_share": [float(v) for v in kept_share],
            "nothing_kept": float(nothing) if weight else float("nan"),
        }


class TaughtTrainer(ExtTrainer, Protocol):
    """A trainer with a teacher's monitor.

    Attributes:
        monitor: Collects what the steps report.
        missing_class_patience: Epochs after which a class that is missing from the pseudo-labels is warned of.
    """

    monitor: TeacherMonitor
    missing_class_patience: int


def log_epoch(trainer: TaughtTrainer, values: dict[str, Any]) -> None:
    """Write the state of the teaching into the log, with a warning for classes that are being lost.

    Args:
        trainer: A trainer with a teacher's monitor.
        values: Curves of the epoch, as the monitor returns them.
    """
    if not values["unlabeled_weight"]:
        trainer.print_to_log_file(f"supervised loss {values['supervised_loss']:.4f}; no pseudo-labels in this epoch")
        return
    names, first = class_names(trainer), trainer.monitor.first_class
    trainer.print_to_log_file(
        f"supervised loss {values['supervised_loss']:.4f}, unlabelled {values['unlabeled_loss']:.4f} with weight "
        f"{values['unlabeled_weight']:.4f}; steps in which no pseudo-label counted: {values['nothing_kept']:.0f}"
    )
    for title, key in (("agreement with the teacher", "teacher_agreement"), ("kept share", "kept_share")):
        shown = values[key] if key == "teacher_agreement" else values[key][first:]
        trainer.print_to_log_file(
            f"{title}:", ", ".join(f"{name} {value:.3f}" for name, value in zip(names[first:], shown, strict=True))
        )
    missing = trainer.monitor.missing_classes(values)
    if missing:
        trainer.print_to_log_file(
            f"WARNING: {', '.join(names[c] for c in missing)} missing from the pseudo-labels for "
            f"{trainer.missing_class_patience} epochs or more, though the labelled patches have it. A longer ramp "
            "(ramp_fraction), a smaller unlabeled_weight or more steps let the labels teach it first; see "
            "docs/mean_teacher.md."
        )


def draw(trainer: ExtTrainer) -> None:
    """Draw the curves beside nnU-Net's progress.png, where that is."""
    if os.path.isfile(os.path.join(trainer.output_folder, "progress.png")):
        picture = curves.draw(trainer.logger, PANELS, class_names(trainer))
        curves.append_to_progress_png(trainer.output_folder, picture)
