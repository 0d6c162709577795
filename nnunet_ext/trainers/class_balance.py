"""The part ``ClassBalance``: rare classes weigh more in the cross-entropy of pseudo-labels."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.data.unlabeled_store import UnlabeledDataset
from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.training import class_sampling
from nnunet_ext.training.class_balance import ClassBalance, classes_without_labels, labelled_counts
from nnunet_ext.training.criteria import summed_counts
from nnunet_ext.training.labelled_scans import network_outputs, voxels_of_training_cases
from nnunet_ext.training.seeds import LOOKED_AT, derived_seed
from nnunet_ext.training.semi_supervised import class_names


class ClassBalancePart(TrainerMixin):
    """Weighs classes by how rare they are in the labelled cases and in the pseudo-labels, from 0.25 to 4.

    For more than four foreground classes, or one below 2 % of the foreground. The Dice is balanced as it is.

    Patches of unlabelled cases can be centred on classes, too, each class as often as any other, where the network that
    labels saw it when it last looked at the whole case.

    Attributes:
        class_balance_gamma: How much rarity counts; 0 gives every class 1.
        class_sampling_refresh: Epochs after which the network looks at some cases again, from the first one on in which
            pseudo-labels count; 0 draws patches anywhere.
        class_sampling_cases: Cases that it looks at each time, one after the other.
        class_sampling_share: Share of the unlabelled patches that is centred on a class.
    """

    warmup_fraction: float  # of the part that labels
    _looked_for: UnlabeledDataset | None = None

    def set_defaults(self) -> None:
        """Let rarity count by its square root."""
        super().set_defaults()
        self.class_balance_gamma = 0.5
        self.class_sampling_refresh = 0
        self.class_sampling_cases = 8
        self.class_sampling_share = 1 / 3

    def refuse_unsupported(self) -> None:
        """Refuse settings that make no sense."""
        super().refuse_unsupported()
        if not 0 <= self.class_balance_gamma <= 1:
            raise ValueError(f"class_balance_gamma must lie between 0 and 1, got {self.class_balance_gamma}")
        for name, least in (("class_sampling_refresh", 0), ("class_sampling_cases", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if self.class_sampling_refresh >= self.num_epochs:
            raise ValueError(
                f"class_sampling_refresh must be below the {self.num_epochs} epochs of the training, got "
                f"{self.class_sampling_refresh}; 0 draws patches anywhere"
            )
        if not 0 < self.class_sampling_share <= 1:
            raise ValueError(f"class_sampling_share must lie above 0 and be 1 at most, got {self.class_sampling_share}")

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

    def unlabelled_cases(self) -> UnlabeledDataset:
        """Return the preprocessed unlabelled cases, with patches that are centred on classes where asked for."""
        dataset = super().unlabelled_cases()
        if self.class_sampling_refresh:
            dataset.locations = Path(self.output_folder) / class_sampling.FOLDER
            if self.current_epoch == 0 and self.local_rank == 0:
                shutil.rmtree(dataset.locations, ignore_errors=True)  # of another training in this folder
            dataset.class_share = self.class_sampling_share
            self._looked_for = dataset
        return dataset

    def on_train_epoch_start(self) -> None:
        """Look for classes in some unlabelled cases where it is time to, once their pseudo-labels count."""
        super().on_train_epoch_start()
        network, weight = self.label_maker()
        if self._looked_for is None or weight == 0 or self._epochs_of_sampling() % self.class_sampling_refresh:
            return
        turn = self._epochs_of_sampling() // self.class_sampling_refresh
        order = derived_seed(self.seed, LOOKED_AT)
        names = class_sampling.cases_of_turn(self._looked_for.identifiers, turn, self.class_sampling_cases, order)
        self.print_to_log_file(f"Looking for classes in {len(names)} unlabelled cases, on which patches are centred")
        class_sampling.look_for_classes(self, network, self._looked_for, names)

    def _epochs_of_sampling(self) -> int:
        """Return the epochs since pseudo-labels began to count."""
        return int(self.current_epoch - round(self.warmup_fraction * self.num_epochs))

    def shares_are_settled(self) -> bool:
        """Whether all cases have been looked at: until then, more and more patches are centred on rare classes."""
        if self._looked_for is None:
            return super().shares_are_settled()
        turns = self._epochs_of_sampling() // self.class_sampling_refresh + 1
        return turns * self.class_sampling_cases >= len(self._looked_for.identifiers)

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of weights and patches."""
        names = ("class_balance_gamma", "class_sampling_refresh", "class_sampling_cases", "class_sampling_share")
        return super().hyperparameters() | {name: getattr(self, name) for name in names}
