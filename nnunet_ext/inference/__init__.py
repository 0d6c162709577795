"""Prediction with spacings that are forced or chosen, a fast export, and cases that cost no others."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_ext.inference.predictor import PredictionFailedError, Predictor
    from nnunet_ext.inference.spacing import ForcedSpacing, MaxVoxels, TargetSpacing

__all__ = ["ForcedSpacing", "MaxVoxels", "PredictionFailedError", "Predictor", "TargetSpacing"]


def __getattr__(name: str) -> Any:
    """Import on demand: the command line imports this package before it needs torch."""
    if name in ("Predictor", "PredictionFailedError"):
        from nnunet_ext.inference import predictor

        return getattr(predictor, name)
    if name in __all__:
        from nnunet_ext.inference import spacing

        return getattr(spacing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
