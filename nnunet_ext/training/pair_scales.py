"""Two networks with outputs of other sizes: which labels, and which labels of its peer, each of them learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nnunet_ext.training.unlabelled import at_scale

Scales = Sequence[Sequence[float]] | None


@dataclass(frozen=True)
class TargetChoice:
    """Which of a batch's labels one network learns.

    Attributes:
        indices: Number of the label map of each of its outputs; ``None`` for a network of one output of full
            resolution; no numbers for all label maps as they come.
    """

    indices: tuple[int, ...] | None = ()

    def of(self, target: Any) -> Any:
        """Return the labels as the network's loss takes them: a tensor for one output, a list for several.

        Args:
            target: Labels of the batch, a list over the scales, highest resolution first, or those of that alone.
        """
        if self.indices == ():
            return target
        if self.indices is None:
            return target[0] if isinstance(target, list) else target
        if isinstance(target, list):
            return [target[index] for index in self.indices]
        return target if len(self.indices) == 1 else [target] * len(self.indices)


AS_THEY_COME = TargetChoice()


def union_of_scales(first: Scales, second: Scales) -> list[list[float]] | None:
    """Return the scales that labels are made at: those of network 1, and those that network 2 alone has.

    Args:
        first: Size of each output of network 1 by that of the patch, ``None`` for one of that size.
        second: The same of network 2.
    """
    if first is None and second is None:
        return None
    dimensions = len((first or second or [[]])[0])
    whole = [1.0] * dimensions
    union = [list(map(float, scale)) for scale in (first if first is not None else [whole])]
    for scale in second if second is not None else [whole]:
        if list(map(float, scale)) not in union:
            union.append(list(map(float, scale)))
    return union


def target_choice(scales: Scales, union: Scales) -> TargetChoice:
    """Return which labels a network learns.

    Args:
        scales: Size of each of its outputs by that of the patch, ``None`` for one of that size.
        union: Scales that labels are made at.
    """
    if scales is None or union is None:
        return TargetChoice(None)
    there = [list(map(float, scale)) for scale in union]
    own = [list(map(float, scale)) for scale in scales]
    # network 1's come first and in its order, with those that it has twice
    indices = (n if n < len(there) and there[n] == scale else there.index(scale) for n, scale in enumerate(own))
    return TargetChoice(tuple(indices))


def labels_for(outputs: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
    """Return the peer's labels at the sizes of a network's own outputs.

    Where the peer has an output of that size, its labels are those; else its labels of full resolution are brought to
    it as nnU-Net brings labels to the scales of deep supervision.

    Args:
        outputs: Outputs ``(B, K, *S_i)`` of the network that learns, highest resolution first.
        labels: Hard labels ``(B, K or 1, *S_j)`` of its peer's outputs, highest resolution first.
    """
    sizes = [tuple(label.shape[2:]) for label in labels]
    found = []
    for number, output in enumerate(outputs):
        size = tuple(output.shape[2:])
        if number < len(sizes) and sizes[number] == size:
            found.append(labels[number])
        elif size in sizes:
            found.append(labels[sizes.index(size)])
        else:
            found.append(at_scale(labels[0], size))
    return found
