"""What the parts ``IFECurvature`` and ``IFEEntropy`` are made of: plans with enhanced networks, pretrained weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_ext.files import naming_full_disk
from nnunet_ext.networks.ife_unet import zero_added_channels
from nnunet_ext.training.architecture import ENHANCED, network_name, refuse_reference
from nnunet_ext.training.checkpoints import plain_module


def axes_of_stage(spacing: Sequence[float], strides: Sequence[Sequence[int]], stage: int) -> list[int] | None:
    """Return the axes along which a stage's voxels are at most three times as long as the shortest; None for all.

    At least two remain, the finest ones, because curvature and neighbourhood are those of a plane.
    """
    size = np.array(spacing, float) * np.prod(np.array(strides[: stage + 1]), 0)
    near = sorted(
        {*np.argsort(size, kind="stable")[:2].tolist(), *np.flatnonzero(size <= ANISO_THRESHOLD * size.min()).tolist()}
    )
    return None if len(near) == len(size) else [int(axis) for axis in near]


def enhanced_architecture(settings: Any, configuration: ConfigurationManager) -> dict[str, Any]:
    """Return the architecture of plans with enhanced skips.

    Args:
        settings: A trainer or its class, with ``ife_score``, ``ife_stages``, ``ife_ratios``, ``ife_bins`` and
            ``ife_step``.
        configuration: Configuration of the plans. One that already has an enhanced network is returned as it is.

    Raises:
        NotImplementedError: If the network is neither a plain nor a residual encoder U-Net.
        ValueError: If the settings do not fit the network.
    """
    architecture = deepcopy(configuration.configuration["architecture"])
    name = network_name(architecture)
    if name in ENHANCED.values():
        return architecture
    refuse_reference(name, "IFE")
    if name not in ENHANCED:
        raise NotImplementedError(
            f"IFE knows nnU-Net's PlainConvUNet and ResidualEncoderUNet, but the plans name {name}; use plans of "
            "ExperimentPlanner or nnUNetPlannerResEncM (L, XL), or a trainer without IFE"
        )
    if len(settings.ife_stages) != len(settings.ife_ratios):
        raise ValueError(
            f"ife_ratios must hold one ratio for each of ife_stages, {settings.ife_stages}, got {settings.ife_ratios}"
        )
    kwargs = architecture["arch_kwargs"]
    strides = [[s] * len(configuration.spacing) if isinstance(s, int) else s for s in kwargs["strides"]]
    # a small network's last stage is the bottleneck, which has no skip
    chosen = [(s, r) for s, r in zip(settings.ife_stages, settings.ife_ratios, strict=True) if s < len(strides) - 1]
    if not chosen:
        raise ValueError(
            f"none of the stages {settings.ife_stages} has a skip; the network has {len(strides)} stages. Set "
            "ife_stages and ife_ratios in a subclass, e.g. (0,) and (0.5,)"
        )
    architecture["network_class_name"] = ENHANCED[name]
    kwargs |= {
        "ife_score": settings.ife_score,
        "ife_stages": [stage for stage, _ in chosen],
        "ife_ratios": [ratio for _, ratio in chosen],
        "ife_axes": [axes_of_stage(configuration.spacing, strides, stage) for stage, _ in chosen],
        "ife_bins": settings.ife_bins,
        "ife_step": settings.ife_step,
    }
    return architecture


def describe(network: torch.nn.Module) -> list[str]:
    """Return a line for each enhanced stage of a network, as trained."""
    enhancements: Any = plain_module(network).enhancements
    return [
        f"IFE at encoder stage {stage}: {layer.selected} of {layer.channels} channels by {layer.score}"
        + ("" if layer.axes is None else f", along the axes {', '.join(map(str, layer.axes))} alone")
        + ("" if layer.selected else "; the ratio is too small, nothing is enhanced here")
        for stage, layer in enhancements.items()
    ]


@contextmanager
def widened_weights(networks: Sequence[torch.nn.Module], filename: str) -> Iterator[tuple[str, list[str]]]:
    """Give a file of pretrained weights that fits networks with added input channels.

    Args:
        networks: Networks that will load the file, all alike.
        filename: Checkpoint of the plain network, or of an enhanced one.

    Yields:
        The file to load, a temporary one if anything had to be added, and the names of the weights with added zeros.

    Raises:
        ValueError: If the file holds more than weights and plain values.
    """
    from nnunet_ext.training.safe_load import load_checkpoint

    network = plain_module(networks[0])
    added: dict[str, int] = network.added_input_channels  # type: ignore[assignment]
    checkpoint = load_checkpoint(filename, required=("network_weights",))
    weights, state = checkpoint["network_weights"], network.state_dict()
    missing = {
        key: channels
        for key, channels in added.items()
        if channels and key in weights and weights[key].shape[1] + channels == state[key].shape[1]
    }
    if not missing:
        yield filename, []
        return
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / Path(filename).name)
        with naming_full_disk(file):
            torch.save({"network_weights": zero_added_channels(weights, missing)}, file)
        yield file, [key for key in missing if ".all_modules." not in key]  # a second name of the same weight
