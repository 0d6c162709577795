"""Labelled and unlabelled patches put together by a box, both ways, and the loss of what comes out.

METHODS: Bai, Chen, Li, Shen and Wang, "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation" (CVPR
2023). Not in the paper: labelled patches are learnt beside the mixed ones, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.losses.unlabelled import bcp_loss
from nnunet_ext.training.mean_teacher_step import PseudoLabelled, to_device
from nnunet_ext.training.mixing import BoxGenerator, is_inward, keep_position, labelled_part, mix, to_scales


class BCPCriterion(nn.Module):
    """Dice + cross-entropy of mixed patches, of the labelled and of the pseudo-labelled part, over all scales.

    Labels and masks come at full resolution, and are brought to each scale by nnU-Net's rule for targets (nearest).

    Args:
        weights: Weight of each output; outputs of weight 0 are skipped.
        regions: Whether there are overlapping regions instead of exclusive classes.
        pseudo_weight: Weight of the pseudo-labelled part; that of the labelled one is 1.
        compile_loss: Whether to compile the loss of one scale.
    """

    def __init__(
        self, weights: Sequence[float], regions: bool, pseudo_weight: float = 0.5, compile_loss: bool = False
    ) -> None:
        super().__init__()
        if not any(weights):
            raise ValueError(f"at least one deep supervision weight must differ from 0, got {tuple(weights)}")
        self.weights, self.regions, self.pseudo_weight = tuple(weights), regions, pseudo_weight
        self._function: Callable[..., Tensor] = torch.compile(bcp_loss) if compile_loss else bcp_loss

    def forward(
        self,
        outputs: list[Tensor],
        labels: Tensor,
        kept: Tensor,
        labelled: Tensor,
        valid: Tensor,
        class_weights: Tensor | None = None,
        silent: Tensor | None = None,
        weights: Sequence[float] | None = None,
    ) -> Tensor:
        """Return the weighted sum over the scales, each the mean over the patches.

        Args:
            outputs: Logits ``(B, K, *S_i)``, highest resolution first.
            labels: Classes ``(B, 1, *S)``, or ``(B, K, *S)`` bool of regions.
            kept: Mask of the labels that count, ``(B, 1, *S)`` or ``(B, K, *S)``.
            labelled: Mask ``(B, 1, *S)`` of the labelled part.
            valid: Mask ``(B, 1, *S)`` of voxels that are neither padding nor outside of the scan.
            class_weights: Weights of the classes in the cross-entropy of pseudo-labels, None for 1.
            silent: Classes ``(K,)`` bool that the pseudo-labels say nothing of, None for none; not for regions.
            weights: Weights of the outputs in place of the criterion's, for a network with others.
        """
        sizes = [logits.shape[2:] for logits in outputs]
        at_scales = zip(*(to_scales(part, sizes) for part in (labels, kept, labelled, valid)), strict=True)
        losses = [
            weight * self._function(logits, *parts, class_weights, self.pseudo_weight, self.regions, silent=silent)
            for weight, logits, parts in zip(weights or self.weights, outputs, at_scales, strict=True)
            if weight != 0
        ]
        return torch.stack(losses).sum()


@dataclass
class CopyPasted(PseudoLabelled):
    """Patches of which one part is labelled and the other pseudo-labelled.

    Attributes:
        labelled: Mask ``(B, 1, *S)`` of the labelled part.
        criterion: Their loss.
    """

    labelled: Tensor
    criterion: BCPCriterion

    def loss(self, criterion: Callable[..., Tensor], outputs: list[Tensor], class_weights: Tensor | None) -> Tensor:
        """Return the loss of both parts instead of that of patches that are pseudo-labelled everywhere."""
        weights = getattr(criterion, "weights", None)  # two networks of a pair may have other outputs
        parts = (self.labels, self.kept, self.labelled, self.valid)
        return self.criterion(outputs, *parts, class_weights, self.silent, weights)

    def of_pseudo_labels(self, mask: Tensor) -> Tensor:
        """Return what of a mask lies in the pseudo-labelled part."""
        return (mask > 0) & ~self.labelled


class BCPMixer:
    """Puts labelled and unlabelled patches together: patch n with patch n, one box a batch, both ways by turns.

    Even patches are labelled outside the box and odd ones inside; a batch of one takes turns from step to step, and
    processes of DDP take turns beside each other. Where there are more labelled patches than unlabelled ones the last
    take no part; where there are fewer they are taken again.

    Args:
        criterion: Loss of the mixed patches.
        probability: Probability that the unlabelled patches of a step are mixed; all processes decide alike, as the
            losses of mixed and of other patches are not summed over processes in the same way.
        warmup_probability: Probability that the labelled patches of a step are mixed while they teach alone.
        ignore_label: Label of voxels to ignore, None if there is none. Regions have a last channel for it.
        seeds: Seeds of the boxes, another one for each process, and of the decision, the same for all.
        rank: Number of the process.
        position: Whether the last channel of images is the position of the slice, which stays that of the patch around
            the box.
    """

    def __init__(
        self,
        criterion: BCPCriterion,
        probability: float = 1.0,
        warmup_probability: float = 0.5,
        ignore_label: int | None = None,
        seeds: tuple[int, int] = (0, 1),
        rank: int = 0,
        position: bool = False,
    ) -> None:
        self.criterion, self.ignore_label, self.rank, self.position = criterion, ignore_label, rank, position
        self.probability, self.warmup_probability = probability, warmup_probability
        self.generator = BoxGenerator(seeds[0])
        self.decisions = torch.Generator().manual_seed(seeds[1])
        self.steps = 0

    def mixed(self, learned: Sequence[PseudoLabelled], batch: dict[str, Any]) -> list[PseudoLabelled]:
        """Return unlabelled patches mixed with the labelled ones of the batch, all by the same box, out of place."""
        images = learned[0].images
        outside = self.generator.bcp_box(images.shape[2:], device=images.device)
        decision = torch.rand(1, generator=self.decisions, dtype=torch.float64).item()
        first = self.steps + self.rank if len(images) == 1 else 0
        self.steps += 1
        if decision >= self.probability:
            return list(learned)
        data, target = to_device(batch["data"], images.device), _whole(batch["target"]).to(images.device)
        pairs = torch.arange(len(images), device=images.device) % len(data)
        part = labelled_part(outside, len(images), first)
        mixed = [self._pasted(one, part, data[pairs], target[pairs]) for one in learned]
        if self.position:
            inward = is_inward(len(images), first, images)
            for new, old in zip(mixed, learned, strict=True):
                around = torch.where(inward, data[pairs][:, -1:], old.images[:, -1:])
                new.images = keep_position(new.images, around)
        return list(mixed)

    def in_warmup(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """Return a batch whose labelled patches have, now and then, a box of the next one, with its labels.

        Args:
            batch: Batch with ``data`` and ``target``.
            device: Where they are needed.
        """
        data, target = to_device(batch["data"], device), to_device(batch["target"], device)
        if len(data) == 1 or self.warmup_probability == 0:
            return batch
        outside = self.generator.bcp_box(data.shape[2:], self.warmup_probability, device)
        whole = mix(outside, _whole(target))
        scales = to_scales(whole, [scale.shape[2:] for scale in target]) if isinstance(target, list) else whole
        mixed = mix(outside, data)
        return batch | {"data": keep_position(mixed, data) if self.position else mixed, "target": scales}

    def reseed(self, seed: int) -> None:
        """Draw boxes from another seed from now on; the decision stays that of all processes."""
        self.generator = BoxGenerator(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return self.generator.state_dict() | {"decisions": self.decisions.get_state(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.generator.load_state_dict(state)
        self.decisions.set_state(state["decisions"].cpu())
        self.steps = int(state["steps"])

    def _pasted(self, learned: PseudoLabelled, part: Tensor, data: Tensor, target: Tensor) -> CopyPasted:
        labels, there = self._labels(target, learned.labels)
        return CopyPasted(
            images=mix(part, data, learned.images),
            labels=mix(part, labels, learned.labels),
            kept=mix(part, there, learned.kept > 0),
            valid=part | (learned.valid > 0),  # padding of labelled patches is background, as in nnU-Net's own loss
            labelled=part,
            criterion=self.criterion,
            silent=learned.silent,
        )

    def _labels(self, target: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the labels of a target in the form of pseudo-labels, and where they are not to be ignored."""
        if self.criterion.regions:
            channels = like.shape[1]
            ignored = target[:, channels:].any(1, keepdim=True)
            return (target[:, :channels] > 0).to(like.dtype), ~ignored.expand_as(like)
        there = torch.ones_like(target, dtype=torch.bool) if self.ignore_label is None else target != self.ignore_label
        return torch.where(there, target, 0).to(like.dtype), there


def _whole(target: Any) -> Tensor:
    """Return a target at full resolution."""
    return target[0] if isinstance(target, list) else target
