"""Pretrained weights that do not fit a network: said in a sentence, before nnU-Net prints a whole tensor."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from nnunet_ext.data.host import Trainer
from nnunet_ext.training.checkpoints import plain_module, read

_HEADS = ".seg_layers."  # which nnU-Net leaves out of pretrained weights
_REMEDY = "give a checkpoint of nnU-Net after -pretrained_weights"


def read_weights(filename: str | Path) -> dict[str, Tensor]:
    """Return the network's weights in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If it is no checkpoint.
    """
    if not Path(filename).is_file():
        raise FileNotFoundError(f"-pretrained_weights {filename} is no file; {_REMEDY}")
    weights: dict[str, Tensor] = read(filename, ("network_weights",), _REMEDY)["network_weights"]
    return weights


def refuse_unfit(trainer: Trainer, weights: dict[str, Tensor], filename: str | Path) -> None:
    """Raise ValueError if weights are not those of a trainer's network, its heads apart.

    Args:
        trainer: An initialised one.
        weights: As the network's state.
        filename: Where they come from, for the message.
    """
    own = {key: value for key, value in plain_module(trainer.network).state_dict().items() if _HEADS not in key}
    unfit = [key for key, value in own.items() if key not in weights or weights[key].shape != value.shape]
    if not unfit:
        return
    unfit = list({own[key].data_ptr(): key for key in reversed(unfit)}.values())[::-1]  # some weights have more names
    key = unfit[0]
    here = tuple(own[key].shape)
    there = f"has shape {tuple(weights[key].shape)} there" if key in weights else "is missing there"
    more = f", and {len(unfit) - 1} more weights do not fit" if len(unfit) > 1 else ""
    channels = key in weights and here[:1] + here[2:] == tuple(weights[key].shape[:1] + weights[key].shape[2:])
    need = (
        f"it was trained with {weights[key].shape[1]} input channel(s), this data has {here[1]}"
        if channels and len(unfit) == 1
        else "weights need the same network, so train with the plans they come from "
        "(nnUNetv2_move_plans_between_datasets copies plans)"
    )
    raise ValueError(
        f"-pretrained_weights {filename} does not fit {type(trainer).__name__}: {key} {there} and {here} here{more}; "
        f"{need}, or leave -pretrained_weights out"
    )
