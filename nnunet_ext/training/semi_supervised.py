"""What trainers that learn from unlabelled cases have in common: what they refuse, and the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from nnunet_ext.data.host import Trainer
from nnunet_ext.data.splits import hidden_cases_of_fold
from nnunet_ext.training.checkpoints import TEACHING
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.schedules import check_schedule
from nnunet_ext.training.seeds import derived_seed


class RampTrainer(Trainer, Protocol):
    """A trainer whose loss of pseudo-labels is weighted by a ramp.

    Attributes:
        lr_schedule: Course of the learning rate, ``"poly"`` or ``"plateau"``.
        warmup_fraction: Share of the epochs in which the weight is 0.
        ramp_fraction: Share of the epochs after which the weight is reached.
        ramp_down_fraction: Share of the epochs, the last ones, in which the weight falls again.
        ramp_down_end: Share of the weight that the last epoch has.
    """

    lr_schedule: str
    warmup_fraction: float
    ramp_fraction: float
    ramp_down_fraction: float
    ramp_down_end: float


def refuse_unsupported(trainer: RampTrainer) -> None:
    """Raise where no training with unlabelled cases can do what is asked.

    Raises:
        NotImplementedError: For the second stage of the cascade.
        ValueError: For settings that make no sense, or a contradictory split.
    """
    refuse_cascade(trainer)
    if trainer.lr_schedule not in ("poly", "plateau"):
        raise ValueError(f"lr_schedule must be 'poly' or 'plateau', got {trainer.lr_schedule!r}")
    check_schedule(
        trainer.num_epochs,
        warmup_fraction=trainer.warmup_fraction,
        ramp_fraction=trainer.ramp_fraction,
        ramp_down_fraction=trainer.ramp_down_fraction,
        ramp_down_end=trainer.ramp_down_end,
    )


def refuse_cascade(trainer: Trainer) -> None:
    """Raise where unlabelled cases cannot be used.

    Raises:
        NotImplementedError: For the second stage of the cascade.
        ValueError: For a contradictory split.
    """
    if trainer.is_cascaded:
        raise NotImplementedError(
            f"{type(trainer).__name__} cannot train {trainer.configuration_name}: unlabelled cases have no prediction "
            "of the cascade's previous stage. Train 3d_fullres instead."
        )
    hidden_cases_of_fold(trainer.preprocessed_dataset_folder_base, trainer.fold)


def draw_apart(trainer: ExtTrainer, moves: Mapping[int, Any]) -> None:
    """Let other processes than the first go on with draws of their own: the checkpoint is that of the first.

    Args:
        trainer: A trainer that has taken in a checkpoint.
        moves: What draws, by the purpose of its seeds; None for what is not there.
    """
    for purpose, move in moves.items():
        if move is not None and trainer.local_rank > 0:
            move.reseed(derived_seed(trainer.seed, purpose, trainer.local_rank, trainer.current_epoch))


def teaching_of(trainer: Trainer, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds of teacher and student.

    Raises:
        RuntimeError: If it holds nothing of them.
    """
    if TEACHING not in checkpoint:
        raise RuntimeError(
            f"the checkpoint has no student (key {TEACHING!r}), which {type(trainer).__name__} needs to go on; it may "
            "be an exported model. Use it with -pretrained_weights instead of --c"
        )
    saved: dict[str, Any] = checkpoint[TEACHING]
    return saved


def class_names(trainer: Trainer) -> list[str]:
    """Return the names of the network's outputs."""
    names = {str(value): key for key, value in trainer.dataset_json["labels"].items()}
    if trainer.label_manager.has_regions:
        regions = trainer.label_manager.foreground_regions
        return [names.get(str(list(r) if isinstance(r, tuple) else r), str(r)) for r in regions]
    return [names.get(str(label), str(label)) for label in trainer.label_manager.all_labels]


def first_class(trainer: Trainer) -> int:
    """Return the first output whose loss matters: 1 where output 0 is the background, 0 for regions."""
    return 0 if trainer.label_manager.has_regions else 1
