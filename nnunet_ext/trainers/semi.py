"""The part ``Semi``: the recipe that is recommended for a few labelled scans and many without labels."""

from __future__ import annotations

from nnunet_ext.trainers.confidence import ConfidencePart
from nnunet_ext.trainers.cut_mix import CutMixPart
from nnunet_ext.trainers.mean_teacher import MeanTeacherPart


class SemiPart(ConfidencePart, CutMixPart, MeanTeacherPart):
    """A mean teacher with boxes exchanged and sure pseudo-labels alone, which say nothing of classes not yet learnt.

    A name stands for one recipe: should measurements recommend another one, that gets a name of its own (``Semi2``),
    and models that were trained under this one stay what they are.
    """

    def set_defaults(self) -> None:
        """Let pseudo-labels say nothing of classes that the teacher does not see."""
        super().set_defaults()
        self.confidence_silence = True
