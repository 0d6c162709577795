"""Weights of classes in the cross-entropy of pseudo-labels, by how rare they are.

The bounded weights are ours. For comparison there are those of Wang and Li, "DHC: Dual-debiased Heterogeneous
Co-training Framework for Class-imbalanced Semi-supervised Medical Image Segmentation" (MICCAI 2023), sections 2.2
(share) and 2.3 (difficulty); they give the most frequent class, the background, no weight at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

BOUNDS = (0.25, 4.0)
_CPU = torch.device("cpu")
_TINY = 1e-8


def labelled_counts(
    cases: Iterable[Mapping[int, int]], outputs: Sequence[int | Sequence[int]], ignore_label: int | None = None
) -> Tensor:
    """Add up the voxels of each output of a network.

    Args:
        cases: Voxels by label of each case (:func:`nnunet_ext.data.class_voxels.class_voxels`).
        outputs: Labels ``0`` to ``K - 1``, or the labels of each region.
        ignore_label: Label that counts nowhere, or None.

    Returns:
        ``(K,)`` float64; of regions ``(2, K)``: voxels outside and inside.
    """
    total: dict[int, int] = {}
    for case in cases:
        for label, voxels in case.items():
            label = max(label, 0)  # -1, outside of what was cropped, is trained as background
            total[label] = total.get(label, 0) + voxels
    total.pop(-1 if ignore_label is None else ignore_label, None)
    if not any(isinstance(output, Sequence) for output in outputs):
        return torch.tensor([total.get(int(label), 0) for label in outputs], dtype=torch.float64)  # type: ignore[arg-type]
    regions = [set(output) if isinstance(output, Sequence) else {output} for output in outputs]
    inside = torch.tensor([sum(total.get(label, 0) for label in region) for region in regions], dtype=torch.float64)
    return torch.stack([sum(total.values()) - inside, inside])


def classes_without_labels(counts: Tensor) -> list[int]:
    """Return the outputs that no labelled case has: no weight can teach them."""
    return torch.nonzero((counts[1] if counts.ndim == 2 else counts) == 0).flatten().tolist()


def class_weights(share: Tensor, gamma: float = 0.5, bounds: tuple[float, float] = BOUNDS) -> Tensor:
    """Return weights of classes: a power of their rarity, of mean 1 over the voxels before they are bounded.

    With ``q`` the share: ``u = q^-gamma``, ``w = u / sum(q u)``; a factor of ``u``, such as a mean share, cancels.

    Args:
        share: Voxels or shares of each class, ``(K,)`` or ``(2, K)``: outside and inside of each region.
        gamma: How much rarity counts; 0 gives every class 1.
        bounds: Least and largest weight; a class of no voxel has the largest.

    Returns:
        Weights, like ``share``.
    """
    if gamma == 0:
        return torch.ones_like(share)
    share = share / share.sum(0).clamp_min(_TINY)
    present = share > 0
    safe = torch.where(present, share, 1.0)
    rarity = safe**-gamma
    weights = rarity / (share * rarity).sum(0).clamp_min(_TINY)
    return torch.where(present, weights.clamp(*bounds), bounds[1])


class ClassBalance:
    """Weights of classes from the labelled cases, and from what was lately pseudo-labelled, half and half.

    Args:
        labelled: Voxels of each class in the labelled cases, as :func:`labelled_counts` returns them.
        gamma: How much rarity counts; 0 switches the weights off.
        decay: What the counts of earlier steps are multiplied by at each step.
        device: Where the networks lie.
        sum_over_processes: Returns the sum of a tensor over the processes of DDP; ``None`` in one process.

    Raises:
        ValueError: If gamma is negative.
    """

    def __init__(
        self,
        labelled: Tensor,
        gamma: float = 0.5,
        decay: float = 0.99,
        device: torch.device = _CPU,
        sum_over_processes: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not gamma >= 0:
            raise ValueError(f"the exponent of class weights must be 0 or more, got {gamma}; 0 switches them off")
        self.gamma, self.decay = gamma, decay
        self._sum = sum_over_processes
        self._labelled = _shares(labelled).float().to(device)
        self._pseudo = torch.zeros_like(self._labelled)

    def observe(self, counts: Tensor) -> None:
        """Take in the pseudo-labels of a step: :func:`nnunet_ext.training.counting.class_counts`."""
        self._pseudo.mul_(self.decay).add_(counts if self._sum is None else self._sum(counts))

    def weights(self) -> Tensor:
        """Return the weights of the cross-entropy, ``(K,)`` or ``(2, K)``, on the device."""
        return class_weights(self._labelled + _shares(self._pseudo), self.gamma)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; the labelled cases are counted anew."""
        return {"pseudo": self._pseudo.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self._pseudo.copy_(state["pseudo"])


def dhc_share_weights(counts: Tensor) -> Tensor:
    """Return DHC's weights by share: ``K log(max N / N_k) / max_j log(max N / N_j)``, 1 where all are equal.

    Args:
        counts: Voxels of each class, ``(K,)``.
    """
    rarity = (counts.max() / (counts + _TINY)).log().clamp_min(0)
    highest = rarity.max()
    return torch.where(highest > _TINY, len(counts) * rarity / highest.clamp_min(_TINY), 1.0)


def decayed(before: Tensor, now: Tensor, decay: float = 0.99) -> Tensor:
    """Return a running mean, as DHC's weights are: ``decay * before + (1 - decay) * now``."""
    return decay * before + (1 - decay) * now


class DhcDifficulty:
    """DHC's weights by difficulty, from how the Dice of each class changes.

    Args:
        outputs: Number of classes, K.
        decay: Of the running means.
        device: Where the Dice comes from.
    """

    def __init__(self, outputs: int, decay: float = 0.98, device: torch.device = _CPU) -> None:
        self.decay = decay
        self._last = torch.full((outputs,), _TINY, device=device)
        self._learn, self._unlearn = torch.zeros((2, outputs), device=device)
        self._lack = torch.ones(outputs, device=device)

    def observe(self, dice: Tensor) -> Tensor:
        """Take in the hard Dice of the labelled patches of a step ``(K,)``, and return the weights."""
        change = dice - self._last
        ratio = (dice.clamp_min(_TINY) / self._last.clamp_min(_TINY)).log()
        self._learn = decayed(self._learn, change.clamp_min(0) * ratio, self.decay)
        self._unlearn = decayed(self._unlearn, change.clamp_max(0) * ratio, self.decay)
        self._lack = decayed(self._lack, 1 - dice, self.decay)
        self._last = dice
        weights = ((self._unlearn + _TINY) / (self._learn + _TINY)) ** 0.2 * self._lack
        return len(dice) * weights / weights.max().clamp_min(_TINY)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        state = {"last": self._last, "learn": self._learn, "unlearn": self._unlearn, "lack": self._lack}
        return {name: tensor.cpu().clone() for name, tensor in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        device = self._last.device
        self._last, self._learn, self._unlearn, self._lack = (
            state[name].to(device) for name in ("last", "learn", "unlearn", "lack")
        )


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(0).clamp_min(_TINY)
