"""What the labelled scans of a training hold of each class, as whole scans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.data.class_voxels import cache_file, class_voxels
from nnunet_ext.data.host import Trainer
from nnunet_ext.training.class_balance import labelled_counts


def network_outputs(trainer: Trainer) -> list[Any]:
    """Return the label of each output of the network, or the labels of each region."""
    labels = trainer.label_manager
    outputs = labels.foreground_regions if labels.has_regions else labels.all_labels
    return [tuple(output) if isinstance(output, (list, tuple)) else int(output) for output in outputs]


def voxels_of_training_cases(trainer: Trainer) -> list[dict[int, int]]:
    """Return the voxels by label of each labelled case that is trained on, counted once for all trainings."""
    file = cache_file(trainer.preprocessed_dataset_folder_base, trainer.configuration_manager.data_identifier)
    cases, _ = trainer.get_tr_and_val_datasets()
    return list(class_voxels(cases, file, trainer.local_rank == 0).values())


def mean_share(cases: Iterable[Mapping[int, int]], outputs: Sequence[int | Sequence[int]]) -> Tensor:
    """Return the share of each class in a scan, the mean over the scans.

    This is what a perfect label maker finds in unlabelled patches: they are drawn uniformly from scans that are drawn
    alike, whatever their size. Labelled patches would not do: nnU-Net draws a third of them for their foreground. As
    pseudo-labels count in valid voxels alone, so do the labels here: -1, which nnU-Net's cropping gives to what lies
    outside of the non-zero part of a scan, is left out of the whole; elsewhere it is background.

    Args:
        cases: Voxels by label of each case.
        outputs: Labels of the network's outputs, or the labels of each region.

    Returns:
        ``(K,)`` float64, of regions the share of the voxels inside; 0 without a case.
    """
    shares = [torch.zeros(len(outputs), dtype=torch.float64)]
    for case in cases:
        valid = {label: voxels for label, voxels in case.items() if label >= 0}
        counts = labelled_counts([valid], outputs)
        share = counts / counts.sum(0).clamp_min(1)
        shares.append(share[1] if share.ndim == 2 else share)
    return torch.stack(shares).sum(0) / max(len(shares) - 1, 1)


def labelled_share(trainer: Trainer) -> Tensor:
    """Return the share of each class in the labelled scans of a trainer; 0 where it only validates, without them."""
    outputs = network_outputs(trainer)
    cases = [] if getattr(trainer, "only_validates", False) else voxels_of_training_cases(trainer)
    return mean_share(cases, outputs)
