"""What a converted network depends on, as a short text."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import nnunet_ext
from nnunet_ext.training.checkpoints import plain_module

# whose code a network or its conversion is
_PACKAGES = ("openvino", "torch", "nnunetv2", "dynamic_network_architectures", "timm", "segmentation_models_pytorch")


def identity(network: nn.Module, weights: Mapping[str, Any] | None, window: Sequence[int]) -> str:
    """Return 16 hexadecimal digits that are others for another network, other weights, shapes or versions.

    Args:
        network: Network, whose modules count with all plain values that they have as attributes.
        weights: State in place of the network's own.
        window: Channels and axes of a window, ``(C, *P)``.
    """
    network = plain_module(network)
    digest = hashlib.sha256()
    for part in (*_versions(), f"window {list(window)}", repr(network), *_settings(network)):
        digest.update(part.encode() + b"\n")
    # buffers that no state holds, such as tables of positions, besides those that one does
    state = dict(network.named_buffers()) | dict(network.state_dict() if weights is None else weights)
    for name, value in sorted(state.items()):
        if isinstance(value, torch.Tensor):
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}\n".encode())
    return digest.hexdigest()[:16]


def _versions() -> Iterator[str]:
    yield f"nnunet_ext {nnunet_ext.__version__}"
    for package in _PACKAGES:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package} none"


def _settings(network: nn.Module) -> Iterator[str]:
    for name, module in network.named_modules():
        kind = type(module)
        # names of torch's own begin with an underscore, and some come and go
        own = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
        values = {key: value for key, value in own.items() if _is_plain(value)}
        yield f"{name} {kind.__module__}.{kind.__qualname__} {sorted(values.items())}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str))
