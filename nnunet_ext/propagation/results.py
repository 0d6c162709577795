"""What a propagation gives: probabilities, both directions, how far they agree, and what to annotate next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FORWARD, BACKWARD = 0, 1  # places in ``Propagated.directions``


@dataclass(frozen=True)
class Propagated:
    """The result of a propagation; all tensors are on the CPU.

    Attributes:
        classes: Labels that any reference has, ascending.
        probabilities: ``(len(classes) + 1, T, H, W)`` float16, background first. References are one-hot; where they say
            ignore, background.
        labels: ``(T, H, W)`` integers: the most probable labels, and references as they were given.
        forward: ``(T, H, W)`` integers: what was found from the reference below; 0 where ``directions`` says no.
        backward: ``(T, H, W)`` integers: what was found from the reference above; 0 where ``directions`` says no.
        directions: ``(T, 2)`` bool: whether a forward and a backward pass came to a slice; neither does to references.
        agreement: ``(T,)`` float32, 0 to 1, NaN at references. Where both passes come: the mean, over classes that
            either found, of Dice between the two. Where one does: the mean, over the classes that it found, of soft
            Dice between its probabilities and its labels. 1 where there is no class.
        every: Distance that suggestions keep from one another where possible.
    """

    classes: tuple[int, ...]
    probabilities: Tensor
    labels: Tensor
    forward: Tensor
    backward: Tensor
    directions: Tensor
    agreement: Tensor
    every: int = 5


def suggest(propagated: Propagated, number: int) -> list[int]:
    """Return slices to annotate next, the one of least agreement first.

    They keep ``propagated.every`` slices' distance from one another, less where there would be too few of them else.

    Args:
        propagated: Result of a propagation.
        number: How many to return; fewer where fewer slices are no references.

    Raises:
        ValueError: If the number is not positive.
    """
    if number < 1:
        raise ValueError(f"at least 1 slice must be asked for, got {number}")
    # sort is stable: of equal agreement the lower slice first
    order = [int(index) for index in propagated.agreement.sort(stable=True).indices]
    candidates = [index for index in order if bool(propagated.directions[index].any())]
    found: list[int] = []
    for distance in range(max(1, propagated.every), 0, -1):
        found = []
        for index in candidates:
            if len(found) < number and all(abs(index - other) >= distance for other in found):
                found.append(index)
        if len(found) == min(number, len(candidates)):
            break
    return found


class Results:
    """Collects what passes find, slice after slice, without keeping both passes' probabilities.

    Args:
        shape: ``(T, H, W)``.
        references: Label maps of references by their slices.
        classes: Labels of objects, ascending.
        weighting: ``"mean"``, or ``"distance"`` to weigh each pass by how near its reference is.
        every: As :class:`Propagated` has it.
    """

    def __init__(
        self,
        shape: Sequence[int],
        references: Mapping[int, Tensor],
        classes: Sequence[int],
        weighting: str,
        every: int,
    ) -> None:
        self._labels_of = torch.tensor([0, *classes])  # by channel
        kind = torch.int16 if max(classes) < 2**15 else torch.int32
        self._weighting = weighting
        labels, forward, backward = (torch.zeros(tuple(shape), dtype=kind) for _ in range(3))
        self.result = Propagated(
            tuple(classes),
            torch.zeros((len(classes) + 1, *shape), dtype=torch.float16),
            labels,
            forward,
            backward,
            torch.zeros((shape[0], 2), dtype=torch.bool),
            torch.full((shape[0],), torch.nan),
            every,
        )
        for index, given in references.items():
            labels[index] = given.to(kind)
            channels = torch.searchsorted(self._labels_of, given.long().clamp(min=0))
            self.result.probabilities[:, index].scatter_(0, channels[None], 1)

    def add(self, index: int, direction: int, probabilities: Tensor, lower: int | None, upper: int | None) -> None:
        """Take what a pass found in a slice, and join it with what the other one did, where that came before.

        Args:
            index: Of the slice.
            direction: ``FORWARD`` or ``BACKWARD``.
            probabilities: ``(K + 1, H, W)``, background first.
            lower: Reference below, if there is one.
            upper: Reference above, if there is one.
        """
        result = self.result
        channels = probabilities.argmax(0)
        if not result.directions[index].any():
            result.agreement[index] = _soft_dice(probabilities, channels)
        own, channels = probabilities.cpu(), channels.cpu()
        labels = result.backward if direction == BACKWARD else result.forward
        labels[index] = self._labels_of[channels]
        if result.directions[index].any() and lower is not None and upper is not None:
            # the nearer a reference is, the less a pass had time to lose
            weight = (upper - index) / (upper - lower) if self._weighting == "distance" else 0.5
            weight = weight if direction == FORWARD else 1 - weight
            own = weight * own + (1 - weight) * result.probabilities[:, index].float()
            channels = own.argmax(0)
            result.agreement[index] = self._dice(result.forward[index], result.backward[index])
        result.probabilities[:, index] = own
        result.labels[index] = self._labels_of[channels]
        result.directions[index, direction] = True

    def _dice(self, one: Tensor, other: Tensor) -> float:
        """Return the mean Dice of two label maps over classes in either, 1 where there are none."""
        count = len(self._labels_of)
        one, other = (torch.searchsorted(self._labels_of, labels.long()).flatten() for labels in (one, other))
        both = torch.bincount(one * count + other, minlength=count**2).view(count, count).double()
        sizes = (both.sum(0) + both.sum(1))[1:]
        dice = 2 * both.diagonal()[1:] / sizes
        return float(dice[sizes > 0].mean()) if (sizes > 0).any() else 1.0


def _soft_dice(probabilities: Tensor, channels: Tensor) -> float:
    """Return the mean, over the objects found, of soft Dice of probabilities and what is most probable."""
    count = len(probabilities)
    own = probabilities.gather(0, channels[None])[0]
    inside = torch.zeros(count, device=own.device).index_add_(0, channels.flatten(), own.flatten())
    areas = torch.bincount(channels.flatten(), minlength=count)
    dice = (2 * inside / (probabilities.sum((1, 2)) + areas))[1:]
    found = areas[1:] > 0
    return float(dice[found].mean()) if bool(found.any()) else 1.0
