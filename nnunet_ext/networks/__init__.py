"""Networks and their parts: plain torch modules, importable without nnU-Net."""

from nnunet_ext.networks.attention_gate import AttentionGate
from nnunet_ext.networks.feature_enhancement import InstructiveFeatureEnhancement
from nnunet_ext.networks.feature_scores import curvature_scores, entropy_scores
from nnunet_ext.networks.nested_unet import NestedAttentionUNet
from nnunet_ext.networks.reference_input import ReferenceInput
from nnunet_ext.networks.reference_unet import ReferenceUNet

__all__ = [
    "AttentionGate",
    "InstructiveFeatureEnhancement",
    "NestedAttentionUNet",
    "ReferenceInput",
    "ReferenceUNet",
    "curvature_scores",
    "entropy_scores",
]
