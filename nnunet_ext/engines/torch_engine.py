"""Networks run by torch: as they are, under autocast, or compiled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from nnunet_ext.engines.engine import BFLOAT16, FLOAT16, FLOAT32, ConversionError
from nnunet_ext.networks.reference_input import ReferenceInput
from nnunet_ext.training.checkpoints import plain_module

_TYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class TorchEngine:
    """Runs a network in torch.

    In float32 on a CPU that is ``network(batch)``, bit for bit; in float16 on a GPU it is what nnU-Net does there. A
    compiled network is a copy, and the one that was given stays as it is.

    Args:
        network: Network of one output. Where it is not compiled, it is not copied: new weights of it count at once.
        device: Where it runs.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        compiled: Whether torch compiles it. On a GPU it is then run in that precision as a whole, channels last.
    """

    def __init__(self, network: nn.Module, device: torch.device, precision: str, compiled: bool = False) -> None:
        self.device, self.precision = device, precision
        self.compiled = _Compiled(network, device, precision) if compiled else None
        self.network = network if self.compiled is None else self.compiled.network

    def load(self, weights: Mapping[str, Any]) -> None:
        """Take other weights of the same architecture; nothing is compiled again.

        Args:
            weights: State of a network.
        """
        plain_module(self.network).load_state_dict(weights)

    def run(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the logits of each batch, in order.

        Args:
            batches: Windows ``(N, C, *P)`` on the engine's device.

        Yields:
            Logits ``(N, K, *P)``.

        Raises:
            ConversionError: If the network has to be compiled, and cannot be.
        """
        for batch in batches:
            if self.compiled is not None:
                yield self.compiled(batch)
            else:
                # entered for each batch: whoever takes the logits runs between two of them
                with torch.no_grad(), autocast_of(self.precision, self.device):
                    logits = self.network(batch)
                yield logits


def autocast_of(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context in which a network computes in a precision.

    Args:
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: Where it runs.
    """
    if precision != FLOAT32:
        return torch.autocast(device.type, dtype=_TYPES[precision])
    # somebody else's autocast may be on around us; where there is none, nothing is touched
    return torch.autocast(device.type, enabled=False) if device.type == "cuda" else nullcontext()


class _Compiled:
    """A copy of a network, compiled for each number of windows that it is called with."""

    def __init__(self, network: nn.Module, device: torch.device, precision: str) -> None:
        self.device, self.precision, self.dtype = device, precision, torch.float32
        # tensors that are made in inference mode have other code than those outside it, and would be compiled again
        with torch.inference_mode(False):
            self.network = deepcopy(plain_module(network)).to(device).eval().requires_grad_(False)
            self.is_cast = device.type == "cuda" and not _needs_float32_input(network)
            if self.is_cast:
                self.dtype = _TYPES[precision]
                self.network = self.network.to(self.dtype)
                for dimensions, layout in _CHANNELS_LAST.items():
                    self._lay_out(dimensions, layout)
        self.function = torch.compile(self.network, dynamic=False)
        self.sizes: set[int] = set()  # numbers of windows that there is code for

    def _lay_out(self, dimensions: int, layout: torch.memory_format) -> None:
        for parameter in self.network.parameters():
            if parameter.ndim == dimensions:
                parameter.data = parameter.data.contiguous(memory_format=layout)

    def __call__(self, batch: Tensor) -> Tensor:
        count = len(batch)
        larger = [size for size in self.sizes if size >= count]
        size = min(larger, default=count)  # compiling takes longer than a few windows of zeros
        with torch.inference_mode(False), torch.no_grad():
            windows = self._copy(batch, size)
            context = nullcontext() if self.is_cast else autocast_of(self.precision, self.device)
            with context, autocast_off(self.device, self.is_cast):
                logits = self.function(windows) if larger else self._compile(windows)
        self.sizes.add(size)
        return cast(Tensor, logits[:count])

    def _copy(self, batch: Tensor, size: int) -> Tensor:
        """Return a batch in the type and layout of the network, filled up with zeros."""
        layout = _CHANNELS_LAST.get(batch.ndim, torch.contiguous_format) if self.is_cast else torch.contiguous_format
        windows = torch.zeros((size, *batch.shape[1:]), dtype=self.dtype, device=self.device).contiguous(
            memory_format=layout
        )
        windows[: len(batch)].copy_(batch)
        return windows

    def _compile(self, windows: Tensor) -> Tensor:
        try:
            return cast(Tensor, self.function(windows))
        except torch.OutOfMemoryError:
            raise  # of the device: no fault of the compiler
        except Exception as error:  # compilers raise anything
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            reason = lines[0] if lines else type(error).__name__
            raise ConversionError(f"torch cannot compile the network ({reason:.200})") from error


def autocast_off(device: torch.device, needed: bool) -> AbstractContextManager:
    """Return the context without autocast, where one is needed."""
    return torch.autocast(device.type, enabled=False) if needed else nullcontext()


def _needs_float32_input(network: nn.Module) -> bool:
    """Whether a network is given values, such as Hounsfield units, that half precision has no room for."""
    return any(isinstance(module, ReferenceInput) for module in network.modules())
