"""The final validation of propagation: true labels of a few slices are carried through each case of the fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from nnunet_ext.plugin import compat
from nnunet_ext.propagation.driver import Propagated, PropagationSettings, propagate
from nnunet_ext.propagation.references import largest_slices
from nnunet_ext.trainers.base import ExtPart
from nnunet_ext.training.checkpoints import plain_module

LEAST_PROBABILITY = 1e-7


class TrueReferences:
    """Stands for nnU-Net's predictor in its final validation: what is validated is propagation of true labels.

    Args:
        trainer: The trainer, for device, labels and the number of cases.

    Attributes:
        labels: Preprocessed labels ``(1, T, H, W)`` of the case that was read last.
        slices: Slices of all cases, and those of them that were given, in order.
    """

    def __init__(self, trainer: ExtPart) -> None:
        self.trainer = trainer
        self.labels: Any = None
        self.slices: list[tuple[int, int]] = []
        self.network: nn.Module | None = None
        self.bar: tqdm | None = None

    def manual_initialization(self, network: nn.Module, *_: Any) -> None:
        """Take the network, as nnU-Net's predictor does."""
        self.network = plain_module(network)

    def remembering(self, dataset_class: Any) -> type:
        """Return a class of datasets that leaves the labels of each case that it reads here."""
        references = self

        class Remembering(dataset_class):  # type: ignore[misc]
            def load_case(self, identifier: str) -> Any:
                """Read a case as ever."""
                case = super().load_case(identifier)
                references.labels = case[1]
                if references.bar is None:
                    references.bar = tqdm(total=len(self.identifiers), desc="propagating", unit="case")
                return case

        return Remembering

    def predict_sliding_window_return_logits(self, data: Tensor) -> Tensor:
        """Propagate the true labels of the largest slices of the case that was read last.

        Args:
            data: ``(C, T, H, W)``.

        Returns:
            ``(heads, T, H, W)``: logits of nnU-Net's heads.
        """
        if self.network is None:
            raise RuntimeError("there is no network to predict with; call manual_initialization first")
        manager = self.trainer.label_manager
        labels = reference_labels(self.labels[0], manager.ignore_label)
        indices = largest_slices(labels, list(range(len(labels))), manager.foreground_labels)
        self.slices.append((len(labels), len(indices)))
        found = None
        if indices:
            references = {index: labels[index] for index in indices}
            with self.trainer.autocast():
                found = propagate([self.network], data, references, self.trainer.device, PropagationSettings())
        if self.bar is not None:
            self.bar.update()
        return logits_of_heads(found, labels.shape, manager)


def reference_labels(labels: Any, ignored: int | None) -> np.ndarray:
    """Return preprocessed labels as the driver takes them: below 0 where a pixel does not count, background else.

    Args:
        labels: ``(T, H, W)``, -1 where nnU-Net has masked background out.
        ignored: Label of pixels that do not count, or None.
    """
    there = np.asarray(labels).astype(np.int16)
    return np.where(there == ignored, -1, np.maximum(there, 0)) if ignored is not None else np.maximum(there, 0)


def logits_of_heads(found: Propagated | None, shape: Sequence[int], labels: Any) -> Tensor:
    """Return logits as nnU-Net's networks have them, whose softmax, or sigmoid of regions, is what was propagated.

    Args:
        found: What was propagated; None for background alone.
        shape: Of the volume.
        labels: nnU-Net's LabelManager.

    Returns:
        ``(heads, *shape)`` float16.
    """
    classes = [0] if found is None else [0, *found.classes]
    of_classes = torch.ones((1, *shape)) if found is None else found.probabilities
    wanted = labels.foreground_regions if labels.has_regions else labels.all_labels
    logits = torch.empty((len(wanted), *shape), dtype=torch.float16)
    for head, region in enumerate(wanted):
        members = [int(label) for label in np.atleast_1d(np.asarray(region))]
        places = [place for place, label in enumerate(classes) if label in members]
        # one head after the other: in float32 all of them take twice the memory of the result
        probs = sum((of_classes[place].float() for place in places), torch.zeros(tuple(shape)))
        probs = probs.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        logits[head] = torch.logit(probs) if labels.has_regions else probs.log()
    return logits


def _of_all_processes(trainer: ExtPart, slices: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the entries of all processes, among which nnU-Net shares the cases."""
    if not trainer.is_ddp:
        return slices
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, slices)
    return [entry for of_process in gathered for entry in of_process]


def validate(trainer: ExtPart, as_ever: Callable[[], None]) -> None:
    """Run nnU-Net's final validation with propagation in place of its prediction, and say what it measured.

    Args:
        trainer: A trainer with the part ``Propagation``, once it has trained.
        as_ever: nnU-Net's validation of the trainer.

    Raises:
        RuntimeError: If nnU-Net did not ask for the predictions.
    """
    references, dataset_class = TrueReferences(trainer), trainer.dataset_class
    trainer.dataset_class = references.remembering(dataset_class)
    try:
        with compat.validation_predicts_by(lambda *_, **__: references):
            as_ever()
    finally:
        trainer.dataset_class = dataset_class
        if references.bar is not None:
            references.bar.close()
    if references.network is None:
        raise RuntimeError(
            "nnU-Net's validation did not ask for the propagated labels, so that there is none; use an nnunetv2 that "
            f"this version of nnunet_ext was made for ({compat.SUPPORTED})"
        )
    counted = _of_all_processes(trainer, references.slices)
    slices, given = (sum(numbers) for numbers in zip((0, 0), *counted, strict=True))
    trainer.print_to_log_file(
        f"This validation measured propagation alone: {given} of {slices} slices ({given / max(1, slices):.1%}) were "
        "given with their true labels, in each case the one with the largest area of each class, and the others were "
        "found from them; the Dice is that of whole volumes"
    )
