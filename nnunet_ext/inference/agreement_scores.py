"""How much networks agree about a scan, class by class.

Pham et al., "Semi-supervised organ segmentation with Mask Propagation Refinement and Uncertainty Estimation for CT
Volume Labeling" (FLARE 2022), Eq. 1: the mean Dice of each network's mask with their consensus. The paper takes it
slice by slice; of a whole volume it says more about small organs, which are absent from most slices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from nnunet_ext.data.classes import Region

SCORES = ("volume", "slice")


class Agreement:
    """Counts, slab by slab, from which the scores of a scan follow.

    Args:
        regions: Name of each class, or region, and its label or labels, without background.
        members: Number of networks, two or more.
        slices: Slices of the scan along its first axis, which slabs are parts of; needed for scores by slice alone.

    Raises:
        ValueError: If there are fewer than two networks.
    """

    def __init__(self, regions: Mapping[str, Region], members: int, slices: int) -> None:
        if members < 2:
            raise ValueError(f"agreement needs two networks or more, got {members}")
        self.regions = dict(regions)
        # of each class, network and slice: voxels of the network, of the consensus, and of both
        self._counts = np.zeros((len(self.regions), members, slices, 3), dtype=np.int64)
        self._labels = [[region] if isinstance(region, int) else list(region) for region in self.regions.values()]
        self._size = max((label for inside in self._labels for label in inside), default=0) + 2

    def add(self, consensus: np.ndarray, labels: Sequence[np.ndarray], first: int = 0) -> None:
        """Take in a slab.

        Args:
            consensus: Label map of the consensus, ``(S_0, ...)`` integers, none negative.
            labels: Label map of each network, like ``consensus``.
            first: Number of the slab's first slice.

        Raises:
            ValueError: If shapes differ, or there is another number of networks.
        """
        if len(labels) != self._counts.shape[1] or any(one.shape != consensus.shape for one in labels):
            raise ValueError(
                f"a slab needs {self._counts.shape[1]} label maps of shape {consensus.shape}, got "
                f"{[one.shape for one in labels]}"
            )
        for number, agreed in enumerate(consensus):
            for member, one in enumerate(labels):
                joint = self._joint(agreed, one[number])
                of_member, of_consensus = joint.sum(0), joint.sum(1)
                for counts, inside in zip(self._counts, self._labels, strict=True):
                    both = joint[np.ix_(inside, inside)].sum()
                    counts[member, first + number] += (of_member[inside].sum(), of_consensus[inside].sum(), both)

    def _joint(self, consensus: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return how many voxels have each pair of labels, ``(L, L)``: one pass, however many classes there are."""
        size = self._size
        if not consensus.any() and not labels.any():
            joint = np.zeros((size, size), np.int64)
            joint[0, 0] = consensus.size
            return joint
        # what is no label of a class counts as one more
        pairs = np.minimum(consensus.astype(np.intp), size - 1).ravel() * size
        pairs += np.minimum(labels.astype(np.intp), size - 1).ravel()
        return np.bincount(pairs, minlength=size * size).reshape(size, size)

    def class_scores(self, kind: str = "volume") -> dict[str, float]:
        """Return the score of each class, 0 to 1; NaN for a class that neither any network nor the consensus has.

        Args:
            kind: ``"volume"``: the mean over networks of the Dice with the consensus, 1 where both have none;
                ``"slice"``: the same of each slice, then the mean over slices, 1 for slices where both have none.

        Raises:
            ValueError: If there is no such score.
        """
        if kind not in SCORES:
            raise ValueError(f"the score must be one of {', '.join(SCORES)}, got {kind!r}")
        scores = {}
        for name, counts in zip(self.regions, self._counts, strict=True):
            volumes = counts.sum(1, keepdims=True) if kind == "volume" else counts
            own, agreed, both = np.moveaxis(volumes, -1, 0)
            size = own + agreed
            dice = np.where(size > 0, 2 * both / np.maximum(size, 1), 1.0)
            scores[name] = float(dice.mean()) if counts[..., :2].any() else math.nan
        return scores


def mean_score(class_scores: Mapping[str, float]) -> float:
    """Return the mean over the classes that are there; NaN where there is none, for which there is no score."""
    there = [score for score in class_scores.values() if not math.isnan(score)]
    return float(np.mean(there)) if there else math.nan
