"""The part ``CutMix``: boxes of unlabelled patches are exchanged, with their pseudo-labels."""

from __future__ import annotations

from typing import Any

from nnunet_ext.data.position import has_position
from nnunet_ext.data.unlabelled_steps import least_unlabelled_batch_size, unlabelled_batch_size
from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.training.mean_teacher_step import Mixer
from nnunet_ext.training.mixing import BoxMixer
from nnunet_ext.training.seeds import BOXES, derived_seed

_SHAPES = ("box", "slab")


class CutMixPart(TrainerMixin):
    """Gives each unlabelled patch that is learnt a box of the next one; labels are made before.

    Attributes:
        cutmix_probability: Probability that a patch gets a box; 0 mixes nothing.
        cutmix_share: Least and largest share of the patch's volume that a box has.
        cutmix_shape: ``"box"``, or ``"slab"`` for the full extent in all axes but one.
    """

    unlabeled_every: int  # of the part that has unlabelled patches
    unlabeled_batch_size: int | None

    def set_defaults(self) -> None:
        """Set how often boxes are exchanged, and how large they are."""
        super().set_defaults()
        self.cutmix_probability = 0.8
        self.cutmix_share = (0.1, 0.4)
        self.cutmix_shape = "box"

    def refuse_unsupported(self) -> None:
        """Refuse settings that make no sense."""
        super().refuse_unsupported()
        low, high = self.cutmix_share
        if not 0 <= self.cutmix_probability <= 1:
            raise ValueError(f"cutmix_probability must lie between 0 and 1, got {self.cutmix_probability}")
        if not 0 < low <= high < 1:
            raise ValueError(f"cutmix_share must be two shares, 0 < least <= largest < 1, got {self.cutmix_share}")
        if self.cutmix_shape not in _SHAPES:
            raise ValueError(f"cutmix_shape must be one of {', '.join(_SHAPES)}, got {self.cutmix_shape!r}")

    def make_mixer(self) -> Mixer | None:
        """Return what exchanges boxes; with one patch in a batch there is nothing to exchange."""
        if self.cutmix_probability == 0:
            return super().make_mixer()
        if least_unlabelled_batch_size(self) < 2:
            whose, remedy = f"{self.configuration_name} has a batch", "Plan a smaller patch"
            if self.unlabeled_batch_size is not None:
                whose, remedy = "unlabeled_batch_size gives one", "Set unlabeled_batch_size to 2 a process"
            self.print_to_log_file(
                f"WARNING: CutMix exchanges boxes of the patches of a batch, but {whose} of 1 (a process): nothing is "
                f"mixed. {remedy}, or use a trainer without CutMix."
            )
        if unlabelled_batch_size(self) < 2:
            return super().make_mixer()
        seed = derived_seed(self.seed, BOXES, self.local_rank)
        position = has_position(self.configuration_manager)
        return BoxMixer(self.cutmix_share, self.cutmix_probability, self.cutmix_shape, seed, position)

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of the boxes."""
        names = ("cutmix_probability", "cutmix_share", "cutmix_shape")
        return super().hyperparameters() | {name: getattr(self, name) for name in names}
