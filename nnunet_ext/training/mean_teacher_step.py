"""One training step of a mean teacher: the teacher labels weak views, the student learns strong ones.

METHODS: Tarvainen and Valpola, "Mean teachers are better role models" (2017), with the two views of "Rethinking Data
Perturbation and Model Stabilization for Semi-supervised Medical Image Segmentation" (DPMS, 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ext.losses.cross_pseudo import pseudo_labels
from nnunet_ext.training.class_balance import ClassBalance
from nnunet_ext.training.confidence import label_and_confidence
from nnunet_ext.training.counting import class_counts
from nnunet_ext.training.second_geometry import PatchTurner


class Gate(Protocol):
    """Decides which pseudo-labels count; :class:`~nnunet_ext.training.confidence.ConfidenceGate` is one."""

    def __call__(self, logits: Tensor, labels: Tensor, confidence: Tensor, valid: Tensor | None) -> Tensor:
        """Return the mask of what is kept, as large as the labels."""
        ...

    def silent(self) -> Tensor | None:
        """Return the exclusive classes ``(K,)`` bool that the labels say nothing of; None for none, and for regions."""
        ...

    def kept_share(self) -> Tensor:
        """Return the share of each class's labels that was lately kept, of regions outside and inside."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        ...


class Mixer(Protocol):
    """Exchanges parts of patches: :class:`~nnunet_ext.training.mixing.BoxMixer`, or ``BCPMixer`` beside it."""

    def mixed(self, learned: Sequence[PseudoLabelled], batch: dict[str, Any]) -> list[PseudoLabelled]:
        """Return unlabelled patches, those of each network, mixed alike and out of place.

        Args:
            learned: Unlabelled patches with their labels.
            batch: The batch, whose labelled patches may take part.
        """
        ...

    def reseed(self, seed: int) -> None:
        """Draw from another seed from now on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        ...


@dataclass
class PseudoLabelled:
    """Unlabelled patches as the student sees them, with what it learns them by.

    Attributes:
        images: Strong views ``(B, C, *S)``.
        labels: Classes ``(B, 1, *S)``, or regions ``(B, K, *S)`` bool.
        kept: Mask of the pseudo-labels that count, ``(B, 1, *S)``, or ``(B, K, *S)`` for regions.
        valid: Mask ``(B, 1, *S)`` of voxels that are neither padding nor outside of the scan.
        silent: Exclusive classes ``(K,)`` bool that the labels say nothing of, None for none.
    """

    images: Tensor
    labels: Tensor
    kept: Tensor
    valid: Tensor
    silent: Tensor | None = field(default=None, kw_only=True)

    def loss(self, criterion: Callable[..., Tensor], outputs: list[Tensor], class_weights: Tensor | None) -> Tensor:
        """Return what the student's outputs cost.

        Args:
            criterion: Loss of pseudo-labelled patches, ``(outputs, labels, kept, valid, class_weights) -> scalar``;
                also takes ``silent`` where there are such classes.
            outputs: Logits of the student, highest resolution first.
            class_weights: Weights of the classes, None for 1.
        """
        silent = {} if self.silent is None else {"silent": self.silent}
        return criterion(outputs, self.labels, self.kept, self.valid, class_weights, **silent)

    def of_pseudo_labels(self, mask: Tensor) -> Tensor:
        """Return what of a mask, :attr:`kept` or :attr:`valid`, lies on pseudo-labels: here all of it."""
        return mask


@dataclass
class MeanTeacherStep:
    """Does one step of the student; whoever calls it updates the teacher afterwards.

    Labelled patches and strong views go through the student in one forward pass. The loss is ``supervised + weight *
    unlabelled``; pseudo-labels count on the unlabelled half alone, labelled voxels have better ones.

    Attributes:
        network: The student.
        optimizer: Optimiser of the student.
        teacher: The teacher: images -> logits at full resolution.
        supervised: Loss of labelled patches, ``(outputs, target) -> scalar``.
        unlabelled: Loss of pseudo-labelled patches, ``(outputs, labels, kept, valid, class_weights) -> scalar``.
        autocast: Makes the context of a forward pass.
        device: Where the networks lie.
        number_of_outputs: Channels of the network's output, K.
        regions: Whether there are overlapping regions instead of exclusive classes.
        gate: Chooses the pseudo-labels that count, or None for all.
        mixer: Exchanges parts of the patches, or None.
        balance: Weighs the classes of the pseudo-labels, or None.
        grad_scaler: Scaler of the gradients for fp16, or None.
        clip: Largest norm of the gradients.
        turner: Gives the strong views a second geometry, with their labels and masks, before they are mixed, or None.
        labelling: Makes the context of the teacher's forward pass; None takes that of the student's.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    teacher: Callable[[Tensor], Tensor]
    supervised: Callable[[Any, Any], Tensor]
    unlabelled: Callable[..., Tensor]
    autocast: Callable[[], AbstractContextManager]
    device: torch.device
    number_of_outputs: int
    regions: bool = False
    gate: Gate | None = None
    mixer: Mixer | None = None
    balance: ClassBalance | None = None
    grad_scaler: Any = None
    clip: float = 12.0
    turner: PatchTurner | None = None
    labelling: Callable[[], AbstractContextManager] | None = None

    def __call__(self, batch: dict[str, Any], weight: float) -> dict[str, Any]:
        """Train the student on one batch.

        Args:
            batch: Batch of :class:`~nnunet_ext.data.loaders.TwoStreamLoader` with ``unlabeled_strong``.
            weight: Weight of the loss of pseudo-labels, lambda; with 0 only the labelled half is looked at.

        Returns:
            ``loss`` (supervised) and ``unlabeled_loss`` (None where no pseudo-labels were made) as floats; ``counts``
            ``(3, K)``, hard labels of the teacher, of the student and of both on the strong views, where there are
            pseudo-labels; ``kept_counts`` ``(K,)``, those that count, by the teacher's label; ``labelled_counts``
            ``(K,)``; ``nothing_kept``, 1 where there were pseudo-labels and none of them counts, else 0.
        """
        target = to_device(batch["target"], self.device)
        labelled = to_device(batch["data"], self.device)
        full = target[0] if isinstance(target, list) else target
        batch = batch | {"data": labelled, "target": target}  # those on the device
        learned = self.pseudo_labelled(batch) if weight != 0 else None
        images = labelled if learned is None else torch.cat([labelled, learned.images])
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            output = self.network(images)
            outputs = list(output) if isinstance(output, (list, tuple)) else [output]
            halves = [scale[: len(labelled)] for scale in outputs]
            loss = self.supervised(halves if isinstance(target, list) else halves[0], target)
            unlabelled = torch.zeros_like(loss)
            if learned is not None:
                half = [scale[len(labelled) :] for scale in outputs]
                unlabelled = learned.loss(self.unlabelled, half, self._class_weights(learned))
        self._update(loss if learned is None else loss + weight * unlabelled)
        student = None if learned is None else outputs[0][len(labelled) :].detach()
        return self._report(loss, unlabelled, learned, student, full)

    @torch.no_grad()
    def pseudo_labelled(self, batch: dict[str, Any]) -> PseudoLabelled:
        """Return the unlabelled half of a batch, labelled by the teacher on the weak views, then gated and mixed.

        Args:
            batch: Batch of the two-stream loader.
        """
        weak, strong = to_device(batch["unlabeled"], self.device), to_device(batch["unlabeled_strong"], self.device)
        with (self.labelling or self.autocast)():
            logits = self.teacher(weak)
        labels, confidence = label_and_confidence(logits, self.regions)
        valid = torch.ones_like(labels[:, :1], dtype=torch.bool)
        if batch.get("valid") is not None:
            valid = to_device(batch["valid"], self.device)[-len(weak) :] > 0
        kept = valid.expand_as(confidence) if self.gate is None else self.gate(logits, labels, confidence, valid)
        if self.turner is not None:
            strong, labels, kept, valid = self.turner(strong, labels, kept, valid)
        silent = None if self.gate is None or self.regions else self.gate.silent()
        learned = PseudoLabelled(strong, labels, kept, valid, silent=silent)
        return learned if self.mixer is None else self.mixer.mixed([learned], batch)[0]

    def _class_weights(self, learned: PseudoLabelled) -> Tensor | None:
        if self.balance is None:
            return None
        there = learned.of_pseudo_labels(learned.valid)
        self.balance.observe(class_counts(learned.labels, there, self.number_of_outputs, self.regions))
        return self.balance.weights()

    def _update(self, loss: Tensor) -> None:
        if self.grad_scaler is None:
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
            self.optimizer.step()
            return
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    @torch.no_grad()
    def _report(
        self, loss: Tensor, unlabelled: Tensor, learned: PseudoLabelled | None, student: Tensor | None, full: Tensor
    ) -> dict[str, Any]:
        classes = self.number_of_outputs
        true = self._classes(full[:, :classes] if self.regions else full, None)
        counts, kept = true.new_zeros((3, classes)), true.new_zeros(classes)
        nothing = true.new_zeros(())
        if learned is not None and student is not None:
            counts, kept = self._counts(learned, student)
            nothing = ~learned.of_pseudo_labels(learned.kept).any()
        # One copy to the host a step, as nnU-Net's own step does for its loss: of integers, the losses by their bits.
        losses = torch.stack([loss.detach(), unlabelled.detach()]).float().view(torch.int32).long()
        flat = torch.cat([losses, *(part.flatten().long() for part in (counts, kept, true, nothing))]).cpu().numpy()
        supervised, pseudo = flat[:2].astype(np.int32).view(np.float32)
        voxels = flat[2:].astype(float)
        return {
            "loss": float(supervised),
            "unlabeled_loss": None if learned is None else float(pseudo),
            "counts": voxels[: 3 * classes].reshape(3, classes),
            "kept_counts": voxels[3 * classes : 4 * classes],
            "labelled_counts": voxels[4 * classes : -1],
            "nothing_kept": int(voxels[-1]),
        }

    def _counts(self, learned: PseudoLabelled, student: Tensor) -> tuple[Tensor, Tensor]:
        labels, valid = learned.labels, learned.of_pseudo_labels(learned.valid) > 0
        if self.regions:
            guess, both = student > 0, labels & (student > 0)
        else:
            guess = pseudo_labels(student)
            both = torch.where(labels == guess, labels, -1)
        counts = torch.stack([self._classes(part, valid) for part in (labels, guess, both)])
        return counts, self._classes(labels, learned.of_pseudo_labels(learned.kept))

    def _classes(self, labels: Tensor, there: Tensor | None) -> Tensor:
        counts = class_counts(labels, there, self.number_of_outputs, self.regions)
        return counts[1] if self.regions else counts


def to_device(data: Any, device: torch.device) -> Any:
    """Bring a tensor, or each of a list, to a device."""
    if isinstance(data, list):
        return [to_device(item, device) for item in data]
    return data.to(device, non_blocking=True)
