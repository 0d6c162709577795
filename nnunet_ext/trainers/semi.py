"""The part ``Semi``: the recipe that is recommended for a few labelled scans and many without labels."""

from __future__ import annotations

from nnunet_ext.trainers.confidence import ConfidencePart
from nnunet_ext.trainers.cut_mix import CutMixPart
from nnunet_ext.trainers.mean_teacher import MeanTeacherPart


class SemiPart(ConfidencePart, CutMixPart, MeanTeacherPart):
    """A mean teacher with boxes exchanged and sure pseudo-labels alone, which say nothing of classes not yet learnt.

    Every second step has unlabelled patches, so that a training costs about 1.65 times a supervised one.

    A name stands for one recipe: should measurements recommend another one, that gets a name of its own (``Semi2``),
    and models that were trained under this one stay what they are.
    """

    def set_defaults(self) -> None:
        """Let pseudo-labels say nothing of classes that the teacher does not see, and come in every second step."""
        super().set_defaults()
        self.confidence_silence = True
        self.unlabeled_every = 2

    def refuse_unsupported(self) -> None:
        """Take unlabelled patches in every step where an epoch has but one."""
        if self.num_iterations_per_epoch == 1:
            self.unlabeled_every = 1
        super().refuse_unsupported()
