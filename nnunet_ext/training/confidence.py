"""Which pseudo-labels are learnt from: their confidence, thresholds of it, and a guard against losing a class.

The threshold for all classes is that of Zhao, Wang, Wang, Zhou, Wu and Zhou, "Alternate Diverse Teaching for
Semi-supervised Medical Image Segmentation" (2024, "AD-MT"), section 4, and of Yang, Qi, Feng, Zhang and Shi,
"Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation" (CVPR 2023), section 3; that of each
class is the class-balanced self-training of Zou, Yu, Kumar and Wang, "Unsupervised Domain Adaptation for Semantic
Segmentation via Class-Balanced Self-Training" (ECCV 2018), section 4, from running histograms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.losses import pseudo_labels
from nnunet_ext.training.counting import counts_of

BINS = 100
GATES = ("global", "per_class")
_MISSING_BELOW, _BACK_ABOVE = 0.2, 0.4  # of a class's share in the labelled scans
_SEEN = 0.5  # of all that decayed counts ever hold, from which on they say that a class is missing
_UNSEEN_BELOW, _SEEN_ABOVE = 0.25, 0.5  # of a class's share in the labelled scans
_SUSPECT = 0.1  # probability of a missing class at which the background is not believed
_CPU = torch.device("cpu")


def label_and_confidence(logits: Tensor, regions: bool = False) -> tuple[Tensor, Tensor]:
    """Return hard labels and how sure they are, without gradient.

    Args:
        logits: ``(B, K, *S)``, of the label maker at full resolution.
        regions: Channels are overlapping regions (sigmoid) instead of exclusive classes (softmax).

    Returns:
        Labels as of :func:`~nnunet_ext.losses.pseudo_labels`, and the probability of the label, in float32 (float64
        stays): ``(B, 1, *S)``, or with ``regions`` ``(B, K, *S)``, where it is that of the region or of its outside.

    Raises:
        TypeError: If logits are no tensor, or not of a floating-point type.
        ValueError: If logits have no axes, or one channel for exclusive classes.
    """
    labels = pseudo_labels(logits, regions)
    logits = _exact(logits.detach())
    if regions:
        return labels, logits.abs().sigmoid()
    return labels, (logits.gather(1, labels) - logits.logsumexp(1, keepdim=True)).exp()


def agreeing(labels: Tensor, peer_labels: Tensor, confidence: Tensor, certain: float = 0.95) -> Tensor:
    """Return where two networks label alike, or the one that teaches is certain, as bool.

    Args:
        labels: Of the network that teaches.
        peer_labels: Of the network that learns, like ``labels``.
        confidence: Of ``labels``.
        certain: Confidence that needs no agreement.
    """
    return (labels == peer_labels) | (confidence >= certain)


def class_thresholds(histogram: Tensor, threshold: float = 0.8, keep: float = 0.8) -> Tensor:
    """Return the highest threshold of each class, up to a given one, that keeps a share of what is labelled with it.

    Args:
        histogram: ``(G, 100)`` voxels of each class by confidence, in bins of 0.01.
        threshold: Highest threshold, and that of classes without voxels.
        keep: Least share of the voxels of a class at or above its threshold.

    Returns:
        ``(G,)``.
    """
    at_least = histogram.flip(1).cumsum(1).flip(1)
    enough = at_least >= keep * at_least[:, :1]
    bins = torch.arange(BINS, device=histogram.device)
    found = torch.where(enough, bins, 0).amax(1).to(histogram.dtype) / BINS
    return torch.where(at_least[:, 0] > 0, found, threshold).clamp_max(threshold)


class ConfidenceGate:
    """Decides which pseudo-labels are kept, from what it has seen of their confidence.

    Everything stays on the device; no call waits for it. With ``threshold`` 0 and no guard every valid voxel is kept.

    Args:
        outputs: Channels of the network, K.
        threshold: Confidence from which a label is kept.
        gate: ``"global"``: the threshold is that of all classes; ``"per_class"``: it is the highest one, and lower for
            a class of which it would keep too little.
        keep: Least share of each class that ``"per_class"`` keeps.
        silence: Whether labels say nothing of a class that whoever makes them cannot see yet: from the start, and again
            below a quarter of its share in the labelled scans, until it has half of it; judged from 69 steps on.
            The loss is told of exclusive classes (:meth:`silent`); of regions outsides are dropped. With ``threshold``
            0 nothing else is.
        guard: Whether to doubt the background where a class that the labelled scans have goes missing: below 0.2 of
            its share in them, and until it is back at 0.4, background labels are dropped where its probability is 0.1
            or more. A class is judged once half of what decayed counts hold has been seen, 69 steps at 0.99.
        regions: Channels are overlapping regions; inside and outside of each have a threshold of their own, and the
            guard doubts the outside.
        decay: What the counts of earlier steps are multiplied by at each step.
        device: Where the networks lie.
        sum_over_processes: Returns the sum of a tensor over the processes of DDP; ``None`` in one process.
        labelled_share: Share of each class in whole labelled scans, ``(K,)``
            (:func:`~nnunet_ext.training.labelled_scans.labelled_share`); silence and guard need it. Patches that are
            drawn for their foreground would show more of small classes than a perfect label maker finds.

    Raises:
        ValueError: If a setting makes no sense, or there is silence or a guard without the shares.
    """

    def __init__(
        self,
        outputs: int,
        threshold: float = 0.8,
        gate: str = "global",
        keep: float = 0.8,
        guard: bool = False,
        regions: bool = False,
        decay: float = 0.99,
        device: torch.device = _CPU,
        sum_over_processes: Callable[[Tensor], Tensor] | None = None,
        labelled_share: Tensor | None = None,
        silence: bool = False,
    ) -> None:
        _check_settings(threshold, gate, keep, decay)
        if (guard or silence) and labelled_share is None:
            which = "guard" if guard else "silence"
            raise ValueError(f"the {which} compares with whole labelled scans: give labelled_share, or {which}=False")
        self.outputs, self.regions = outputs, regions
        self.threshold, self.gate, self.keep, self.guard, self.decay = threshold, gate, keep, guard, decay
        self._sum = sum_over_processes
        groups = 2 * outputs if regions else outputs
        self._histogram = torch.zeros((groups, BINS), device=device)
        self._kept = torch.zeros(groups, device=device)
        self.labelled_share = torch.zeros(outputs) if labelled_share is None else labelled_share.float()
        self.labelled_share = self.labelled_share.to(device)
        self._window = torch.zeros((), device=device)  # steps that the counts hold, decayed as they are
        self._missing = torch.zeros(outputs, dtype=torch.bool, device=device)
        self.silence = silence
        self._silent = self.labelled_share > 0  # until they are seen
        if not regions:
            self._silent[0] = False

    @torch.no_grad()
    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        confidence: Tensor,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Take in the labels of a step, not yet mixed, and return which of them are kept.

        Args:
            logits: ``(B, K, *S)``, of which the labels were made; only the guard looks at them.
            labels: ``(B, 1, *S)`` int64; with regions ``(B, K, *S)`` bool.
            confidence: Like ``labels``.
            valid: ``(B, 1, *S)``, 0 in padding; ``None`` for no padding.

        Returns:
            Bool, like ``labels``; False wherever ``valid`` is 0.
        """
        there = torch.ones_like(labels, dtype=torch.bool) if valid is None else (valid > 0).expand_as(labels)
        groups = self._groups(labels)
        self._observe(groups, confidence, there)
        kept = there & (confidence >= (self.threshold if self.gate == "global" else self.thresholds()[groups]))
        if self.silence:
            self._find_silent()
            if self.regions:
                kept = kept & ((labels > 0) | ~self._silent.reshape(-1, *(1,) * (labels.ndim - 2)))
        if self.guard:
            self._find_missing()
            kept = kept & ~self._doubtful(logits, labels)
        self._kept.mul_(self.decay).add_(self._summed(counts_of(groups, kept, len(self._kept))))
        return kept

    def thresholds(self) -> Tensor:
        """Return the threshold of each class ``(K,)``; of regions ``(2 K,)``, the outsides first."""
        if self.gate == "global":
            return torch.full_like(self._kept, self.threshold)
        return class_thresholds(self._histogram, self.threshold, self.keep)

    def kept_share(self) -> Tensor:
        """Return the share that was lately kept of the labels of each class ``(K,)``; NaN where there were none.

        Of regions ``(2, K)``: of the outsides, then of the insides.
        """
        share = self._kept / self._histogram.sum(1)
        return share.reshape(2, -1) if self.regions else share

    def class_share(self) -> Tensor:
        """Return the share of each class in the recent labels, or of the voxels that are in each region, ``(K,)``."""
        voxels = self._histogram.sum(1)
        if self.regions:
            outside, inside = voxels.reshape(2, -1)
            return inside / (outside + inside).clamp_min(1e-8)
        return voxels / voxels.sum().clamp_min(1e-8)

    def silent(self) -> Tensor | None:
        """Return the exclusive classes ``(K,)`` bool that the labels say nothing of; None for none, and for regions."""
        return self._silent if self.silence and not self.regions else None

    def missing(self) -> Tensor:
        """Return which classes the guard holds for missing, ``(K,)`` bool."""
        return self._missing

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, without the settings."""
        return {name: tensor.cpu().clone() for name, tensor in self._state().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; the settings stay those of this gate."""
        whole = torch.tensor(1 / max(1 - self.decay, 1e-8))  # of states that do not say how much they have seen
        for name, tensor in self._state().items():
            tensor.copy_(({"window": whole, "silent": self._silent} | state)[name])

    def _state(self) -> dict[str, Tensor]:
        return {
            "histogram": self._histogram,
            "kept": self._kept,
            "missing": self._missing,
            "silent": self._silent,
            "window": self._window,
        }

    def _summed(self, counts: Tensor) -> Tensor:
        return counts if self._sum is None else self._sum(counts)

    def _groups(self, labels: Tensor) -> Tensor:
        """Return the row of the histogram of each label."""
        if not self.regions:
            return labels.long()
        channel = torch.arange(self.outputs, device=labels.device).reshape(-1, *(1,) * (labels.ndim - 2))
        return torch.where(labels > 0, channel + self.outputs, channel)

    def _observe(self, groups: Tensor, confidence: Tensor, there: Tensor) -> None:
        bins = (confidence * BINS).long().clamp(0, BINS - 1)
        counts = counts_of(groups * BINS + bins, there, self._histogram.numel())
        self._histogram.mul_(self.decay).add_(self._summed(counts).reshape_as(self._histogram))
        self._window.mul_(self.decay).add_(1)

    def _find_silent(self) -> None:
        """Find the classes that are not seen yet, or no more; the background always speaks."""
        bound = torch.where(self._silent, _SEEN_ABOVE, _UNSEEN_BELOW)
        unseen = self.class_share() < bound * self.labelled_share
        known = self._window * (1 - self.decay) >= _SEEN  # a few patches say nothing
        self._silent.copy_(torch.where(known, unseen, self._silent))
        if not self.regions:
            self._silent[0] = False

    def _find_missing(self) -> None:
        """Find the classes that the labels have too little of."""
        bound = torch.where(self._missing, _BACK_ABOVE, _MISSING_BELOW)
        seen = self._window * (1 - self.decay) >= _SEEN
        self._missing.copy_(seen & (self.class_share() < bound * self.labelled_share))
        if not self.regions:
            self._missing[0] = False

    def _doubtful(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return where the label is background although a missing class is not unlikely."""
        missing = self._missing.reshape(-1, *(1,) * (logits.ndim - 2))
        logits = _exact(logits)
        if self.regions:
            return (logits.sigmoid() >= _SUSPECT) & missing & (labels <= 0)
        return ((logits.softmax(1) >= _SUSPECT) & missing).any(1, keepdim=True) & (labels == 0)


def _exact(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_settings(threshold: float, gate: str, keep: float, decay: float) -> None:
    if gate not in GATES:
        raise ValueError(f"the gate of pseudo-labels must be one of {', '.join(GATES)}, got {gate!r}")
    for name, value in (("threshold of confidence", threshold), ("share to keep", keep), ("decay", decay)):
        if not 0 <= value <= 1:
            raise ValueError(f"the {name} must lie between 0 and 1, got {value}")
