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
        # 1 where a label belongs to a class; what is no label of a class counts as one more label
        self._inside = np.zeros((len(self.regions), self._size))
        for row, inside in zip(self._inside, self._labels, strict=True):
            row[inside] = 1

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
            of_slice = [one[number] for one in labels]
            if not agreed.any() and not any(one.any() for one in of_slice):
                continue
            rows = self._known(agreed) * self._size
            for member, one in enumerate(of_slice):
                joint = self._joint(rows, one)
                of_consensus = self._inside @ joint
                both = (of_consensus * self._inside).sum(1)
                counted = (self._inside @ joint.sum(0), of_consensus.sum(1), both)
                self._counts[:, member, first + number] += np.stack(counted, 1).astype(np.int64)

    def _known(self, labels: np.ndarray) -> np.ndarray:
        return np.minimum(labels.astype(np.intp), self._size - 1).ravel()

    def _joint(self, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return how many voxels have each pair of labels, ``(L, L)``: one pass, however many classes there are."""
        pairs = np.bincount(rows + self._known(labels), minlength=self._size**2)
        return pairs.reshape(self._size, self._size).astype(float)  # exact, and faster to multiply than integers

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
