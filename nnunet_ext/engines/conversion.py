"""Networks in OpenVINO's form."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.engines.engine import ConversionError
from nnunet_ext.engines.runtime import openvino
from nnunet_ext.training.checkpoints import plain_module

PACKAGE = "openvino"
_NO_RULE = re.compile(r"No conversion rule found for operations?: ([^\n]+)")
_FAILED = re.compile(r"Conversion is failed for: ([^\n]+)")


def copy_for_cpu(network: nn.Module, weights: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a copy of a network that is ready to predict on the CPU.

    Args:
        network: Network; it may be compiled, and is left as it is.
        weights: State that the copy has instead of the network's.
    """
    with torch.inference_mode(False):
        copy = deepcopy(plain_module(network)).cpu().float().eval()
        if weights is not None:
            copy.load_state_dict(weights)
        return copy.requires_grad_(False)


def window_of_noise(window: Sequence[int]) -> Tensor:
    """Return one window ``(1, C, *P)`` of noise, always the same.

    Args:
        window: Channels and axes of a window, ``(C, *P)``.
    """
    return torch.randn((1, *window), generator=torch.Generator().manual_seed(0))


def convert(network: nn.Module, window: Sequence[int]) -> Any:
    """Convert a network for single windows of one shape.

    Args:
        network: Network of one output, on the CPU, of which no weight wants a gradient.
        window: Channels and axes of a window, ``(C, *P)``.

    Returns:
        OpenVINO's model.

    Raises:
        ConversionError: If that is not possible; names the operators where OpenVINO does.
    """

    def forward(image: Tensor) -> Tensor:
        result: Tensor = network(image)
        return result

    image = window_of_noise(window)
    try:
        # both say what their own code does, and nothing about the network
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")
            # as a function: the weights are constants, and no module has to be described
            traced = torch.jit.trace(forward, image, check_trace=False)
            return openvino().convert_model(traced, example_input=image, input=[list(image.shape)])
    except Exception as error:  # OpenVINO and what traces raise anything
        raise ConversionError(f"OpenVINO cannot convert the network: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the operators that an error names, or what it says first."""
    text = str(error)
    for pattern, words in ((_NO_RULE, "it knows no"), (_FAILED, "it fails at")):
        if found := pattern.search(text):
            return f"{words} {found[1].strip()}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{lines[0]:.200}" if lines else type(error).__name__


def save(model: Any, path: Path) -> None:
    """Write a model, in float32: an ``.xml`` file and a ``.bin`` file beside it.

    Args:
        model: OpenVINO's model.
        path: The ``.xml`` file.
    """
    openvino().save_model(model, str(path), compress_to_fp16=False)
