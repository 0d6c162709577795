"""Which slices of a volume are segmented first, and which of these become references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

How = Literal["largest", "uniform"] | int
_EVERY = 5  # one of so many slices is sampled
CHOICES = ("largest", "uniform")


def sampled_slices(slices: int, most: int = 64) -> list[int]:
    """Return the slices that are segmented to find references among them, from the first to the last one.

    Pham et al., section on the reference module: a fifth of all slices, spread evenly. Of five to nine slices they
    would take the first one alone, and none of fewer; here all are taken of fewer than ten.

    Args:
        slices: Number of slices of the volume.
        most: How many to return at most; of more, as many are taken, spread evenly.

    Raises:
        ValueError: If a number is not positive.
    """
    if slices < 1 or most < 1:
        raise ValueError(f"slices and most must be at least 1, got {slices} and {most}")
    number = slices if slices < 2 * _EVERY else slices // _EVERY
    sampled = np.linspace(0, slices - 1, number).astype(int)
    if len(sampled) > most:
        sampled = sampled[np.linspace(0, len(sampled) - 1, most).astype(int)]
    return [int(index) for index in sampled]


def largest_slices(labels: ArrayLike, indices: Sequence[int], classes: Sequence[int] | None = None) -> list[int]:
    """Return, for each class, the slice in which its area is largest, the first of several; each slice once, sorted.

    Pham et al., section on the reference module, for each class by itself.

    Args:
        labels: ``(n, H, W)`` integers; 0 is background, less is no class.
        indices: Of these slices in the volume.
        classes: Those to be looked for, ``None`` for all that are there. What no slice has adds none.

    Raises:
        ValueError: If there are not as many indices as slices.
    """
    labels = _checked(labels, indices)
    wanted = _classes(labels) if classes is None else classes
    areas = [np.count_nonzero(labels == label, axis=(1, 2)) for label in wanted]
    return sorted({int(indices[int(area.argmax())]) for area in areas if area.any()})


def choose(labels: ArrayLike, indices: Sequence[int], how: How = "largest") -> list[int]:
    """Return the slices that become references, sorted.

    Args:
        labels: ``(n, H, W)`` integers of segmented slices; 0 is background, less is no class.
        indices: Of these slices in the volume, ascending.
        how: ``"largest"`` for one slice a class, that of its largest area; ``"uniform"`` for all slices that have a
            class; or how many of the latter, spread evenly.

    Returns:
        None at all where no slice has a class.

    Raises:
        ValueError: If there are not as many indices as slices, or ``how`` is none of these.
    """
    if isinstance(how, bool) or not (how in CHOICES or (isinstance(how, int) and how > 0)):
        raise ValueError(f"references must be chosen by {', '.join(CHOICES)} or a number above 0, got {how!r}")
    labels = _checked(labels, indices)
    if how == "largest":
        return largest_slices(labels, indices)
    having = [int(index) for index, one in zip(indices, labels, strict=True) if (one > 0).any()]
    if not isinstance(how, int) or how >= len(having):
        return having
    # the middle of each of so many equal parts: a single one is the middle slice, not the first
    return [having[int(place)] for place in (np.arange(how) + 0.5) * len(having) / how]


def _checked(labels: ArrayLike, indices: Sequence[int]) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 3 or len(array) != len(indices):
        raise ValueError(
            f"labels must have shape (n, H, W) with an index for each of n slices, got {array.shape} and "
            f"{len(indices)} indices"
        )
    return array


def _classes(labels: np.ndarray) -> list[int]:
    return [int(label) for label in np.unique(labels) if label > 0]
