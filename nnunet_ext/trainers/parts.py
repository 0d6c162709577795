"""The parts that trainer names are made of, in their order."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One part of a trainer name.

    Attributes:
        name: How it is written; ``<N>`` stands for a positive integer.
        target: ``module:attribute`` of its mixin, or of a function that makes one from the integer.
        group: Place in the canonical order; parts of one group exclude each other.
        kind: What the part decides, for those who read the list.
        needs: Parts of which one has to stand before it, empty for a part that can stand alone.
        summary: One line for ``nnUNetv2_ext trainers``.
        only_in_pairs: Whether it stands beside another part of its group alone.
        alone: Whether it is a training of its own, with which nothing but a length goes.
    """

    name: str
    target: str
    group: int
    kind: str
    summary: str
    needs: tuple[str, ...] = ()
    only_in_pairs: bool = False
    alone: bool = False

    @property
    def has_number(self) -> bool:
        """Whether the part carries an integer."""
        return "<" in self.name

    def match(self, token: str) -> int | None:
        """Return the integer of a token that is this part (0 for a part without one), or None."""
        if not self.has_number:
            return 0 if token == self.name else None
        found = re.fullmatch(re.sub(r"<.>", r"([1-9]\\d*)", self.name), token)
        return int(found[1]) if found else None


SUPERVISION, LOSS, NETWORK, TASK, LENGTH = "supervision", "loss", "network", "task", "length"
PAIRING, PLAIN = "CPS", "UNet"  # the part with which a name may have two networks, and that of the plans' own
PARTS = (
    Part(
        "Semi",
        "nnunet_ext.trainers.semi:SemiPart",
        0,
        SUPERVISION,
        "the recommended recipe for unlabelled scans: MeanTeacher with CutMix and Confidence",
    ),
    Part(
        "CPS",
        "nnunet_ext.trainers.cps:CPSPart",
        0,
        SUPERVISION,
        "3D-CPS: two networks supervise each other on labelled and unlabelled patches",
    ),
    Part(
        "MeanTeacher",
        "nnunet_ext.trainers.mean_teacher:MeanTeacherPart",
        0,
        SUPERVISION,
        "a running mean of the network labels weak views of unlabelled patches, the network learns strong ones",
    ),
    Part(
        "CutMix",
        "nnunet_ext.trainers.cut_mix:CutMixPart",
        1,
        SUPERVISION,
        "boxes of unlabelled patches are exchanged, with their pseudo-labels",
        ("CPS", "MeanTeacher"),
    ),
    Part(
        "BCP",
        "nnunet_ext.trainers.bcp:BCPPart",
        1,
        SUPERVISION,
        "unlabelled patches are put together with labelled ones, both ways (bidirectional copy-paste)",
        ("CPS", "MeanTeacher"),
    ),
    Part(
        "Confidence",
        "nnunet_ext.trainers.confidence:ConfidencePart",
        2,
        SUPERVISION,
        "only pseudo-labels that the network that made them is sure of count",
        ("CPS", "MeanTeacher"),
    ),
    Part(
        "ClassBalance",
        "nnunet_ext.trainers.class_balance:ClassBalancePart",
        3,
        SUPERVISION,
        "rare classes weigh more in the cross-entropy of pseudo-labels",
        ("CPS", "MeanTeacher"),
    ),
    Part("CWCD", "nnunet_ext.trainers.cwcd:CWCDPart", 4, LOSS, "contours count more in cross-entropy and Dice"),
    Part("GDL", "nnunet_ext.trainers.comparison_losses:GDLPart", 4, LOSS, "generalised Dice"),
    Part("DWCE", "nnunet_ext.trainers.comparison_losses:DWCEPart", 4, LOSS, "cross-entropy weighted by distance"),
    Part(
        PLAIN,
        "",
        5,
        NETWORK,
        "the plans' own network, as one of two that CPS trains (CPS_UNet_ANUNet)",
        (PAIRING,),
        only_in_pairs=True,
    ),
    Part(
        "ANUNet",
        "nnunet_ext.trainers.anu_net:ANUNetPart",
        5,
        NETWORK,
        "nested attention U-Net, pruned when it predicts",
    ),
    Part(
        "IFECurvature",
        "nnunet_ext.trainers.ife:IFECurvaturePart",
        5,
        NETWORK,
        "skips repeat their most curved channels",
    ),
    Part(
        "IFEEntropy",
        "nnunet_ext.trainers.ife:IFEEntropyPart",
        5,
        NETWORK,
        "skips repeat their most informative channels",
    ),
    Part(
        "TransUNet",
        "nnunet_ext.trainers.reference_2d:TransUNetPart",
        5,
        NETWORK,
        "2D: a transformer between a convolutional encoder and a decoder with skips",
    ),
    Part(
        "DeepLabV3Plus",
        "nnunet_ext.trainers.reference_2d:DeepLabV3PlusPart",
        5,
        NETWORK,
        "2D: DeepLabV3+ with an EfficientNet, for few parameters and cheap steps",
    ),
    Part(
        "Propagation",
        "nnunet_ext.trainers.propagation:PropagationPart",
        0,
        TASK,
        "2D: a space-time memory network carries the masks of a few slices through a volume",
        alone=True,
    ),
    Part("<N>epochs", "nnunet_ext.trainers.length:epochs_part", 6, LENGTH, "train for N epochs instead of 1000"),
    Part(
        "<M>iterations",
        "nnunet_ext.trainers.length:iterations_part",
        7,
        LENGTH,
        "M iterations an epoch instead of 250, max(1, round(M / 5)) for validation",
    ),
)
