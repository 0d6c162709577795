"""What the parts ``IFECurvature`` and ``IFEEntropy`` are made of: plans with enhanced networks, pretrained weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.networks.ife_unet import zero_added_channels
from nnunet_ext.training.checkpoints import plain_module

_PLAIN = "dynamic_network_architectures.architectures.unet."
_OURS = "nnunet_ext.networks.ife_unet."
NETWORKS = {f"{_PLAIN}{name}": f"{_OURS}IFE{name}" for name in ("PlainConvUNet", "ResidualEncoderUNet")}
_ANISOTROPY = 3.0  # nnU-Net's own threshold for treating an axis apart


def axes_of_stage(spacing: Sequence[float], strides: Sequence[Sequence[int]], stage: int) -> list[int] | None:
    """Return the axes along which a stage's voxels are at most three times as long as the shortest; None for all.

    At least two remain, the finest ones, because curvature and neighbourhood are those of a plane.
    """
    size = np.array(spacing, float) * np.prod(np.array(strides[: stage + 1]), 0)
    near = sorted(
        {*np.argsort(size, kind="stable")[:2].tolist(), *np.flatnonzero(size <= _ANISOTROPY * size.min()).tolist()}
    )
    return None if len(near) == len(size) else [int(axis) for axis in near]


def enhanced_architecture(settings: Any, configuration: ConfigurationManager) -> dict[str, Any]:
    """Return the architecture of plans with enhanced skips.

    Args:
        settings: What has ``ife_score``, ``ife_stages``, ``ife_ratios``, ``ife_bins`` and ``ife_step``.
        configuration: Of the plans. One that already has an enhanced network is returned as it is.

    Raises:
        NotImplementedError: If the network is neither a plain nor a residual encoder U-Net.
        ValueError: If the settings do not fit the network.
    """
    architecture = deepcopy(configuration.configuration["architecture"])
    name = architecture["network_class_name"]
    if name in NETWORKS.values():
        return architecture
    if name.startswith("dynamic_network_architectures."):
        name = _PLAIN + name.rpartition(".")[2]  # nnU-Net looks for a class that has moved by its last name
    if name not in NETWORKS:
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
    architecture["network_class_name"] = NETWORKS[name]
    kwargs |= {
        "ife_score": settings.ife_score,
        "ife_stages": [stage for stage, _ in chosen],
        "ife_ratios": [ratio for _, ratio in chosen],
        "ife_axes": [axes_of_stage(configuration.spacing, strides, stage) for stage, _ in chosen],
        "ife_bins": settings.ife_bins,
        "ife_step": settings.ife_step,
    }
    return architecture


def enhanced_plans(settings: Any, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return a copy of plans whose configuration has an enhanced network; see :func:`enhanced_architecture`.

    Raises:
        ValueError: If the plans have one already, with other settings.
    """
    plans = deepcopy(plans)
    manager = PlansManager(plans).get_configuration(configuration)
    architecture = enhanced_architecture(settings, manager)
    if manager.network_arch_class_name in NETWORKS.values():
        wanted = enhanced_architecture(settings, _plain(manager))["arch_kwargs"]
        for key, value in architecture["arch_kwargs"].items():
            if key in wanted and json.dumps(value) != json.dumps(wanted[key]):
                raise ValueError(
                    f"the plans already name {manager.network_arch_class_name} with {key} = {value}, but "
                    f"{type(settings).__name__} has {wanted[key]}; train these plans with a trainer without IFE, or "
                    "set one of both to the other"
                )
    plans["configurations"][configuration]["architecture"] = architecture
    return plans


def _plain(configuration: ConfigurationManager) -> ConfigurationManager:
    """Return the configuration with the network that an enhanced one was made from."""
    content = deepcopy(configuration.configuration)
    architecture = content["architecture"]
    names = {enhanced: plain for plain, enhanced in NETWORKS.items()}
    architecture["network_class_name"] = names[architecture["network_class_name"]]
    for key in [key for key in architecture["arch_kwargs"] if key.startswith("ife_")]:
        del architecture["arch_kwargs"][key]
    return ConfigurationManager(content)


def refuse_other_folds(trainer: Any) -> None:
    """Raise RuntimeError if the model folder holds folds with other settings."""
    folder = Path(trainer.output_folder_base)
    if any(folder.glob("fold_*/checkpoint_*.pth")) and (folder / "plans.json").is_file():
        refuse_other_settings(trainer, json.loads((folder / "plans.json").read_text()), f"the model {folder}")


def refuse_other_settings(trainer: Any, plans: dict[str, Any] | None, what: str) -> None:
    """Raise RuntimeError if plans describe another network than the trainer's.

    Args:
        trainer: With plans of its own.
        plans: Those saved with weights; None says nothing.
        what: That has these plans, for the message.
    """
    if plans is None or trainer.configuration_name not in plans["configurations"]:
        return
    saved, own = (
        PlansManager(one).get_configuration(trainer.configuration_name).network_arch_init_kwargs
        for one in (plans, trainer.plans_manager.plans)
    )
    for key, value in own.items():
        if key.startswith("ife_") and json.dumps(saved.get(key)) != json.dumps(value):
            raise RuntimeError(
                f"{what} was trained with {key} = {saved.get(key)}, but {type(trainer).__name__} has {value} now; set "
                "it back, or give the trainer another name"
            )


def describe(network: torch.nn.Module) -> list[str]:
    """Return a line for each enhanced stage of a network, as trained."""
    enhancements: Any = plain_module(network).enhancements
    return [
        f"IFE at encoder stage {stage}: {one.selected} of {one.channels} channels by {one.score}"
        + ("" if one.axes is None else f", along the axes {', '.join(map(str, one.axes))} alone")
        + ("" if one.selected else "; the ratio is too small, nothing is enhanced here")
        for stage, one in enhancements.items()
    ]


@contextmanager
def widened_weights(networks: Sequence[torch.nn.Module], filename: str) -> Iterator[tuple[str, list[str]]]:
    """Give a file of pretrained weights that fits networks with added input channels.

    Args:
        networks: Those that will load it, all alike.
        filename: Checkpoint of the plain network, or of an enhanced one.

    Yields:
        The file to load, a temporary one if anything had to be added, and the names of the weights with added zeros.
    """
    network = plain_module(networks[0])
    added: dict[str, int] = network.added_input_channels  # type: ignore[assignment]
    checkpoint = torch.load(filename, map_location="cpu", weights_only=False)  # as nnU-Net loads it
    weights, own = checkpoint["network_weights"], network.state_dict()
    missing = {
        key: channels
        for key, channels in added.items()
        if channels and key in weights and weights[key].shape[1] + channels == own[key].shape[1]
    }
    if not missing:
        yield filename, []
        return
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / Path(filename).name)
        torch.save({"network_weights": zero_added_channels(weights, missing)}, file)
        yield file, [key for key in missing if ".all_modules." not in key]  # a second name of the same weight
