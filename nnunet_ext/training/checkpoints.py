"""Checkpoints: nnU-Net's own keys, ours beside them, written whole or not at all."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel


def plain_module(network: nn.Module) -> nn.Module:
    """Return the network without the wrappers of DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


def stock_state(trainer: Any) -> dict[str, Any]:
    """Return exactly the keys of nnU-Net's checkpoint; ``network_weights`` is one ordinary network."""
    return {
        "network_weights": plain_module(trainer.network).state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": None if trainer.grad_scaler is None else trainer.grad_scaler.state_dict(),
        "logging": trainer.logger.get_checkpoint(),
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.current_epoch + 1,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
    }


def save_atomically(checkpoint: dict[str, Any], filename: str) -> None:
    """Write to a temporary file in the same folder, then rename: a kill leaves the old checkpoint whole."""
    # One name a folder, whatever the checkpoint: the next save overwrites what a killed training left.
    temporary = os.path.join(os.path.dirname(filename), "unfinished_checkpoint.tmp")
    try:
        torch.save(checkpoint, temporary)
        os.replace(temporary, filename)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def load_for(trainer: Any, filename: str) -> dict[str, Any]:
    """Load a checkpoint that ``trainer`` wrote.

    Raises:
        RuntimeError: If another trainer wrote it, or the file cannot be read as a checkpoint.
    """
    try:
        checkpoint = torch.load(filename, map_location=trainer.device, weights_only=False)
        name = checkpoint["trainer_name"]
    except (KeyError, TypeError, EOFError, RuntimeError) as error:
        raise RuntimeError(
            f"{filename} is not a whole nnU-Net checkpoint ({error}); remove it to start over"
        ) from error
    expected = type(trainer).__name__
    if name != expected:
        raise RuntimeError(
            f"{filename} was written by {name}, but {expected} was asked to load it; use -tr {name}, or start "
            f"{expected} afresh (with -pretrained_weights to begin from those weights)"
        )
    return checkpoint
