"""Networks and their parts: plain torch modules, importable without nnU-Net."""

from importlib import import_module
from typing import Any

from nnunet_ext.networks.attention_gate import AttentionGate
from nnunet_ext.networks.feature_enhancement import InstructiveFeatureEnhancement
from nnunet_ext.networks.feature_scores import curvature_scores, entropy_scores
from nnunet_ext.networks.nested_unet import NestedAttentionUNet
from nnunet_ext.networks.reference_input import ReferenceInput
from nnunet_ext.networks.reference_unet import ReferenceUNet

__all__ = [
    "AttentionGate",
    "DeepLabV3Plus",
    "InstructiveFeatureEnhancement",
    "NestedAttentionUNet",
    "ReferenceInput",
    "ReferenceUNet",
    "SpaceTimeNetwork",
    "TransUNet",
    "curvature_scores",
    "entropy_scores",
]

_OF_TIMM = {
    "DeepLabV3Plus": "nnunet_ext.networks.deeplab",
    "SpaceTimeNetwork": "nnunet_ext.networks.space_time",
    "TransUNet": "nnunet_ext.networks.transunet",
}


def __getattr__(name: str) -> Any:
    """Import networks of timm's and segmentation-models-pytorch's parts when asked for: both take seconds."""
    if name in _OF_TIMM:
        return getattr(import_module(_OF_TIMM[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
