"""The part ``ClassBalance``: rare classes weigh more in the cross-entropy of pseudo-labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.training.class_balance import ClassBalance, classes_without_labels, labelled_counts
from nnunet_ext.training.criteria import summed_counts
from nnunet_ext.training.labelled_scans import network_outputs, voxels_of_training_cases
from nnunet_ext.training.semi_supervised import class_names


class ClassBalancePart(TrainerMixin):
    """Weighs classes by how rare they are in the labelled cases and in the pseudo-labels, from 0.25 to 4.

    For more than four foreground classes, or one below 2 % of the foreground. The Dice is balanced as it is.

    Attributes:
        class_balance_gamma: How much rarity counts; 0 gives every class 1.
    """

    def set_defaults(self) -> None:
        """Let rarity count by its square root."""
        super().set_defaults()
        self.class_balance_gamma = 0.5

    def refuse_unsupported(self) -> None:
        """Refuse settings that make no sense."""
        super().refuse_unsupported()
        if not 0 <= self.class_balance_gamma <= 1:
            raise ValueError(f"class_balance_gamma must lie between 0 and 1, got {self.class_balance_gamma}")

    def make_balance(self) -> ClassBalance | None:
        """Return the weights, from the voxels of each class in the labelled cases; a class in none is warned of."""
        if self.class_balance_gamma == 0:
            return super().make_balance()
        counted = summed_counts if self.is_ddp else None
        counts = self._labelled_counts()
        return ClassBalance(counts, self.class_balance_gamma, device=self.device, sum_over_processes=counted)

    def _labelled_counts(self) -> Tensor:
        """Return the voxels of each class in the labelled cases; 0 where a training is only validated without them."""
        labels, outputs = self.label_manager, network_outputs(self)
        if getattr(self, "only_validates", False):
            return torch.zeros((2, len(outputs)) if labels.has_regions else len(outputs))
        counts = labelled_counts(voxels_of_training_cases(self), outputs, labels.ignore_label)
        names = class_names(self)
        missing = [names[output] for output in classes_without_labels(counts)]
        if missing:
            self.print_to_log_file(
                f"WARNING: no labelled case of this fold has {', '.join(missing)}: no weight can teach that; label some"
            )
        return counts

    def hyperparameters(self) -> dict[str, Any]:
        """Add the setting of the weights."""
        return super().hyperparameters() | {"class_balance_gamma": self.class_balance_gamma}
