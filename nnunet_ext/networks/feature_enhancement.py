"""Instructive feature enhancement: the most curved or most informative channels of a feature map, twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnunet_ext.networks._checks import check_features
from nnunet_ext.networks.feature_scores import curvature_scores, entropy_scores

SCORES = ("curvature", "entropy")


class InstructiveFeatureEnhancement(nn.Module):
    """Append the channels with the highest scores to a feature map, the highest first.

    Liu et al., "Instructive Feature Enhancement for dichotomous medical image segmentation", MICCAI 2023
    (arXiv:2306.03497). Each sample selects for itself; of equal scores the lower channel comes first. Gradients flow
    through the appended values, not through the scores, which are computed in float32.

    Args:
        channels: Number of channels of the features, C.
        ratio: Share r of the channels that is appended, ``int(r * C)`` of them; 0 to 1.
        score: Score that ranks the channels, ``"curvature"`` or ``"entropy"``.
        axes: Axes of ``S`` to look along, ``None`` for all; leave one out where voxels are much longer along it.
        bins: Number of bins along each side of the joint histogram, for the entropy.
        step: Take the entropy of every ``step``-th position along each axis.
        packed: Take the entropy as in the released code (:func:`entropy_scores`).

    Attributes:
        selected: Number of appended channels, k.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from nnunet_ext.networks import InstructiveFeatureEnhancement
        >>> enhance = InstructiveFeatureEnhancement(channels=4, ratio=0.5)
        >>> features = torch.arange(4.0).reshape(1, 4, 1, 1) * torch.eye(6)  # each channel is more curved than the last
        >>> enhance.ranking(features)
        tensor([[3, 2]])
        >>> enhance(features).shape
        torch.Size([1, 6, 6, 6])
    """

    def __init__(
        self,
        channels: int,
        ratio: float = 0.5,
        score: str = "curvature",
        axes: Sequence[int] | None = None,
        bins: int = 64,
        step: int = 1,
        packed: bool = False,
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio is a share of the channels from 0 to 1, got {ratio}")
        if bins < 2 or step < 1:
            raise ValueError(f"bins must be at least 2 and step at least 1, got {bins} and {step}")
        if score == "curvature" and axes is not None and len(axes) < 2:
            raise ValueError(f"curvature looks along at least two axes, got {list(axes)}")
        self.channels, self.ratio, self.score = channels, ratio, score
        self.axes = None if axes is None else tuple(axes)
        self.bins, self.step, self.packed = bins, step, packed
        self.selected = int(ratio * channels)

    def scores(self, features: Tensor) -> Tensor:
        """Return the scores ``(B, C)`` of features ``(B, C, *S)``, without gradient."""
        if self.score == "curvature":
            return curvature_scores(features, self.axes)
        return entropy_scores(features, self.bins, self.axes, self.step, self.packed)

    def ranking(self, features: Tensor) -> Tensor:
        """Return the selected channels ``(B, k)``, by falling score."""
        # stable: topk orders equal scores at will
        return self.scores(features).sort(dim=1, descending=True, stable=True).indices[:, : self.selected]

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(B, C + k, *S)``: the features, then the selected ones.

        Args:
            features: ``(B, C, *S)``, 2D or 3D.

        Raises:
            ValueError: If the number of axes or channels is another one.
        """
        check_features(features, self.channels)
        if self.selected == 0:
            return features
        index = self.ranking(features).reshape(len(features), -1, *[1] * (features.ndim - 2))
        return torch.cat([features, features.gather(1, index.expand(-1, -1, *features.shape[2:]))], 1)
