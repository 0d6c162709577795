"""nnU-Net's sliding window with the windows run by an engine, several at a time, and equal ones only once."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_ext.engines.engine import Engine

Place = tuple[slice | int, ...]  # where a window lies in an image (C, *S)
Flips = tuple[tuple[int, ...], ...]  # axes along which each version of a window is mirrored, of (N, C, *P)


def mirrored_versions(axes: Sequence[int] | None) -> Flips:
    """Return the axes that each version of a window is mirrored along: none, each, each two, and so on.

    Args:
        axes: Spatial axes that may be mirrored, counted from 0; None mirrors none.

    Example:
        >>> mirrored_versions([0, 2])
        ((), (2,), (4,), (2, 4))
    """
    shifted = [axis + 2 for axis in axes or ()]
    return tuple(itertools.chain.from_iterable(itertools.combinations(shifted, n) for n in range(len(shifted) + 1)))


@dataclass(frozen=True)
class Sweep:
    """How windows of an image are run and put together.

    Attributes:
        places: Where the windows lie.
        flips: Axes along which each version of a window is mirrored; see :func:`mirrored_versions`.
        weights: Weight of each voxel of a window ``(*P)``, float16 as nnU-Net has it; None weighs all alike.
        heads: Number of channels K of the logits.
        device: Where the engine takes windows.
        batch: Number of versions of windows in a batch.
        progress_bar: Whether to show one.
    """

    places: Sequence[Place]
    flips: Flips
    weights: Tensor | None
    heads: int
    device: torch.device
    batch: int = 1
    progress_bar: bool = False


@dataclass(frozen=True)
class Alike:
    """Windows that are not run, because the network says the same of each.

    Attributes:
        keys: Key of each window, in the order of their places; None is run.
        logits: Key -> logits ``(K, *P)``, mean of all mirrored versions, float32.
    """

    keys: Sequence[Hashable | None]
    logits: dict[Hashable, Tensor]

    @property
    def number(self) -> int:
        """Number of windows that are not run."""
        return sum(key in self.logits for key in self.keys if key is not None)


@torch.inference_mode()
def sweep(image: Tensor, engine: Engine, how: Sweep, alike: Alike | None = None) -> Tensor:
    """Return the logits of an image, windows weighted and averaged as nnU-Net does.

    With an engine that computes as the network does, one window a batch, the result is nnU-Net's to the last bit.

    Args:
        image: Image ``(C, *S)``, float32, no smaller than a window, on the device that is to hold the logits.
        engine: What runs the windows.
        how: Windows, mirrored versions and weights.
        alike: Windows that are not run.

    Returns:
        Logits ``(K, *S)``, float16.

    Raises:
        RuntimeError: If a sum of logits is too large for float16.
    """
    logits = torch.zeros((how.heads, *image.shape[1:]), dtype=torch.half, device=image.device)
    total = torch.zeros(image.shape[1:], dtype=torch.half, device=image.device)
    weights = None if how.weights is None else how.weights.to(image.device)
    factor = None if weights is None else weights.float()
    keys = alike.keys if alike is not None else [None] * len(how.places)
    known = {} if alike is None else alike.logits
    run = [place for place, key in zip(how.places, keys, strict=True) if key is None or key not in known]
    outputs = _means(engine.run(_batches(image, run, how)), how.flips)
    pairs = zip(how.places, keys, strict=True)
    for place, key in tqdm(pairs, total=len(how.places), disable=not how.progress_bar):
        prediction = known[key].clone() if key in known and key is not None else next(outputs)
        _add(prediction.to(image.device), place, logits, total, weights, factor)
    for _ in outputs:  # lets the engine come to its end
        raise RuntimeError("an engine made more outputs than it got windows")
    for channel in logits:
        channel.div_(total)
        if bool(torch.isinf(channel).any()):
            raise RuntimeError("a sum of the network's logits is too large for half precision, as nnU-Net keeps it")
    return logits


@torch.inference_mode()
def run_once(window: Tensor, engine: Engine, flips: Flips, device: torch.device) -> Tensor:
    """Return the logits ``(K, *P)`` of one window ``(C, *P)``, mean of its mirrored versions, float32.

    Args:
        window: The window.
        engine: What runs it.
        flips: Axes along which each version is mirrored.
        device: Where the engine takes windows.
    """
    window = window.to(device)
    versions = (torch.flip(window[None], axes) if axes else window[None] for axes in flips)
    return next(_means(engine.run(versions), flips)).float()


def _add(
    prediction: Tensor, place: Place, logits: Tensor, total: Tensor, weights: Tensor | None, factor: Tensor | None
) -> None:
    """Add what is predicted at a place, weighted; rounded to float16 after the sum, as nnU-Net does."""
    if factor is not None and prediction.dtype == torch.float32:
        prediction *= factor
    elif weights is not None:
        prediction *= weights
    for channel, own in zip(logits, prediction, strict=True):  # a channel at a time is faster than all
        channel[place[1:]].add_(own)
    total[place[1:]] += 1 if weights is None else weights


def _batches(image: Tensor, places: Sequence[Place], how: Sweep) -> Iterator[Tensor]:
    """Yield versions of windows, as many together as a batch has; the last batch may have fewer."""
    waiting: list[Tensor] = []
    for place, axes in itertools.product(places, how.flips):
        # a copy, as windows overlap and engines may keep theirs for a while
        window = torch.clone(image[place][None], memory_format=torch.contiguous_format).to(how.device)
        waiting.append(torch.flip(window, axes) if axes else window)
        if len(waiting) == how.batch:
            yield waiting[0] if how.batch == 1 else torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _means(outputs: Iterable[Tensor], flips: Flips) -> Iterator[Tensor]:
    """Yield the mean ``(K, *P)`` of each window's versions, turned back."""
    versions: deque[Tensor] = deque()
    for batch in outputs:
        versions.extend(batch.split(1))
        while len(versions) >= len(flips):
            mean = _summable(versions.popleft())
            for axes in flips[1:]:
                mean += torch.flip(_summable(versions.popleft()), axes)
            if len(flips) > 1:
                mean /= len(flips)
            yield mean[0]


def _summable(logits: Tensor) -> Tensor:
    """Return logits in a type that sums keep their digits in; float16 stays, as nnU-Net sums it on GPUs."""
    return logits.float() if logits.dtype == torch.bfloat16 else logits
