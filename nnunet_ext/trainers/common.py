"""Combinations that are used most, written out for readers; the others are made of the same table of parts alike."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.trainers.base import ExtPart
from nnunet_ext.trainers.cps import CPSPart
from nnunet_ext.trainers.cwcd import CWCDPart
from nnunet_ext.trainers.length import epochs_part
from nnunet_ext.trainers.semi import SemiPart


class nnUNetTrainerSemi(SemiPart, ExtPart, nnUNetTrainer):
    """For a few labelled scans and many without labels: a mean teacher, boxes exchanged, sure pseudo-labels alone."""


class nnUNetTrainerCPS(CPSPart, ExtPart, nnUNetTrainer):
    """3D-CPS: two networks supervise each other on labelled and unlabelled patches, 1000 epochs."""


class nnUNetTrainerCPS_100epochs(epochs_part(100), CPSPart, ExtPart, nnUNetTrainer):  # type: ignore[misc]
    """3D-CPS in 100 epochs."""


class nnUNetTrainerCPS_250epochs(epochs_part(250), CPSPart, ExtPart, nnUNetTrainer):  # type: ignore[misc]
    """3D-CPS in 250 epochs."""


class nnUNetTrainerCWCD(CWCDPart, ExtPart, nnUNetTrainer):
    """Contour-weighted loss: contours count more in cross-entropy and Dice, 1000 epochs."""


class nnUNetTrainerCPS_CWCD(CWCDPart, CPSPart, ExtPart, nnUNetTrainer):
    """3D-CPS, its labelled patches with the contour-weighted loss, 1000 epochs."""
