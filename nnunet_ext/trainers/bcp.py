"""The part ``BCP``: unlabelled patches are put together with labelled ones, both ways (bidirectional copy-paste)."""

from __future__ import annotations

import math
from typing import Any

from nnunet_ext.data.position import has_position
from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.training.copy_paste import BCPCriterion, BCPMixer
from nnunet_ext.training.criteria import compiles_losses
from nnunet_ext.training.mean_teacher_step import Mixer
from nnunet_ext.training.seeds import BCP_STEPS, BOXES, derived_seed


class BCPPart(TrainerMixin):
    """Puts each unlabelled patch that is learnt together with a labelled one by a box of two thirds of each side.

    Attributes:
        bcp_probability: Probability that the unlabelled patches of a step are mixed with labelled ones; 0 mixes
            nothing, not even labelled patches with each other.
        bcp_warmup_probability: Probability that the labelled patches of a step are mixed with each other while they
            teach alone, before the first pseudo-label counts.
        bcp_pseudo_weight: Weight of the pseudo-labelled part of a mixed patch; that of the labelled part is 1.
    """

    copy_paste: BCPMixer | None = None

    def set_defaults(self) -> None:
        """Mix always, and weigh as the method does."""
        super().set_defaults()
        self.bcp_probability = 1.0
        self.bcp_warmup_probability = 0.5
        self.bcp_pseudo_weight = 0.5

    def refuse_unsupported(self) -> None:
        """Refuse settings that make no sense."""
        super().refuse_unsupported()
        for name in ("bcp_probability", "bcp_warmup_probability"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")
        if not 0 <= self.bcp_pseudo_weight < math.inf:
            raise ValueError(f"bcp_pseudo_weight must be 0 or more, got {self.bcp_pseudo_weight}")

    def make_mixer(self) -> Mixer | None:
        """Return what puts patches together, with their loss."""
        if self.bcp_probability == 0:
            return super().make_mixer()
        labels = self.label_manager
        criterion = BCPCriterion(
            self.output_weights(), labels.has_regions, self.bcp_pseudo_weight, compiles_losses(self)
        )
        self.copy_paste = BCPMixer(
            criterion,
            self.bcp_probability,
            self.bcp_warmup_probability,
            labels.ignore_label,
            (derived_seed(self.seed, BOXES, self.local_rank), derived_seed(self.seed, BCP_STEPS)),
            self.local_rank,
            has_position(self.configuration_manager),
        )
        return self.copy_paste

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on a batch; while the labels teach alone, their patches are mixed with each other now and then."""
        if self.copy_paste is not None and self.labels_teach_alone():
            batch = self.copy_paste.in_warmup(batch, self.device)
        return super().train_step(batch)

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of the mixing."""
        names = ("bcp_probability", "bcp_warmup_probability", "bcp_pseudo_weight")
        return super().hyperparameters() | {name: getattr(self, name) for name in names}
