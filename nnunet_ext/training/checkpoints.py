"""Checkpoints: nnU-Net's own keys, ours beside them, written whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext import files
from nnunet_ext.data.host import Trainer
from nnunet_ext.plugin import compat

SECOND_NETWORK = "nnunet_ext_cps"  # key of what a checkpoint holds of a second network
TEACHING = "nnunet_ext_teaching"  # of a student and what else belongs to the teacher, which is the network
_KEYS = ("trainer_name", "network_weights", "init_args")
_TRAINING_KEYS = ("optimizer_state", "logging", compat.BEST_EMA, "current_epoch")
_OLD_TEMPORARIES = ("unfinished_checkpoint.tmp", ".progress.png")  # fixed names that were used once


def plain_module(network: nn.Module) -> nn.Module:
    """Return the network without the wrappers of DDP and torch.compile."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


class UnfitWeight(NamedTuple):
    """A weight that is not as a network has it.

    Attributes:
        key: Name of the weight.
        given: Shape that was given, None where it is missing.
        expected: Shape in the network, None where the network has no such weight.
    """

    key: str
    given: tuple[int, ...] | None
    expected: tuple[int, ...] | None


def unfit_weights(
    expected: Mapping[str, Any], weights: Mapping[str, Any], surplus: bool = False
) -> Iterator[UnfitWeight]:
    """Find the weights that do not fit a network, in the network's order, then those that it does not have.

    Args:
        expected: State of the network.
        weights: Weights by name.
        surplus: Whether there may be more weights than the network has.
    """
    for key in dict.fromkeys([*expected, *([] if surplus else weights)]):
        shapes = [tuple(getattr(state[key], "shape", ())) if key in state else None for state in (weights, expected)]
        if shapes[0] != shapes[1]:
            yield UnfitWeight(key, *shapes)


def stock_state(trainer: Trainer) -> dict[str, Any]:
    """Return exactly the keys of nnU-Net's checkpoint; ``network_weights`` is one ordinary network."""
    return {
        "network_weights": plain_module(trainer.network).state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": None if trainer.grad_scaler is None else trainer.grad_scaler.state_dict(),
        "logging": trainer.logger.get_checkpoint(),
        compat.BEST_EMA: compat.best_ema(trainer),
        "current_epoch": trainer.current_epoch + 1,
        "init_args": trainer.my_init_kwargs,
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": trainer.inference_allowed_mirroring_axes,
    }


def save_atomically(checkpoint: dict[str, Any], filename: str) -> None:
    """Write to a temporary file in the same folder, then rename: a kill leaves the old checkpoint whole."""
    with files.whole(filename) as temporary:
        torch.save(checkpoint, temporary)


def sweep(folder: str | Path) -> None:
    """Remove what killed trainings left half-written in a fold's folder."""
    files.sweep(folder)
    for name in _OLD_TEMPORARIES:
        files.remove(Path(folder) / name)


def read(filename: str | Path, keys: Sequence[str] = _KEYS, remedy: str = "remove it to start over") -> dict[str, Any]:
    """Read a checkpoint into host memory.

    Args:
        filename: File of the checkpoint.
        keys: Keys that the checkpoint must have.
        remedy: What to do where the file is damaged, for the message.

    Raises:
        FileNotFoundError: If there is none.
        RuntimeError: If the file is not a whole checkpoint of nnU-Net (a damaged one makes torch raise all kinds), or
            names what is not installed here.
    """
    if not Path(filename).is_file():
        raise FileNotFoundError(f"{filename} is no file; train first, or name another checkpoint")
    try:
        checkpoint = torch.load(filename, map_location="cpu", weights_only=False)
    except MemoryError:
        raise
    except OSError as error:  # a file server that does not answer says nothing of the file
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _not_whole(filename, str(error), remedy) from error
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"{filename} cannot be read here ({error}); use the package versions that it was written with"
        ) from error
    except Exception as error:
        raise _not_whole(filename, str(error), remedy) from error
    if not isinstance(checkpoint, dict):
        raise _not_whole(filename, f"it holds a {type(checkpoint).__name__}", remedy)
    missing = [key for key in keys if key not in checkpoint]
    if missing:
        raise _not_whole(filename, f"it lacks {', '.join(missing)}", remedy)
    return checkpoint


def _not_whole(filename: str | Path, reason: str, remedy: str) -> RuntimeError:
    line = next(iter(reason.strip().splitlines()), "")
    why = f" ({line:.200})" if line else ""
    return RuntimeError(f"{filename} is not a whole nnU-Net checkpoint{why}; {remedy}")


def load_for(trainer: Trainer, filename: str) -> dict[str, Any]:
    """Load a checkpoint that ``trainer`` wrote.

    Raises:
        FileNotFoundError: If there is none.
        RuntimeError: If another trainer wrote it, it holds weights alone, or it cannot be read as a checkpoint.
    """
    checkpoint = read(filename)
    name, expected = checkpoint["trainer_name"], type(trainer).__name__
    if name != expected:
        raise RuntimeError(
            f"{filename} was written by {name}, but {expected} was asked to load it; use -tr {name}, or start "
            f"{expected} afresh (with -pretrained_weights to begin from those weights)"
        )
    if any(key not in checkpoint for key in _TRAINING_KEYS):
        raise RuntimeError(
            f"{filename} holds weights alone, as an exported or pruned model does, so that no training can go on from "
            "it; use it with -pretrained_weights instead of --c"
        )
    return checkpoint
