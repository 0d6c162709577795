"""Windows in which there is nothing: air of a CT, or one value throughout. The network is run on one of each kind.

A network says the same of two windows that are the same. Of windows without content there are many, and what it says
of one is taken for all, if that is background. So nothing changes but where air is not even: noise below the
threshold counts as none.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunet_ext.data.position import has_position
from nnunet_ext.inference.windows import Alike, Place

CT = "CTNormalization"  # nnU-Net's, by the name that plans give it
AIR_HU, VACUUM_HU = -800.0, -1000.0  # nothing that is denser than this is air; what air has without noise
FLAT = 1e-3  # in units of normalised intensities: what rounding and resampling make of one value
MOST_KINDS = 4  # kinds of windows without content whose logits are kept


@dataclass(frozen=True)
class Channel:
    """When a channel of a window has no content.

    Attributes:
        air: Normalised value at and below which it is air; None where only one value throughout counts.
        vacuum: Normalised value of air without noise.
    """

    air: float | None = None
    vacuum: float = 0.0

    def value(self, window: Tensor) -> float | None:
        """Return the value that stands for a channel ``(*P)`` without content, None where there is some."""
        lowest, highest = (float(value) for value in torch.aminmax(window))
        if self.air is not None and highest <= self.air + FLAT:
            return self.vacuum
        return round(lowest, 3) if highest - lowest <= FLAT else None


def why_none_is_skipped(configuration: ConfigurationManager) -> str | None:
    """Return why no window of a model can be without content, None if some may be."""
    if has_position(configuration):
        return "the network sees the position of each slice, so that no two windows are alike"
    return None


def channels_of(plans: PlansManager, configuration: ConfigurationManager, number: int) -> list[Channel]:
    """Return when channels of a prepared image have no content, by their normalisation.

    Args:
        plans: Plans of the model.
        configuration: Its configuration.
        number: Number of channels, with those of a previous stage; these count as empty where they have one value.
    """
    statistics = plans.foreground_intensity_properties_per_channel
    channels = [
        _of(scheme, statistics.get(str(index))) for index, scheme in enumerate(configuration.normalization_schemes)
    ]
    return channels + [Channel()] * (number - len(channels))


def _of(scheme: str, statistics: dict[str, Any] | None) -> Channel:
    if scheme != CT or not statistics:
        return Channel()
    mean, scale = statistics["mean"], max(statistics["std"], 1e-8)
    lowest = float(statistics["percentile_00_5"])  # what is below is clipped to it
    air, vacuum = ((max(lowest, value) - mean) / scale for value in (AIR_HU, VACUUM_HU))
    return Channel(air, vacuum)


def find_alike(
    image: Tensor,
    places: Sequence[Place],
    channels: Sequence[Channel],
    run: Callable[[Tensor], Tensor],
    background: Callable[[Tensor], bool],
) -> Alike:
    """Find the windows of an image that need not be run, and what the network says of them.

    Args:
        image: Prepared image ``(C, *S)``, padded.
        places: Where its windows lie.
        channels: When each channel has no content.
        run: Returns the logits ``(K, *P)`` of a window ``(C, *P)``, mean of its mirrored versions.
        background: Whether logits are those of background everywhere; windows of which they are not are run.
    """
    keys: list[Hashable | None] = []
    logits: dict[Hashable, Tensor] = {}
    refused: set[Hashable] = set()
    for place in places:
        window = image[place]
        key = _key(window, channels)
        if key is not None and key not in logits and key not in refused:
            found = run(_empty(window, key)) if len(logits) + len(refused) < MOST_KINDS else None
            if found is not None and background(found):
                logits[key] = found.to(image.device)
            else:
                refused.add(key)
        keys.append(None if key in refused else key)
    return Alike(keys, logits)


def is_background(logits: Tensor, heads: int, regions: bool) -> bool:
    """Whether logits are those of background everywhere.

    Args:
        logits: Logits ``(K, *P)``.
        heads: Number of channels that count, the first ones.
        regions: Whether these are regions, none of which must be positive, instead of classes with background as 0.
    """
    own = logits[:heads]
    return bool((own < 0).all()) if regions else bool((own.argmax(0) == 0).all())


def _key(window: Tensor, channels: Sequence[Channel]) -> tuple[float, ...] | None:
    values = []
    for own, channel in zip(window, channels, strict=True):
        value = channel.value(own)
        if value is None:
            return None
        values.append(value)
    return tuple(values)


def _empty(window: Tensor, key: Sequence[float]) -> Tensor:
    values = torch.tensor(key, dtype=window.dtype, device=window.device).view(-1, *[1] * (window.ndim - 1))
    return values.expand(window.shape).contiguous()
