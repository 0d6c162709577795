"""Pretrained weights that do not fit a network: said in a sentence, before nnU-Net prints a whole tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from nnunet_ext.data.host import Trainer
from nnunet_ext.training.checkpoints import plain_module, read, unfit_weights

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
        trainer: A trainer whose network is built.
        weights: Weights by name.
        filename: File with the weights, for the message.
    """
    state = _body(trainer.network)
    unfit = list(unfit_weights(state, weights, surplus=True))
    if not unfit:
        return
    # some weights have more names, of which the first is told
    distinct = list({state[weight.key].data_ptr(): weight for weight in reversed(unfit)}.values())[::-1]
    key, given, expected = distinct[0]
    there = f"has shape {given} there" if given is not None else "is missing there"
    more = f", and {len(distinct) - 1} more weights do not fit" if len(distinct) > 1 else ""
    need = (
        "weights need the same network, so train with the plans they come from "
        "(nnUNetv2_move_plans_between_datasets copies plans)"
    )
    if len(distinct) == 1 and given and expected and _other_channels(given, expected):
        need = f"it was trained with {given[1]} input channel(s), this data has {expected[1]}"
    raise ValueError(
        f"-pretrained_weights {filename} does not fit {type(trainer).__name__}: {key} {there} and {expected} "
        f"here{more}; {need}, or leave -pretrained_weights out"
    )


def fits(network: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are those of a network, its heads apart."""
    return next(unfit_weights(_body(network), weights, surplus=True), None) is None


def _body(network: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in plain_module(network).state_dict().items() if _HEADS not in key}


def _other_channels(given: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether two shapes of a weight, which differ, do so in their input channels alone."""
    return len(given) == len(expected) and given[:1] + given[2:] == expected[:1] + expected[2:]
