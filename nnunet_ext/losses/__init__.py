"""Losses, importable without nnU-Net: pure functions on tensors, and modules around them."""

from nnunet_ext.losses.contour import contour_map
from nnunet_ext.losses.contour_weighted import ContourWeightedLoss
from nnunet_ext.losses.cross_pseudo import cross_pseudo_loss, cross_pseudo_region_loss, pseudo_labels
from nnunet_ext.losses.distance_weighted import DistanceWeightedCrossEntropy
from nnunet_ext.losses.generalised_dice import GeneralisedDiceLoss
from nnunet_ext.losses.hard_pixels import bootstrapped_cross_entropy, bootstrapped_fraction, ohem_cross_entropy
from nnunet_ext.losses.hybrid import HybridLoss, literal_hybrid_loss
from nnunet_ext.losses.propagation import lovasz_softmax, propagation_loss
from nnunet_ext.losses.unlabelled import bcp_loss, unlabelled_loss, unlabelled_region_loss

__all__ = [
    "ContourWeightedLoss",
    "DistanceWeightedCrossEntropy",
    "GeneralisedDiceLoss",
    "HybridLoss",
    "bcp_loss",
    "bootstrapped_cross_entropy",
    "bootstrapped_fraction",
    "contour_map",
    "cross_pseudo_loss",
    "cross_pseudo_region_loss",
    "literal_hybrid_loss",
    "lovasz_softmax",
    "ohem_cross_entropy",
    "propagation_loss",
    "pseudo_labels",
    "unlabelled_loss",
    "unlabelled_region_loss",
]
