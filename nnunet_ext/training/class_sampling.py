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
from nnunet_ext.data.unlabeled_store import UnlabeledDataset
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.seeds import derived_seed

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
    """Predict unlabelled cases and keep where each class lies; the first process does so, the others wait.

    Args:
        trainer: A trainer of ours that is training.
        network: Network that labels, without wrappers.
        dataset: Unlabelled cases, with the folder that the places are kept in.
        names: Cases to look at.
    """
    if trainer.local_rank == 0 and dataset.locations is not None:
        labels = trainer.label_manager
        classes = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        training = network.training
        network.eval()
        predictor = _predictor(trainer, network)
        seed = derived_seed(trainer.seed, 300, trainer.current_epoch)
        for name in tqdm(names, desc="where classes lie in unlabelled cases", leave=False):
            data = torch.from_numpy(np.asarray(dataset.load_case(name)[0][:]))
            with torch.inference_mode():
                logits = predictor.predict_sliding_window_return_logits(data)
            seen: Any = labels.convert_logits_to_segmentation(logits.cpu())
            save_class_locations(dataset.locations, name, np.asarray(seen), classes, seed)
        network.train(training)
    if trainer.is_ddp:
        dist.barrier()


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
