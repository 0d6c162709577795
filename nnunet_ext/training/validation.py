"""The final validation of further networks beside nnU-Net's own, in folders of their own, and their comparison."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed as dist
from torch import nn

from nnunet_ext.files import read_json
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.next_stage import next_stages


def validate_networks(trainer: ExtTrainer, networks: Mapping[str, nn.Module], validate: Callable[[bool], None]) -> None:
    """Run nnU-Net's final validation for further networks.

    Args:
        trainer: A trainer of ours, once it has trained.
        networks: Further networks by name; their results go to ``validation_NAME``.
        validate: nnU-Net's validation of the trainer's network, which takes whether probabilities are saved.
    """
    folder = trainer.output_folder
    try:
        for name, network in networks.items():
            trainer.print_to_log_file(f"Validating {name}")
            trainer.output_folder = os.path.join(folder, f"validation_{name}")
            with trainer.using_network(network), next_stages(trainer, ()):  # a next stage follows the first network
                validate(False)
            _move_up(Path(trainer.output_folder), trainer.local_rank)
    finally:
        trainer.output_folder = folder
    if trainer.is_ddp:
        dist.barrier()


def _move_up(folder: Path, rank: int) -> None:
    """nnU-Net writes into a subfolder ``validation``; its content belongs one level up."""
    if rank != 0:
        return
    for item in (folder / "validation").iterdir():
        target = folder / item.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(item, target)
    (folder / "validation").rmdir()


def compare_validations(trainer: ExtTrainer, titles: Mapping[str, str]) -> None:
    """Log the mean Dice of the final validations of several networks.

    Args:
        trainer: A trainer of ours, once all of them are validated.
        titles: Name of a network, ``""`` for the trainer's own -> what it is called in the log.
    """
    means = {}
    for name, title in titles.items():
        suffix = f"_{name}" if name else ""
        file = Path(trainer.output_folder) / f"validation{suffix}" / "summary.json"
        means[title] = read_json(file, "validate again with --val")["foreground_mean"]["Dice"]
        trainer.logger.log_summary(f"final_val/foreground_dice{suffix}", means[title])
    trainer.print_to_log_file(
        "Mean validation Dice: " + ", ".join(f"{title} {dice:.4f}" for title, dice in means.items())
    )
