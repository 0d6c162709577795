"""Networks on shapes alone: what a pass tells of them, and how they are built where tensors have no values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_Module = TypeVar("_Module", bound=nn.Module)


def built(make: Callable[[], _Module]) -> _Module:
    """Return what a function makes, also where tensors have no values, which constructors of timm's parts read.

    Args:
        make: Makes a module.
    """
    with unset_fake_temporarily() as fake:
        if fake is None:
            return make()
        with torch.device("meta"):
            module = make()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return module


def conv_feature_map_size(
    network: nn.Module, channels: int, size: Sequence[int], batch: tuple[Tensor, ...] | None = None
) -> int:
    """Return the values that a network's convolutions make of one image, found by a pass on shapes alone.

    Args:
        network: The network, which is not changed.
        channels: Channels that it is given.
        size: Size of the image.
        batch: What it is given, on torch's meta device, where that is not a batch of images.
    """
    made: list[int] = []
    given = (_images(channels, size),) if batch is None else batch

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        made.append(output.numel())

    hooks = [module.register_forward_hook(note) for module in network.modules() if isinstance(module, _CONVOLUTIONS)]
    try:
        with torch.no_grad():
            torch.func.functional_call(network, _shapes_of(network), given)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(made) // len(given[0])


def leave_out_of_training(network: nn.Module, channels: int, size: Sequence[int]) -> None:
    """Let parameters that have no influence on the output want no gradient, as DDP waits for those that do.

    Args:
        network: A network of one output.
        channels: Channels that it is given.
        size: Size of an image that it takes.
    """
    shapes = _shapes_of(network)
    parameters = [(parameter, shapes[name].requires_grad_()) for name, parameter in network.named_parameters()]
    output = torch.func.functional_call(network, shapes, (_images(channels, size),))
    found = torch.autograd.grad(output.sum(), [shape for _, shape in parameters], allow_unused=True)
    for (parameter, _), gradient in zip(parameters, found, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)


def _shapes_of(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers as tensors without values."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: torch.empty_like(tensor, device="meta", requires_grad=False) for name, tensor in state.items()}


def _images(channels: int, size: Sequence[int]) -> Tensor:
    """Return two images without values: batch norm needs more than one value a channel where a map has one voxel."""
    return torch.empty((2, channels, *size), device="meta")
