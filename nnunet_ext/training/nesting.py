"""What the part ``ANUNet`` is made of: plans with nested networks, and losses on outputs of full resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, Protocol

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_ext.data.host import Trainer
from nnunet_ext.losses import HybridLoss
from nnunet_ext.training.architecture import (
    NESTED,
    NESTED_KEYS,
    STOCK_NETWORKS,
    build,
    network_name,
    refuse_reference,
)
from nnunet_ext.training.checkpoints import plain_module
from nnunet_ext.training.criteria import (
    DeepSupervision,
    compiled,
    least_weight,
    sum_over_processes,
    supervised_criterion,
)
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.step_memory import supervised_step_memory


def nested_architecture(settings: Any, configuration: ConfigurationManager) -> dict[str, Any]:
    """Return the architecture of plans as a nested network.

    Args:
        settings: A trainer or its class, with ``anu_aggregation``, ``anu_gate_ratio`` and ``anu_depth``.
        configuration: Configuration of the plans; what a nested network's own arguments say there stays.

    Raises:
        NotImplementedError: If the network is neither nnU-Net's plain U-Net nor a nested one.
        ValueError: If the depth does not fit the network.
    """
    architecture = deepcopy(configuration.configuration["architecture"])
    name = network_name(architecture)
    refuse_reference(name, "ANUNet")
    if name not in (NESTED, f"{STOCK_NETWORKS}PlainConvUNet"):
        raise NotImplementedError(
            f"ANUNet nests nnU-Net's PlainConvUNet, but the plans name {name}; use plans of ANUNetPlanner (-p "
            "ANUNetPlans), or of ExperimentPlanner"
        )
    deepest = architecture["arch_kwargs"]["n_stages"] - 1
    depth = settings.anu_depth or deepest
    if not 1 <= depth <= deepest:
        raise ValueError(f"anu_depth must lie between 1 and {deepest} for these plans, got {depth}")
    architecture["network_class_name"] = NESTED
    arguments = {"aggregation": settings.anu_aggregation, "gate_ratio": settings.anu_gate_ratio, "depth": depth}
    architecture["arch_kwargs"] = arguments | architecture["arch_kwargs"]
    return architecture


def refuse_without_part(trainer: Trainer) -> None:
    """Raise ValueError if plans name a nested network for a trainer without the part ``ANUNet``."""
    has_part = getattr(trainer, "network_keys", ()) == NESTED_KEYS  # settings of network 2 may be there without it
    if trainer.configuration_manager.network_arch_class_name == NESTED and not has_part:
        instead = "use a trainer with ANUNet in its name, e.g. -tr nnUNetTrainerANUNet or nnUNetTrainerCPS_ANUNet, or"
        if getattr(trainer, "companion_bases", None) is not None:
            instead = "UNet in that name is the plans' own network, so use"
        raise ValueError(
            f"the plans {trainer.plans_manager.plans_name} name a nested network, whose outputs all have full "
            f"resolution, and {type(trainer).__name__} supervises smaller ones; {instead} other plans, e.g. -p "
            "nnUNetPlans"
        )


def number_of_outputs(trainer: Trainer) -> int:
    """Return the depth of a trainer's network."""
    depth: int = trainer.configuration_manager.network_arch_init_kwargs["depth"]
    return depth


class NestedTrainer(ExtTrainer, Protocol):
    """A trainer with the part ``ANUNet``; the part says what each setting does."""

    anu_output_weights: Sequence[float] | None
    anu_gamma: float
    anu_delta: float


def output_weights(trainer: NestedTrainer) -> tuple[float, ...]:
    """Return the weights of a trainer's outputs, the deepest first, with a sum of 1.

    Raises:
        ValueError: If ``anu_output_weights`` does not have one weight a depth, or no positive one.
    """
    depth = number_of_outputs(trainer)
    given = (1.0,) * depth if trainer.anu_output_weights is None else tuple(trainer.anu_output_weights)
    if len(given) != depth or not all(0 <= weight < math.inf for weight in given) or sum(given) <= 0:
        raise ValueError(
            f"anu_output_weights must hold {depth} numbers of 0 or more, depth 1 first, and one above 0, got {given}"
        )
    if not trainer.enable_deep_supervision:
        return (1.0,)
    weights = [max(weight, least_weight(trainer)) for weight in reversed(given)]
    return tuple(weight / sum(weights) for weight in weights)


def hybrid_criterion(trainer: NestedTrainer) -> nn.Module:
    """Return the hybrid loss over all outputs of a trainer."""
    loss = HybridLoss(
        trainer.label_manager.has_regions,
        trainer.label_manager.ignore_label,
        trainer.configuration_manager.batch_dice,
        trainer.anu_gamma,
        trainer.anu_delta,
        gather=sum_over_processes(trainer.is_ddp),
    )
    compiled(trainer, loss)
    return supervised_criterion(trainer, lambda strides: loss)


def nested_step_memory(
    architecture: dict[str, Any],
    patch_size: Sequence[int],
    batch_size: int,
    input_channels: int,
    output_channels: int,
    regions: bool = False,
    checkpointing: bool = False,
    half_precision: bool = True,
) -> int:
    """Return the most bytes that a training step of a nested network with its hybrid loss has allocated at once.

    Args:
        architecture: Architecture as in plans.
        patch_size: Size of a patch in voxels.
        batch_size: Patches a step.
        input_channels: Input channels of the network.
        output_channels: Output channels of the network.
        regions: Whether there are overlapping regions instead of exclusive classes.
        checkpointing: Whether activations are computed again in the backward pass.
        half_precision: Whether to train in mixed precision, as nnU-Net trains on GPUs.
    """

    def make() -> nn.Module:
        network = build(architecture, input_channels, output_channels, True)
        set_checkpointing([network], checkpointing)
        return network

    def make_loss(outputs: int) -> nn.Module:
        return DeepSupervision([HybridLoss(regions)] * outputs, (1 / outputs,) * outputs)

    size = (patch_size, batch_size, input_channels, output_channels, regions, half_precision)
    return supervised_step_memory(make, *size, make_loss)


def set_checkpointing(networks: Sequence[nn.Module], enabled: bool) -> None:
    """Let nested networks compute activations again in the backward pass, or keep them."""
    for network in networks:
        plain_module(network).checkpointing = enabled  # type: ignore[assignment]
