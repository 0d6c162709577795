"""First stages of a cascade: whose predictions the next stage finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunet_ext.data.host import Trainer

SECOND = "nnUNetTrainer"  # trains the next stage where the first stage's trainer cannot


def log_where_to_copy(trainer: Trainer) -> None:
    """Log what to do for a next stage that the trainer cannot train: nnU-Net looks under that stage's own trainer."""
    first = Path(trainer.output_folder_base)
    second = first.with_name(first.name.replace(type(trainer).__name__, SECOND, 1))
    for name in trainer.configuration_manager.next_stage_names or ():
        source, target = (folder / "predicted_next_stage" / name for folder in (first, second))
        trainer.print_to_log_file(
            f"{type(trainer).__name__} cannot train the next stage {name}, and other trainers look for predictions "
            f"under their own names. To train it with -tr {SECOND}, train all folds of this stage first, then copy "
            f"{source} to {target}"
        )


@contextmanager
def next_stages(trainer: Trainer, kept: Sequence[str]) -> Iterator[None]:
    """Let nnU-Net's final validation predict for no other next stages than these inside the block."""
    configuration = trainer.configuration_manager.configuration
    before = configuration.pop("next_stage", None)
    if kept:
        configuration["next_stage"] = list(kept)
    try:
        yield
    finally:
        if before is not None:
            configuration["next_stage"] = before


def preprocessed_next_stages(trainer: Trainer) -> list[str]:
    """Return the next stages whose cases are preprocessed; the log names the others, where nnU-Net's validation ends.

    Without the cases nobody knows the size that the predictions should have.
    """
    preprocessed = []
    for name in trainer.configuration_manager.next_stage_names or ():
        identifier = trainer.plans_manager.get_configuration(name).data_identifier
        folder = Path(trainer.preprocessed_dataset_folder_base) / identifier
        if folder.is_dir() and any(folder.iterdir()):
            preprocessed.append(name)
        else:
            trainer.print_to_log_file(
                f"No predictions for the next stage {name}: {folder} has no preprocessed cases. For that stage "
                f"run nnUNetv2_preprocess -c {name}, then this training with --val"
            )
    return preprocessed
