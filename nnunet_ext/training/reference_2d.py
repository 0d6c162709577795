"""What the parts ``TransUNet`` and ``DeepLabV3Plus`` are made of: plans with these networks, and their losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_ext.data.host import Trainer
from nnunet_ext.training.architecture import DEEPLAB, SPACE_TIME, TRANSUNET, Architecture, network_name

STRIDE = 16  # of the coarsest map of both networks
TRANSUNET_SCALES = (1.0, 1 / 2, 1 / 4, 1 / 8)
SMALL_BATCH = 8  # below, batch norm's statistics are poor
_OF_INPUT = ("windows", "hounsfield_channels", "position")  # what plans of ReferencePlanner say of the input
_PARTS = {
    TRANSUNET: ("TransUNet", "transunet_depth"),
    DEEPLAB: ("DeepLabV3Plus", "deeplab_encoder"),
    SPACE_TIME: ("Propagation", "propagation_key_stages"),
}


def transunet_architecture(settings: Any, configuration: ConfigurationManager) -> Architecture:
    """Return the architecture of plans with a TransUNet in place of their 2D network.

    Args:
        settings: A trainer or its class, with the attributes ``transunet_...``.
        configuration: Configuration of the plans; what a TransUNet's own arguments say there stays.

    Raises:
        ValueError: If the configuration is not 2D, or the patch no multiple of 16.
    """
    patch_size = _fitting_patch("TransUNet", configuration)
    norm = settings.transunet_norm or ("batch" if configuration.batch_size >= SMALL_BATCH else "instance")
    return in_place(
        configuration,
        TRANSUNET,
        {
            "patch_size": patch_size,
            "stem_channels": settings.transunet_stem_channels,
            "channels": list(settings.transunet_channels),
            "blocks": list(settings.transunet_blocks),
            "groups": settings.transunet_groups,
            "embed_dim": settings.transunet_embed_dim,
            "depth": settings.transunet_depth,
            "num_heads": settings.transunet_num_heads,
            "mlp_ratio": settings.transunet_mlp_ratio,
            "dropout": settings.transunet_dropout,
            "bridge_channels": settings.transunet_bridge_channels,
            "decoder_channels": list(settings.transunet_decoder_channels),
            "norm": norm,
        },
    )


def deeplab_architecture(settings: Any, configuration: ConfigurationManager) -> Architecture:
    """Return the architecture of plans with a DeepLabV3+ in place of their 2D network.

    Args:
        settings: A trainer or its class, with the attributes ``deeplab_...``.
        configuration: Configuration of the plans; what a DeepLabV3+'s own arguments say there stays.

    Raises:
        ValueError: If the configuration is not 2D, or the patch no multiple of 16.
    """
    _fitting_patch("DeepLabV3Plus", configuration)
    return in_place(
        configuration,
        DEEPLAB,
        {
            "encoder_name": settings.deeplab_encoder,
            "decoder_channels": settings.deeplab_decoder_channels,
            "atrous_rates": list(settings.deeplab_atrous_rates),
            "dropout": settings.deeplab_dropout,
        },
    )


def in_place(configuration: ConfigurationManager, name: str, arguments: dict[str, Any]) -> Architecture:
    """Return the architecture of a network that takes over the input of the plans' network, or that of the plans."""
    architecture = configuration.configuration["architecture"]
    there = architecture["arch_kwargs"]
    kept = there if network_name(architecture) == name else {key: there[key] for key in _OF_INPUT if key in there}
    return {"network_class_name": name, "arch_kwargs": arguments | kept, "_kw_requires_import": []}


def _fitting_patch(part: str, configuration: ConfigurationManager) -> list[int]:
    patch_size = [int(size) for size in configuration.patch_size]
    if len(patch_size) != 2:
        raise ValueError(
            f"{part} is a 2D network, but the patches of this configuration are {' x '.join(map(str, patch_size))}; "
            "train the configuration 2d"
        )
    if any(size % STRIDE for size in patch_size):
        fitting = [-(-size // STRIDE) * STRIDE for size in patch_size]
        raise ValueError(
            f"{part} takes patches whose sides are multiples of {STRIDE}, but those of these plans are "
            f"{patch_size[0]} x {patch_size[1]}; the next are {fitting[0]} x {fitting[1]}: plan with "
            "nnUNetv2_plan_and_preprocess ... -pl ReferencePlanner -c 2d, or set patch_size in the plans"
        )
    return patch_size


def refuse_without_part(trainer: Trainer) -> None:
    """Raise ValueError if plans name one of these networks for a trainer without its part."""
    part, attribute = _PARTS.get(trainer.configuration_manager.network_arch_class_name, ("", ""))
    if part and not hasattr(trainer, attribute):
        raise ValueError(
            f"the plans {trainer.plans_manager.plans_name} name the network of the part {part}, which "
            f"{type(trainer).__name__} does not have; use a trainer with {part} in its name, e.g. -tr "
            f"nnUNetTrainer{part}, or other plans"
        )


def refuse_single_patches(trainer: Trainer) -> None:
    """Raise ValueError if a step would hold one patch, of which batch norm knows no spread."""
    if trainer.configuration_manager.batch_size < 2:
        raise ValueError(
            f"DeepLabV3Plus needs at least two patches a step for its batch norm, but the plans "
            f"{trainer.plans_manager.plans_name} have batch_size {trainer.configuration_manager.batch_size}; set it to "
            "2 or more there, or train TransUNet, which takes another norm for small batches"
        )


def refuse_deep_supervision(trainer: Trainer) -> None:
    """Raise ValueError if smaller outputs of a network that has none should be trained."""
    if trainer.enable_deep_supervision:
        raise ValueError("DeepLabV3Plus has one output, but enable_deep_supervision is True; leave it False")


def scale_weights(scales: Sequence[float]) -> tuple[float, ...]:
    """Return weights of outputs that halve with their size, all of them above 0, sum 1."""
    return tuple(scale / sum(scales) for scale in scales)


def with_weights(loss: nn.Module, weights: Sequence[float]) -> nn.Module:
    """Return nnU-Net's loss over all scales with other weights of the outputs; a loss of one output as it is."""
    return DeepSupervisionWrapper(loss.loss, weights) if isinstance(loss, DeepSupervisionWrapper) else loss
