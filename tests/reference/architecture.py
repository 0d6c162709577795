"""U-Nets as plans describe them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

STOCK = "dynamic_network_architectures.architectures.unet."


def architecture(
    dimensions: int,
    features: Sequence[int],
    convolutions: int | Sequence[int] = 1,
    decoder: int = 1,
    residual: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Return the architecture of a U-Net.

    Args:
        dimensions: 2 or 3.
        features: Channels of each stage.
        convolutions: Convolutions of each stage of the encoder, or residual blocks.
        decoder: Convolutions of each stage of the decoder.
        residual: Use nnU-Net's residual encoder.
        changes: Keyword arguments of the network in place of those written here, e.g. ``strides``.
    """
    stages = len(features)
    each = [convolutions] * stages if isinstance(convolutions, int) else list(convolutions)
    return {
        "network_class_name": f"{STOCK}{'ResidualEncoderUNet' if residual else 'PlainConvUNet'}",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * stages,
            "strides": [[1] * dimensions, *[[2] * dimensions] * (stages - 1)],
            "n_blocks_per_stage" if residual else "n_conv_per_stage": each,
            "n_conv_per_stage_decoder": [decoder] * (stages - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        | changes,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
