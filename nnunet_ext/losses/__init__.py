"""Losses, importable without nnU-Net: pure functions on tensors, and modules around them."""

from nnunet_ext.losses.contour import contour_map
from nnunet_ext.losses.contour_weighted import ContourWeightedLoss
from nnunet_ext.losses.cross_pseudo import cross_pseudo_loss, cross_pseudo_region_loss, pseudo_labels
from nnunet_ext.losses.distance_weighted import DistanceWeightedCrossEntropy
from nnunet_ext.losses.generalised_dice import GeneralisedDiceLoss

__all__ = [
    "ContourWeightedLoss",
    "DistanceWeightedCrossEntropy",
    "GeneralisedDiceLoss",
    "contour_map",
    "cross_pseudo_loss",
    "cross_pseudo_region_loss",
    "pseudo_labels",
]
