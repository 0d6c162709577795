"""One step of cross pseudo supervision on two views: each network labels weak views, its peer learns strong ones.

METHODS: Chen, Yuan, Zeng and Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision" (CVPR 2021),
whose CutMix variant makes the labels before the mixing and learns them on unlabelled images alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.data.views import strong_key
from nnunet_ext.training.agreement import label_counts, region_counts
from nnunet_ext.training.class_balance import ClassBalance
from nnunet_ext.training.confidence import agreeing, label_and_confidence
from nnunet_ext.training.counting import class_counts
from nnunet_ext.training.cps_step import report_of, supervised_loss_of, update_both
from nnunet_ext.training.host import TwoNetworkTrainer
from nnunet_ext.training.mean_teacher_step import Gate, Mixer, PseudoLabelled, to_device
from nnunet_ext.training.pair_scales import AS_THEY_COME, TargetChoice
from nnunet_ext.training.second_geometry import PatchTurner
from nnunet_ext.training.second_network import without_deep_supervision
from nnunet_ext.training.supervised_pair import supervised_pair
from nnunet_ext.training.teacher import Teacher
from nnunet_ext.training.unlabelled import unlabelled_criterion


@dataclass
class CPSViewsStep:
    """Does one step of two networks that learn each other's labels of views that they do not see.

    Each network labels the weak views, without gradient and in training mode; its labels are gated by a gate of its
    own, and mixed with the same boxes as its peer's. Then one network after the other sees the labelled patches and its
    strong views in one forward pass; its loss is ``supervised + weight * unlabelled``, against the peer's labels.

    Attributes:
        networks: The two networks.
        optimizers: Optimisers of the two networks.
        supervised: Loss of labelled patches, ``(outputs, target) -> scalar``.
        unlabelled: Loss of pseudo-labelled patches, ``(outputs, labels, kept, valid, class_weights) -> scalar``.
        autocast: Makes the context of a forward pass.
        device: Where the networks lie.
        number_of_outputs: Channels of the networks' output, K.
        regions: Whether there are overlapping regions instead of exclusive classes.
        both_halves: Whether pseudo-labels of labelled patches are learnt, too.
        gates: Choose the pseudo-labels of network 1 and of network 2 that count; None for all.
        mixer: Exchanges parts of the patches, or None.
        balance: Weighs the classes by the pseudo-labels of both networks, or None.
        grad_scaler: Scaler of the gradients for fp16, or None.
        clip: Largest norm of the gradients of one network.
        turner: Gives the views that are learnt a second geometry, the same for both networks, with labels and masks,
            before they are mixed, or None.
        agree: Whether a label counts only where both networks have it, or its confidence is 0.95 or more.
        teachers: Running means of both networks, which label in their place, without training mode; None for none.
            Whoever calls the step lets them follow afterwards (:meth:`follow`).
        supervised_2: Loss of labelled patches of network 2, None for that of network 1.
        unlabelled_2: Loss of pseudo-labelled patches of network 2, None for that of network 1.
        targets: Which of the labels each network learns, where both have outputs of other sizes.
    """

    networks: tuple[nn.Module, nn.Module]
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    supervised: Callable[[Any, Any], Tensor]
    unlabelled: Callable[..., Tensor]
    autocast: Callable[[], AbstractContextManager]
    device: torch.device
    number_of_outputs: int
    regions: bool = False
    both_halves: bool = False
    gates: tuple[Gate | None, Gate | None] = (None, None)
    mixer: Mixer | None = None
    balance: ClassBalance | None = None
    grad_scaler: Any = None
    clip: float = 12.0
    turner: PatchTurner | None = None
    agree: bool = False
    teachers: tuple[Teacher, Teacher] | None = None
    supervised_2: Callable[[Any, Any], Tensor] | None = None
    unlabelled_2: Callable[..., Tensor] | None = None
    targets: tuple[TargetChoice, TargetChoice] = (AS_THEY_COME, AS_THEY_COME)

    def __call__(self, batch: dict[str, Any], weight: float) -> dict[str, Any]:
        """Train both networks on one batch.

        Args:
            batch: Batch of :class:`~nnunet_ext.data.loaders.TwoStreamLoader`, with two strong views of unlabelled
                patches or with none; without them both networks learn the views that are labelled. Where it has no
                unlabelled patches and pseudo-labels are learnt on those alone, both networks learn labels.
            weight: Weight of the loss of pseudo-labels, lambda; with 0, and pseudo-labels on unlabelled patches alone,
                only the labelled half is looked at.

        Returns:
            As :class:`~nnunet_ext.training.cps_step.CPSStep`; ``counts`` are those of the weak views of unlabelled
            patches before they are mixed. Beside them ``kept_counts`` ``(2, K)``, the labels of network 1 and network 2
            that count, and ``nothing_kept`` ``(2,)``, 1 where of what a network learnt nothing counts.
        """
        target, labelled = (to_device(batch[key], self.device) for key in ("target", "data"))
        if not self.both_halves and (batch.get("unlabeled") is None or weight == 0):
            return supervised_pair(self, labelled, target)
        batch = batch | {"data": labelled, "target": target}  # those on the device
        learned, counts = self.pseudo_labelled(batch)
        class_weights = self._class_weights(learned)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        supervised, cross = [], []
        for number, (network, own) in enumerate(zip(self.networks, learned, strict=True)):
            criterion = self.unlabelled_2 if number == 1 and self.unlabelled_2 is not None else self.unlabelled
            images = own.images if self.both_halves else torch.cat([labelled, own.images])
            with self.autocast():
                output = network(images)
                outputs = list(output) if isinstance(output, (list, tuple)) else [output]
                loss = supervised_loss_of(self, number, [scale[: len(labelled)] for scale in outputs], target)
                with torch.set_grad_enabled(weight != 0):
                    taught = outputs if self.both_halves else [scale[len(labelled) :] for scale in outputs]
                    pseudo = own.loss(criterion, taught, class_weights)
            total = loss + weight * pseudo if weight != 0 else loss
            (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
            supervised.append(loss.detach())
            cross.append(pseudo.detach())
        update_both(self.networks, self.optimizers, self.grad_scaler, self.clip)
        nothing = torch.stack([~own.of_pseudo_labels(own.kept).any() for own in learned])
        more = {"kept_counts": counts[3:], "nothing_kept": nothing}
        return report_of(supervised, cross, counts[:3], target, self.regions, more)

    @torch.no_grad()
    def pseudo_labelled(self, batch: dict[str, Any]) -> tuple[tuple[PseudoLabelled, PseudoLabelled], Tensor]:
        """Return what each network learns: its own views with the labels of its peer, gated and mixed.

        Args:
            batch: Batch of the two-stream loader.

        Returns:
            That of network 1 and of network 2, and the counts of the labels ``(5, K)``: of network 1, of network 2, of
            both, and of those that count of network 1 and of network 2.
        """
        weak, views, valid = self._views(batch)
        labels, sure, kept = [], [], []
        for number, gate in enumerate(self.gates):
            logits = self._label_logits(number, weak)
            own, confidence = label_and_confidence(logits, self.regions)
            labels.append(own)
            sure.append(confidence)
            kept.append(valid.expand_as(confidence) if gate is None else gate(logits, own, confidence, valid))
        if self.agree:
            kept = [kept[n] & agreeing(labels[n], labels[1 - n], sure[n]) for n in (0, 1)]
        counts = self._counts(labels, kept, valid, 0 if batch.get("unlabeled") is None else len(batch["unlabeled"]))
        if self.turner is not None:
            *turned, valid = self.turner(*views, *labels, *kept, valid)
            views, labels, kept = turned[:2], turned[2:4], turned[4:]
        silent = [None if gate is None or self.regions else gate.silent() for gate in self.gates]
        learned = [PseudoLabelled(views[n], labels[1 - n], kept[1 - n], valid, silent=silent[1 - n]) for n in (0, 1)]
        first, second = learned if self.mixer is None else self.mixer.mixed(learned, batch)
        return (first, second), counts

    def state_dict(self) -> dict[str, Any]:
        """Return the state of gates, boxes and weights for a checkpoint."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; a part that was switched off when it was written begins anew."""
        for name, part in self._stateful().items():
            if name in state:
                part.load_state_dict(state[name])
            elif isinstance(part, Teacher):
                part.begin_with(self.networks[0 if name == "teacher" else 1])

    def follow(self) -> None:
        """Let the running means follow the networks, after each step of these, whatever it learnt."""
        for teacher, network in zip(self.teachers or (), self.networks, strict=False):
            teacher.update(network)

    def begin_anew(self) -> None:
        """Let the running means begin with the networks, whose weights have been replaced."""
        for teacher, network in zip(self.teachers or (), self.networks, strict=False):
            teacher.begin_with(network)

    def _stateful(self) -> dict[str, Any]:
        first, second = self.gates
        parts: dict[str, Any] = {"gate": first, "gate_2": second, "mixer": self.mixer, "balance": self.balance}
        parts["turner"] = self.turner
        if self.teachers is not None:
            parts |= {"teacher": self.teachers[0], "teacher_2": self.teachers[1]}
        return {name: part for name, part in parts.items() if part is not None}

    def _label_logits(self, number: int, images: Tensor) -> Tensor:
        """Return what the label maker of one network says of images, at full resolution."""
        if self.teachers is not None:
            with self.autocast():
                return self.teachers[number](images)
        network = self.networks[number]
        with without_deep_supervision(network), self.autocast():
            logits: Tensor = network(images)
        return logits

    def _views(self, batch: dict[str, Any]) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the views that are labelled, those that each network learns, and the mask of valid voxels."""
        names = ["unlabeled"] if not self.both_halves else ["data", "unlabeled"]
        weak = torch.cat([to_device(batch[name], self.device) for name in names if batch.get(name) is not None])
        views = [weak, weak]
        if batch.get(strong_key(2)) is not None and not self.both_halves:
            views = [to_device(batch[strong_key(number)], self.device) for number in (1, 2)]
        valid = torch.ones_like(weak[:, :1], dtype=torch.bool)
        if batch.get("valid") is not None:
            valid = to_device(batch["valid"], self.device)[-len(weak) :] > 0
        return weak, views, valid

    def _counts(self, labels: list[Tensor], kept: list[Tensor], valid: Tensor, unlabelled: int) -> Tensor:
        first, second, mask = (tensor[-unlabelled:] for tensor in (*labels, valid))
        if self.regions:
            counts = region_counts(first, second, mask)
        else:
            counts = label_counts(first, second, mask, self.number_of_outputs)
        if not self.chooses():
            return torch.cat([counts, counts[:2]])
        masks = [mask[-unlabelled:] for mask in kept]
        count = partial(class_counts, outputs=self.number_of_outputs, regions=self.regions)
        chosen = torch.stack([count(own, there) for own, there in zip((first, second), masks, strict=True)]).long()
        return torch.cat([counts, chosen[:, 1] if self.regions else chosen])

    def chooses(self) -> bool:
        """Whether some labels may not count, beside those in padding."""
        return self.agree or any(gate is not None for gate in self.gates)

    def _class_weights(self, learned: tuple[PseudoLabelled, PseudoLabelled]) -> Tensor | None:
        if self.balance is None:
            return None
        first, second = (
            class_counts(own.labels, own.of_pseudo_labels(own.valid), self.number_of_outputs, self.regions)
            for own in learned
        )
        self.balance.observe(first + second)
        return self.balance.weights()


def make_views_step(
    trainer: TwoNetworkTrainer,
    both_halves: bool,
    gates: tuple[Gate | None, Gate | None],
    mixer: Mixer | None,
    balance: ClassBalance | None,
    turner: PatchTurner | None = None,
    agree: bool = False,
    teachers: tuple[Teacher, Teacher] | None = None,
) -> CPSViewsStep:
    """Make the step from a trainer's networks, optimisers and losses.

    Args:
        trainer: Trainer with two networks.
        both_halves: Whether pseudo-labels of labelled patches are learnt, too.
        gates: Choose the pseudo-labels of each network that count.
        mixer: Exchanges parts of the patches.
        balance: Weighs the classes.
        turner: Gives what is learnt a second geometry.
        agree: Whether both networks must have a label that counts.
        teachers: Running means of both networks, which label in their place.
    """
    companion = trainer.companion
    return CPSViewsStep(
        networks=(trainer.network, trainer.network_2),
        optimizers=(trainer.optimizer, trainer.optimizer_2),
        supervised=trainer.loss,
        unlabelled=unlabelled_criterion(trainer),
        autocast=trainer.autocast,
        device=trainer.device,
        number_of_outputs=trainer.label_manager.num_segmentation_heads,
        regions=trainer.label_manager.has_regions,
        both_halves=both_halves,
        gates=gates,
        mixer=mixer,
        balance=balance,
        grad_scaler=trainer.grad_scaler,
        turner=turner,
        agree=agree,
        teachers=teachers,
        supervised_2=None if companion is None else companion.loss,
        unlabelled_2=None if companion is None else unlabelled_criterion(companion),
        targets=trainer.target_choices(),
    )
