"""Local files with weights of encoders: state dicts of timm and segmentation-models-pytorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.training.checkpoints import unfit_weights
from nnunet_ext.training.safe_load import load_checkpoint

_POSITIONS = "pos_embed"
_NESTED_IN = ("state_dict", "model")  # where files of trainings keep the weights
_COUNTERS = "num_batches_tracked"  # of batch norm, which old files lack


def read_encoder_weights(file: str | Path, setting: str) -> dict[str, Tensor]:
    """Read a state dict, ``.safetensors`` or what ``torch.save`` has written, without running code from it.

    Args:
        file: The file.
        setting: Attribute that names it, for messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no weights by name.
    """
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{setting} {path} is no file; name a state dict of the encoder, or set it to None")
    weights: Any
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{setting} {path} is no whole file of safetensors ({error}); copy it again") from error
    else:
        weights = load_checkpoint(path, required=())
    for key in _NESTED_IN:
        if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping):
            weights = weights[key]
    if not isinstance(weights, Mapping) or not any(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{setting} {path} holds no weights by name; name a state dict of the encoder")
    return {str(key): value for key, value in weights.items() if isinstance(value, Tensor)}


def load_encoder_weights(encoder: nn.Module, file: str | Path, setting: str, beside: int = 0) -> list[str]:
    """Load a file into an encoder, and say what was changed to make it fit.

    An encoder on torch's meta device takes none of it, but is compared with it.

    Args:
        encoder: Encoder of timm or segmentation-models-pytorch; ``grid_size`` of its embedding is that of its table of
            positions, where it has one.
        file: The file.
        setting: Attribute that names it, for messages.
        beside: Channels that the encoder takes after those of the image, of which the file knows nothing.

    Returns:
        A sentence for each change.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the weights are those of another encoder; names the first key.
    """
    weights, expected = read_encoder_weights(file, setting), encoder.state_dict()
    if not any(key in weights for key in expected):  # of a whole network
        weights = {key.removeprefix("encoder."): value for key, value in weights.items()}
    said = [*_fit_stem(weights, expected, beside), *_fit_positions(weights, expected, encoder)]
    wanted = {key: value for key, value in expected.items() if not (key.endswith(_COUNTERS) and key not in weights)}
    for key, given, shape in unfit_weights(wanted, weights, surplus=True):
        there = "is missing there" if given is None else f"has shape {given} there"
        raise ValueError(
            f"{setting} {file} does not fit the encoder: {key} {there} and {shape} here; name weights of this encoder, "
            "set its widths to those of the file, or set the attribute to None"
        )
    state = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    with torch.no_grad():
        for key in wanted:
            if not state[key].is_meta:
                state[key].copy_(weights[key])
    return said


def _fit_stem(weights: dict[str, Tensor], expected: Mapping[str, Tensor], beside: int) -> list[str]:
    """Fit the first convolution to other numbers of channels than three, in place."""
    key = next((key for key, value in expected.items() if value.ndim == 4), None)
    if key is None or key not in weights or weights[key].ndim != 4:
        return []
    given, channels = weights[key], expected[key].shape[1] - beside
    if given.shape[1] != 3 or (channels == 3 and not beside):
        return []
    said = []
    if channels == 1:
        weights[key] = given.sum(1, keepdim=True)
        said.append(f"{key}: the three channels of the file are summed for one")
    elif channels != 3:
        repeated = given.repeat(1, math.ceil(channels / 3), 1, 1)[:, :channels]
        weights[key] = repeated * (3 / channels)
        said.append(f"{key}: the three channels of the file are repeated for {channels}, times 3 / {channels}")
    if beside:
        own = expected[key][:, channels:]
        own = torch.zeros_like(own, device="cpu") if own.is_meta else own.cpu()
        weights[key] = torch.cat([weights[key].cpu(), own], 1)
        said.append(f"{key}: its last {beside} channels, which the file does not have, begin at random")
    return said


def _fit_positions(weights: dict[str, Tensor], expected: Mapping[str, Tensor], encoder: Any) -> list[str]:
    """Take the class token off the table of positions, and interpolate it to the patch, in place."""
    table = weights.get(_POSITIONS)
    if _POSITIONS not in expected or table is None or table.ndim != 3:
        return []
    from timm.layers import resample_abs_pos_embed

    said, count = [], table.shape[1]
    if math.isqrt(count) ** 2 != count and math.isqrt(count - 1) ** 2 == count - 1:
        table, count = table[:, 1:], count - 1
        said.append(f"{_POSITIONS}: without the class token, which this network does not have")
    grid, side = list(encoder.patch_embed.grid_size), math.isqrt(count)
    if side**2 == count and [side, side] != grid:
        table = resample_abs_pos_embed(table.float(), grid, [side, side], num_prefix_tokens=0)
        said.append(f"{_POSITIONS}: interpolated from {side} x {side} to {grid[0]} x {grid[1]}")
    weights[_POSITIONS] = table
    return said
