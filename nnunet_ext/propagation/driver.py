"""Drives space-time memory networks through a volume: from each reference to the next, up and down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from nnunet_ext.networks.memory_reading import aggregate
from nnunet_ext.propagation.memory import Memory
from nnunet_ext.propagation.results import BACKWARD, FORWARD, Propagated, Results, suggest

__all__ = ["NoReferenceError", "Propagated", "PropagationSettings", "propagate", "suggest"]

WEIGHTINGS = ("mean", "distance")


class NoReferenceError(ValueError):
    """No reference has a class, so that there is nothing to be carried to other slices."""


@dataclass(frozen=True)
class PropagationSettings:
    """How masks are carried through a volume.

    Args:
        every: Propagated slices whose index in the volume is a multiple of this stay in memory for the rest of a pass.
        top_k: Number of elements of the memory read for each place of a slice; ``None`` reads all of them.
        include_last: Whether the slice before is in memory, too, where its index is no multiple.
        weighting: Of the two passes that meet in a slice: ``"mean"``, or ``"distance"`` for the nearer reference more.
        most: Number of propagated slices in memory at most, beside references and the last one; the oldest gives way.
        objects_at_once: Number of objects that are encoded and decoded in one batch.

    Raises:
        ValueError: If a value is out of range.
    """

    every: int = 5
    top_k: int | None = 20
    include_last: bool = True
    weighting: Literal["mean", "distance"] = "mean"
    most: int = 32
    objects_at_once: int = 16

    def __post_init__(self) -> None:
        """Check values."""
        if self.weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {self.weighting!r}")
        for name in ("every", "top_k", "most", "objects_at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def propagate(
    networks: Sequence[nn.Module],
    image: Tensor | np.ndarray,
    references: Mapping[int, Tensor | np.ndarray],
    device: torch.device,
    settings: PropagationSettings | None = None,
    progress: bool = False,
) -> Propagated:
    """Carry the masks of references to all other slices of a volume.

    Pham et al., section on the propagation module. All references are in memory throughout, and are not found anew.
    From one reference to the next a slice is found twice, going up from the lower and down from the upper one, and the
    probabilities of the two passes, which know nothing of each other, are averaged. Below the first reference there is
    the backward pass alone, above the last one the forward pass. Several networks have a memory each, and what goes
    into it, and into the result, is the mean of what they find in a slice.

    Args:
        networks: :class:`~nnunet_ext.networks.SpaceTimeNetwork`, one or several of the same input, which are moved to
            the device; they predict as in evaluation and are left as they were.
        image: ``(C, T, H, W)``, preprocessed as for the networks' training, of any H and W.
        references: Label maps ``(H, W)`` of integers by the index of their slice; 0 is background, less than 0 no
            object.
        device: Where to compute; on GPUs under autocast.
        settings: How; ``None`` for the defaults.
        progress: Whether to show a bar, which counts a slice each time it is found.

    Raises:
        NoReferenceError: If no reference has a class.
        ValueError: If image, references and networks do not fit one another.
    """
    settings = settings or PropagationSettings()
    if not isinstance(image, Tensor):  # torch takes neither arrays that are read-only nor other byte orders
        image = torch.from_numpy(np.require(image, np.float32, ["C", "W"]))
    _check_image(networks, image)
    shape = list(image.shape[1:])
    maps = _checked_references(references, shape)
    classes = sorted({int(label) for labels in maps.values() for label in labels.unique() if label > 0})
    if not classes:
        raise NoReferenceError(
            f"at least one reference must have a class to be carried to other slices, got {len(maps)} without; "
            "name a slice that has one"
        )
    results = Results(shape, maps, classes, settings.weighting, settings.every)
    passes = list(_passes(list(maps), shape[0]))
    with torch.inference_mode(), _evaluating(networks, device), _precision(device):
        if passes:
            volume = _Volume(image, device, getattr(networks[0], "divisors", (1, 1)))
            room = _room(passes, len(maps), settings)
            carriers = [_Carrier(network, settings, room) for network in networks]
            _add_references(carriers, volume, maps, classes)
            _run(carriers, volume, passes, results, progress)
    return results.result


@dataclass(frozen=True)
class _Pass:
    """Slices between two references, in the order in which one direction comes to them."""

    direction: int
    lower: int | None
    upper: int | None
    slices: range


def _passes(references: Sequence[int], slices: int) -> Iterator[_Pass]:
    """Yield a pass in each direction for each gap, where there is a reference to begin with."""
    for lower, upper in pairwise((None, *references, None)):
        between = range(0 if lower is None else lower + 1, slices if upper is None else upper)
        if between and lower is not None:
            yield _Pass(FORWARD, lower, upper, between)
        if between and upper is not None:
            yield _Pass(BACKWARD, lower, upper, between[::-1])


def _room(passes: Sequence[_Pass], references: int, settings: PropagationSettings) -> int:
    """Return the number of slices in memory at most."""
    staying = max(sum(index % settings.every == 0 for index in one.slices) for one in passes)
    return references + min(staying, settings.most) + 1


class _Volume:
    """Slices of a volume on a device, padded with 0 at both sides.

    Args:
        image: ``(C, T, H, W)``.
        device: Where slices go.
        divisors: What their axes must be a multiple of.
    """

    def __init__(self, image: Tensor, device: torch.device, divisors: Sequence[int]) -> None:
        self.image, self.device = image, device
        self.size = (image.shape[2], image.shape[3])
        missing = [-length % divisor for length, divisor in zip(self.size, divisors, strict=True)]
        self._before = [length // 2 for length in missing]
        top, left = self._before
        self._padding = (left, missing[1] - left, top, missing[0] - top)

    def image_of(self, index: int) -> Tensor:
        """Return ``(1, C, H', W')``."""
        return self.pad(self.image[None, :, index].to(self.device, torch.float32))

    def pad(self, x: Tensor) -> Tensor:
        """Return ``(..., H', W')`` of ``(..., H, W)``."""
        return functional.pad(x, self._padding)

    def crop(self, x: Tensor) -> Tensor:
        """Return ``(..., H, W)`` of ``(..., H', W')``."""
        (top, left), (height, width) = self._before, self.size
        return x[..., top : top + height, left : left + width]


class _Carrier:
    """A network and its memory.

    Args:
        network: The network.
        settings: How masks are carried.
        room: Number of slices that the memory makes room for.
    """

    def __init__(self, network: Any, settings: PropagationSettings, room: int) -> None:
        self.network, self.at_once = network, settings.objects_at_once
        self.memory = Memory(settings.top_k, settings.every, settings.include_last, settings.most, room)

    def value(self, features: Any, masks: Tensor) -> Tensor:
        """Return the value ``(1, K, CV, h, w)`` of a slice with masks ``(1, K, H', W')``."""
        pairs = zip(
            masks.split(self.at_once, 1), (masks.sum(1, keepdim=True) - masks).split(self.at_once, 1), strict=True
        )
        return _joined([self.network.encode_value(features, torch.stack(pair, 2)) for pair in pairs])

    def probabilities(self, features: Any) -> Tensor:
        """Return what is found in a slice, ``(1, K + 1, H', W')``, background first."""
        readout = self.memory.read(features.key)
        logits = _joined([self.network.decode(features, part) for part in readout.split(self.at_once, 1)])
        return aggregate(logits.float().sigmoid()).softmax(1)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _add_references(
    carriers: Sequence[_Carrier], volume: _Volume, references: Mapping[int, Tensor], classes: Sequence[int]
) -> None:
    for index, labels in references.items():
        masks = torch.stack([labels == label for label in classes]).to(volume.device, torch.float32)
        masks, image = volume.pad(masks[None]), volume.image_of(index)
        for carrier in carriers:
            features = carrier.network.encode_key(image)
            carrier.memory.add_reference(index, features.key, carrier.value(features, masks))


def _run(
    carriers: Sequence[_Carrier], volume: _Volume, passes: Sequence[_Pass], results: Results, progress: bool
) -> None:
    total = sum(len(one.slices) for one in passes)
    with tqdm(total=total, desc="propagating", unit="slice", disable=not progress) as bar:
        for one in passes:
            for index in one.slices:
                image = volume.image_of(index)
                features = [carrier.network.encode_key(image) for carrier in carriers]
                found = [carrier.probabilities(own) for carrier, own in zip(carriers, features, strict=True)]
                mean = found[0] if len(found) == 1 else torch.stack(found).mean(0)
                results.add(index, one.direction, volume.crop(mean[0]), one.lower, one.upper)
                if index != one.slices[-1] and carriers[0].memory.wants(index):
                    for carrier, own in zip(carriers, features, strict=True):
                        carrier.memory.add(index, own.key, carrier.value(own, mean[:, 1:]))
                bar.update()
            for carrier in carriers:
                carrier.memory.forget_propagated()


@contextmanager
def _evaluating(networks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Move networks to a device, and let them evaluate; each of their parts is set back at the end."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.to(device).eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


def _precision(device: torch.device) -> AbstractContextManager[Any]:
    """As nnU-Net predicts."""
    return torch.autocast(device.type) if device.type == "cuda" else nullcontext()


def _check_image(networks: Sequence[nn.Module], image: Tensor) -> None:
    if not networks:
        raise ValueError("at least one network must be given, got none")
    expected = getattr(networks[0], "input_channels", None)
    if image.ndim != 4 or 0 in image.shape or (expected is not None and image.shape[0] != expected):
        raise ValueError(f"an image must have shape ({expected or 'C'}, T, H, W), got {tuple(image.shape)}")


def _checked_references(references: Mapping[int, Tensor | np.ndarray], shape: Sequence[int]) -> dict[int, Tensor]:
    """Return references in ascending order, of a type that torch compares."""
    maps = {}
    for index in sorted(references):
        given = references[index]
        labels = given.cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
        if not 0 <= index < shape[0]:
            raise ValueError(f"references must be slices 0 to {shape[0] - 1} of the image, got {index}")
        if list(labels.shape) != list(shape[1:]):
            raise ValueError(
                f"references must have the shape {tuple(shape[1:])} of the image's slices, got {labels.shape} for "
                f"slice {index}"
            )
        if labels.dtype.kind not in "iu":
            raise ValueError(f"references must be integers, got {labels.dtype} for slice {index}")
        maps[int(index)] = torch.from_numpy(labels.astype(np.int32))
    return maps
