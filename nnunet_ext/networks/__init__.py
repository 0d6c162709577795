"""Networks and their parts: plain torch modules, importable without nnU-Net."""

from nnunet_ext.networks.feature_enhancement import InstructiveFeatureEnhancement
from nnunet_ext.networks.feature_scores import curvature_scores, entropy_scores

__all__ = ["InstructiveFeatureEnhancement", "curvature_scores", "entropy_scores"]
