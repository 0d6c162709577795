"""One training step of cross pseudo supervision: two networks, two optimisers, one gradient scaler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_ext.losses.cross_pseudo import pseudo_labels
from nnunet_ext.training.agreement import label_counts, region_counts
from nnunet_ext.training.host import TwoNetworkTrainer
from nnunet_ext.training.pair_scales import AS_THEY_COME, TargetChoice, labels_for


@dataclass
class CPSStep:
    """Does one step; holds no state of its own.

    Labelled and unlabelled patches are concatenated before the forward pass, so that a step takes one forward pass a
    network. Each network's loss is ``supervised(labelled half) + weight * cps(both halves, hard labels of the peer)``
    (3D-CPS; the released code's mean over the concatenation).

    Attributes:
        networks: The two networks.
        optimizers: Optimisers of the two networks.
        supervised: Loss of labelled patches, ``(outputs, target) -> scalar``.
        cross_pseudo: Loss against the peer's labels, ``(outputs, labels, valid_mask) -> scalar``; lists over the
            scales.
        autocast: Makes the context of the forward pass.
        device: Where the networks lie.
        number_of_outputs: Channels of the networks' output, K.
        regions: Whether there are overlapping regions instead of exclusive classes.
        grad_scaler: Scaler of the gradients for fp16, or None.
        clip: Largest norm of the gradients of one network.
        supervised_2: Loss of labelled patches of network 2, None for that of network 1.
        cross_pseudo_2: Loss of network 2 against the labels of network 1, None for that of network 1.
        targets: Which of the labels each network learns, where both have outputs of other sizes.
    """

    networks: tuple[nn.Module, nn.Module]
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer]
    supervised: Callable[[Any, Any], Tensor]
    cross_pseudo: Callable[[list[Tensor], list[Tensor], Tensor | None], Tensor]
    autocast: Callable[[], AbstractContextManager]
    device: torch.device
    number_of_outputs: int
    regions: bool = False
    grad_scaler: Any = None
    clip: float = 12.0
    supervised_2: Callable[[Any, Any], Tensor] | None = None
    cross_pseudo_2: Callable[[list[Tensor], list[Tensor], Tensor | None], Tensor] | None = None
    targets: tuple[TargetChoice, TargetChoice] = (AS_THEY_COME, AS_THEY_COME)

    def __call__(self, batch: dict[str, Any], weight: float) -> dict[str, Any]:
        """Train both networks on one batch.

        Args:
            batch: Batch of :class:`~nnunet_ext.data.loaders.TwoStreamLoader`; without ``unlabeled`` the step uses the
                labelled half alone.
            weight: Weight of the CPS loss, lambda.

        Returns:
            ``loss`` and ``loss_2`` (supervised), ``cps`` (mean over the networks), as floats, and ``counts``
            ``(3, K)``: hard labels of network 1, network 2 and both on the unlabelled half (labelled if there is
            none), and ``labelled_counts`` ``(K,)``.
        """
        labelled, target, data, valid = self._to_device(batch)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            outputs = [_as_list(network(data)) for network in self.networks]
        labels = [[pseudo_labels(o, self.regions) for o in output] for output in outputs]

        supervised, cross = [], []
        for learner, peer in ((0, 1), (1, 0)):
            with self.autocast():
                loss = supervised_loss_of(self, learner, [o[:labelled] for o in outputs[learner]], target)
                with torch.set_grad_enabled(weight != 0):
                    criterion = self.cross_pseudo_2 if learner == 1 and self.cross_pseudo_2 else self.cross_pseudo
                    cps = criterion(outputs[learner], labels_for(outputs[learner], labels[peer]), valid)
            total = loss + weight * cps if weight != 0 else loss
            self._backward(total)
            supervised.append(loss.detach())
            cross.append(cps.detach())
        self._update()
        return self._report(supervised, cross, labels, valid, target, labelled)

    def _to_device(self, batch: dict[str, Any]) -> tuple[int, Any, Tensor, Tensor | None]:
        target = batch["target"]
        if isinstance(target, list):
            target = [t.to(self.device, non_blocking=True) for t in target]
        else:
            target = target.to(self.device, non_blocking=True)
        data = batch["data"].to(self.device, non_blocking=True)
        labelled = len(data)
        if batch.get("unlabeled") is not None:
            data = torch.cat([data, batch["unlabeled"].to(self.device, non_blocking=True)])
        valid = batch.get("valid")
        if valid is not None:
            valid = valid.to(self.device, non_blocking=True)
        return labelled, target, data, valid

    def _backward(self, loss: Tensor) -> None:
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()

    def _update(self) -> None:
        update_both(self.networks, self.optimizers, self.grad_scaler, self.clip)

    def _report(
        self,
        supervised: list[Tensor],
        cross: list[Tensor],
        labels: list[list[Tensor]],
        valid: Tensor | None,
        target: Any,
        labelled: int,
    ) -> dict[str, Any]:
        half = slice(labelled, None) if len(labels[0][0]) > labelled else slice(None)
        first, second = labels[0][0][half], labels[1][0][half]
        mask = None if valid is None else valid[half]
        classes = self.number_of_outputs
        counts = region_counts(first, second, mask) if self.regions else label_counts(first, second, mask, classes)
        return report_of(supervised, cross, counts, target, self.regions)


class SupervisedStep(Protocol):
    """A step of two networks, as far as its labelled half goes; :class:`CPSStep` tells what each name is."""

    targets: tuple[TargetChoice, TargetChoice]

    @property
    def supervised(self) -> Callable[[Any, Any], Tensor]:
        """Loss of labelled patches."""
        ...

    @property
    def supervised_2(self) -> Callable[[Any, Any], Tensor] | None:
        """Loss of labelled patches of network 2, None for that of network 1."""
        ...


def supervised_loss_of(step: SupervisedStep, number: int, outputs: list[Tensor], target: Any) -> Tensor:
    """Return the loss of one network on labelled patches.

    Args:
        step: Losses of both networks.
        number: Number of the network, 0 or 1.
        outputs: Its outputs for the labelled patches, highest resolution first.
        target: Labels at the scales of both networks, as nnU-Net's losses get them.
    """
    own = step.targets[number].of(target)
    criterion = step.supervised_2 if number == 1 and step.supervised_2 is not None else step.supervised
    return criterion(outputs if isinstance(own, list) else outputs[0], own)


def update_both(
    networks: tuple[nn.Module, nn.Module],
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    grad_scaler: Any,
    clip: float,
) -> None:
    """Step both optimisers, then update the scaler once, so that both saw the same scale.

    Args:
        networks: The two networks, with gradients.
        optimizers: Their optimisers.
        grad_scaler: Scaler of the gradients, or None.
        clip: Largest norm of the gradients of one network.
    """
    for network, optimizer in zip(networks, optimizers, strict=True):
        if grad_scaler is not None:
            grad_scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        if grad_scaler is None:
            optimizer.step()
        else:
            grad_scaler.step(optimizer)
    if grad_scaler is not None:
        grad_scaler.update()


def report_of(
    supervised: list[Tensor],
    cross: list[Tensor],
    counts: Tensor,
    target: Any,
    regions: bool,
    more: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Return what a step of two networks reports.

    Args:
        supervised: Losses of the labelled patches, of both networks.
        cross: Losses against the peer's labels, of both networks.
        counts: ``(3, K)`` hard labels of network 1, network 2 and both.
        target: Labels of the labelled patches, as nnU-Net's losses get them.
        regions: Whether there are overlapping regions instead of exclusive classes.
        more: Whole numbers that are reported, too, by their names.
    """
    more = {} if more is None else more
    full, classes = target[0] if isinstance(target, list) else target, counts.shape[1]
    if regions:
        true = (full[:, :classes] > 0).sum((0, *range(2, full.ndim)))
    else:
        true = torch.bincount(full.flatten().long().clamp(0, classes), minlength=classes + 1)[:classes]
    losses = torch.stack([*supervised, (cross[0] + cross[1]) / 2]).float()
    # One copy to the host a step, as nnU-Net's own step does for its loss: of integers, the losses by their bits.
    others = [tensor.flatten().long() for tensor in more.values()]
    flat = torch.cat([losses.view(torch.int32).long(), counts.flatten(), true, *others]).cpu().numpy()
    loss, loss_2, cps = flat[:3].astype(np.int32).view(np.float32)
    voxels = flat[3:].astype(float)
    ends = np.cumsum([counts.numel(), classes, *(tensor.numel() for tensor in more.values())])
    counted, labelled, *rest = np.split(voxels, ends[:-1])
    return {
        "loss": float(loss),
        "loss_2": float(loss_2),
        "cps": float(cps),
        "counts": counted.reshape(3, -1),
        "labelled_counts": labelled,
        **{name: part.reshape(tensor.shape) for part, (name, tensor) in zip(rest, more.items(), strict=True)},
    }


def make_step(trainer: TwoNetworkTrainer) -> CPSStep:
    """Make the step from a trainer's networks, optimisers and losses."""
    companion = trainer.companion
    return CPSStep(
        networks=(trainer.network, trainer.network_2),
        optimizers=(trainer.optimizer, trainer.optimizer_2),
        supervised=trainer.loss,
        cross_pseudo=trainer.pseudo_criterion(),
        autocast=trainer.autocast,
        device=trainer.device,
        number_of_outputs=trainer.label_manager.num_segmentation_heads,
        regions=trainer.label_manager.has_regions,
        grad_scaler=trainer.grad_scaler,
        supervised_2=None if companion is None else companion.loss,
        cross_pseudo_2=None if companion is None else companion.pseudo_criterion(),
        targets=trainer.target_choices(),
    )


def _as_list(output: Any) -> list[Tensor]:
    return list(output) if isinstance(output, (list, tuple)) else [output]
