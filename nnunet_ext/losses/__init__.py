"""Losses, importable without nnU-Net: pure functions on tensors."""

from nnunet_ext.losses.cross_pseudo import cross_pseudo_loss, cross_pseudo_region_loss, pseudo_labels

__all__ = ["cross_pseudo_loss", "cross_pseudo_region_loss", "pseudo_labels"]
