"""Finds out where classes lie in unlabelled cases, with the network that labels them, while it trains."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import nn
from tqdm import tqdm

from nnunet_ext.data.class_locations import save_class_locations
from nnunet_ext.data.training_cases import reading_problem, unlabelled_command
from nnunet_ext.data.unlabeled_store import UnlabeledDataset
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.seeds import LOCATIONS, derived_seed

FOLDER = "unlabeled_class_locations"  # in the folder of the fold


def cases_of_turn(names: Sequence[str], turn: int, number: int, seed: int) -> list[str]:
    """Return the cases that are looked at in a turn: one after the other in a shuffled order, so that all have theirs.

    Args:
        names: All cases.
        turn: Number of the turn, from 0.
        number: Cases of a turn.
        seed: Of the order.
    """
    order = np.random.default_rng(seed).permutation(sorted(names)).tolist()
    number = min(number, len(order))
    return [order[(turn * number + index) % len(order)] for index in range(number)]


def look_for_classes(trainer: ExtTrainer, network: nn.Module, dataset: UnlabeledDataset, names: Sequence[str]) -> None:
    """Predict unlabelled cases and keep where each class lies; processes share the cases, and wait after each round.

    Args:
        trainer: A trainer of ours that is training.
        network: Network that labels, without wrappers.
        dataset: Unlabelled cases, with the folder that the places are kept in.
        names: Cases to look at.

    Raises:
        RuntimeError: If a case cannot be read; names it and the command that makes it again.
    """
    processes = dist.get_world_size() if trainer.is_ddp else 1
    training = network.training
    network.eval()
    predictor = _predictor(trainer, network)
    rounds = range(0, len(names), processes)
    hidden = trainer.local_rank > 0
    for first in tqdm(rounds, desc="where classes lie in unlabelled cases", leave=False, disable=hidden):
        number = first + (dist.get_rank() if trainer.is_ddp else 0)
        if number < len(names):
            _look_at(trainer, predictor, dataset, names[number])
        if trainer.is_ddp:  # a wait of one case, not of all: processes that wait for long are given up
            dist.barrier()
    network.train(training)


def _look_at(trainer: ExtTrainer, predictor: nnUNetPredictor, dataset: UnlabeledDataset, name: str) -> None:
    labels = trainer.label_manager
    classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
    try:
        data, valid = (np.asarray(array[:]) for array in dataset.load_case(name)[:2])
    except Exception as error:
        problem = reading_problem(dataset, name) or str(error)
        raise RuntimeError(
            f"the preprocessed case {name} in {dataset.source_folder} cannot be read ({problem}); remove {name}.json "
            f"there and run: {unlabelled_command(trainer)}"
        ) from error
    with torch.inference_mode():
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data))
    seen: Any = labels.convert_logits_to_segmentation(logits.cpu())
    seen = np.where(valid[0] > 0, np.asarray(seen), 0)  # nothing is learnt elsewhere
    seed = derived_seed(trainer.seed, LOCATIONS, trainer.current_epoch)
    if dataset.locations is not None:
        save_class_locations(dataset.locations, name, seen, classes, seed)


class _FirstOutput(nn.Module):
    """The output of a network at full resolution, whether it is supervised deeply or not."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        output = self.network(image)
        first: torch.Tensor = output[0] if isinstance(output, (list, tuple)) else output
        return first


def _predictor(trainer: ExtTrainer, network: nn.Module) -> nnUNetPredictor:
    """Return nnU-Net's predictor with a network, without mirroring."""
    with contextlib.redirect_stdout(io.StringIO()):  # it says on CPUs what it cannot do there, every time
        predictor = nnUNetPredictor(use_mirroring=False, device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        _FirstOutput(network),
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    return predictor
