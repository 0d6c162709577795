"""Label maps from coarse logits without interpolating where the winner is known.

Linear interpolation makes convex combinations. Where all corners of a block of the coarse grid have the same class as
their largest logit, every voxel in the block has it too; where the corners agree in the last region whose logit is
positive, so does every voxel. Only voxels of the other blocks are interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from scipy.ndimage import map_coordinates
from torch import Tensor

LINEAR, ROUND, SAME = "linear", "round", "same"
TORCH_NEAREST = ("nearest", "nearest-exact")
BUFFER_VALUES = 2**23  # interpolated logits held at a time: 32 MiB as float32


@dataclass(frozen=True)
class Interpolation:
    """How the plans resample logits.

    Attributes:
        modes: Kind of interpolation along each array axis: ``"linear"``; ``"round"`` (the voxel that scipy's
            interpolation of order 0 takes); ``"nearest"`` or ``"nearest-exact"`` (the one that torch's takes); or
            ``"same"``.
        rounded: Whether the result is rounded to the type of the logits before classes are compared.
    """

    modes: tuple[str, str, str]
    rounded: bool


def plan_interpolation(
    resampling: Callable[..., Any],
    shape: Sequence[int],
    new_shape: Sequence[int],
    spacing: Sequence[float],
    new_spacing: Sequence[float],
) -> Interpolation | None:
    """Return how a resampling function of the plans would resample logits, if it does so linearly.

    Args:
        resampling: ``resampling_fn_probabilities`` of nnU-Net's ConfigurationManager, a partial.
        shape: Spatial shape ``*S`` of the logits.
        new_shape: Spatial shape of the result, in voxels.
        spacing: Spacing of the logits in mm, as nnU-Net passes it.
        new_spacing: Spacing of the result in mm, as nnU-Net passes it.

    Returns:
        ``None`` where it is not linear, or not one of nnU-Net's own functions.
    """
    function, keywords = getattr(resampling, "func", None), dict(getattr(resampling, "keywords", {}))
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"
    if keywords.pop("is_seg", False):
        return None
    if name == "nnunetv2.preprocessing.resampling.default_resampling.resample_data_or_seg_to_shape":
        linear = keywords.get("order", 3) == 1
        across = {0: ROUND, 1: LINEAR}.get(keywords.get("order_z", 0))
        force, rounded = keywords.get("force_separate_z", False), True
    elif name == "nnunetv2.preprocessing.resampling.resample_torch.resample_torch_fornnunet":
        linear = keywords.get("mode", LINEAR) == LINEAR
        across = keywords.get("aniso_axis_mode", "nearest-exact")
        force, rounded = keywords.get("force_separate_z"), False
    else:
        return None
    threshold = {key: value for key, value in keywords.items() if key == "separate_z_anisotropy_threshold"}
    separate, axis = determine_do_sep_z_and_axis(force, spacing, new_spacing, **threshold)
    if not linear or (separate and across not in (LINEAR, ROUND, *TORCH_NEAREST)):
        return None
    modes = [LINEAR, LINEAR, LINEAR]
    if separate and axis is not None:
        modes[axis] = str(across)
    first, second, third = (
        SAME if old == new else mode for old, new, mode in zip(shape, new_shape, modes, strict=True)
    )
    # Logits that are not resampled are not rounded either: they have their type.
    return Interpolation((first, second, third), rounded)


@dataclass(frozen=True)
class _Table:
    """Where each voxel of an axis lies on the coarse grid: between ``low`` and ``high``, ``weight`` of the way."""

    low: Tensor
    high: Tensor
    weight: Tensor
    linear: bool


def _table(size: int, new_size: int, mode: str, device: torch.device) -> _Table:
    position = size / new_size * (torch.arange(new_size, dtype=torch.float64) + 0.5) - 0.5
    if mode == LINEAR:
        position = position.clamp(0, size - 1).to(device)  # the edge is repeated outside
        low = position.floor().long()
        return _Table(low, (low + 1).clamp(max=size - 1), (position - low).float(), True)
    if mode in TORCH_NEAREST:  # asked of stock's own functions: a tie decides over a whole slice
        index = torch.nn.functional.interpolate(torch.arange(size).double()[None, None], new_size, mode=mode)[0, 0]
    elif mode == ROUND:
        ramp = np.arange(float(size))
        index = torch.from_numpy(map_coordinates(ramp, position.numpy()[None], order=0, mode="nearest"))
    else:
        index = torch.arange(size)
    low = index.long().to(device)
    return _Table(low, low, torch.zeros(new_size, device=device), False)


def winners(logits: Tensor, regions: bool) -> Tensor:
    """Return the winner of each voxel.

    Args:
        logits: Logits ``(K, *S)``, one channel a class or region.
        regions: Whether the channels are regions, each positive or not, instead of classes of which the largest wins.

    Returns:
        ``(*S)`` int16. For classes the index of the largest logit, the first of equal ones; for regions the index of
        the last whose sigmoid is above 0.5, plus 1, or 0 where there is none.
    """
    if regions:
        winner = torch.zeros(logits.shape[1:], dtype=torch.int16, device=logits.device)
        for channel, values in enumerate(logits):
            winner[torch.sigmoid(values.float()) > 0.5] = channel + 1
        return winner
    best = logits[0].to(torch.float32, copy=True)
    winner = torch.zeros(best.shape, dtype=torch.int16, device=logits.device)
    for channel in range(1, len(logits)):
        values = logits[channel].float()
        larger = values > best
        winner[larger] = channel
        torch.maximum(best, values, out=best)
    return winner


def label_map(
    logits: Tensor | np.ndarray,
    new_shape: Sequence[int],
    interpolation: Interpolation,
    labels: Sequence[int] | None = None,
    out: np.ndarray | None = None,
    device: torch.device | None = None,
) -> np.ndarray:
    """Return the label map that interpolating all logits and comparing them would give.

    Equal to nnU-Net's export up to float ties: classes whose interpolated logits differ by less than rounding.

    Args:
        logits: Logits ``(K, *S)`` of any float type, on any device.
        new_shape: Spatial shape of the label map, in voxels.
        interpolation: Interpolation of the plans, from :func:`plan_interpolation`.
        labels: Label that each channel writes, for regions, in nnU-Net's ``regions_class_order``; ``None`` for classes,
            whose labels are their channels.
        out: Integer array of ``new_shape`` that is written into and returned. It may be a view.
        device: Device to compute on, by default that of the logits. One slice at a time is moved to it.

    Raises:
        ValueError: If ``new_shape`` or ``out`` do not fit.
    """
    logits = torch.from_numpy(logits) if isinstance(logits, np.ndarray) else logits
    if logits.ndim != 4 or len(new_shape) != 3:
        raise ValueError(f"expected logits (K, *S) and a new shape of 3, got {tuple(logits.shape)} and {new_shape}")
    if out is None:
        out = np.empty(tuple(new_shape), np.uint8 if _largest(labels, len(logits)) < 256 else np.uint16)
    if out.shape != tuple(new_shape):
        raise ValueError(f"expected an array of shape {tuple(new_shape)} to write into, got {out.shape}")
    values = None if labels is None else np.array([0, *labels], out.dtype)
    decide = partial(winners, regions=labels is not None)
    work = Slices(logits, new_shape, interpolation, decide, device)
    with torch.inference_mode():
        for index, filled, open_y, open_x in open_voxels([work]):
            result = filled.clone()
            for y, x in chunks(open_y, open_x, len(logits)):
                result[y, x] = decide(work.interpolate(index, y, x))
            winner = result.cpu().numpy()
            out[index] = winner if values is None else values[winner]
    return out


def _largest(labels: Sequence[int] | None, channels: int) -> int:
    return channels - 1 if labels is None else max(labels, default=0)


class CoarseGrid(Protocol):
    """Values ``(K, *S)`` that are asked for one slice at a time, as a tensor gives them, or a file.

    Attributes:
        dtype: Type that interpolated values may be rounded to.
    """

    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """``(K, *S)``."""

    def __getitem__(self, place: tuple[slice, int], /) -> Tensor:
        """Return the slice ``(K, Y, X)`` at ``[:, index]``."""


class Slices:
    """Interpolation of one slice of the result at a time; what neighbouring slices share is kept.

    Args:
        values: Values ``(K, *S)`` of the coarse grid: logits or probabilities.
        new_shape: Spatial shape of the result, in voxels.
        interpolation: How the values are interpolated.
        decide: Makes an integer of each voxel of ``(K, ...)`` values. Where all corners of a block have the same one,
            every voxel in it must have it too; where that does not follow, the integer is negative.
        device: Device to compute on; None is that of the values.

    Attributes:
        cell: The two coarse slices that the slice lies between; set by :meth:`enter`.
        filled: Integer of each voxel ``(Y, X)`` of the slice where it is known.
        known: Where it is, ``(Y, X)`` bool.
    """

    def __init__(
        self,
        values: CoarseGrid | Tensor,
        new_shape: Sequence[int],
        interpolation: Interpolation,
        decide: Callable[[Tensor], Tensor],
        device: torch.device | None = None,
    ) -> None:
        self.values, self.new_shape, self.decide = values, tuple(new_shape), decide
        of_values = values.device if isinstance(values, Tensor) else torch.device("cpu")
        self.device = of_values if device is None else device
        rounded = interpolation.rounded and not all(mode == SAME for mode in interpolation.modes)
        self.type = values.dtype if rounded else torch.float32
        self.z, self.y, self.x = (
            _table(size, new, mode, self.device)
            for size, new, mode in zip(values.shape[1:], new_shape, interpolation.modes, strict=True)
        )
        self.z_low, self.z_high, self.z_weight = (t.tolist() for t in (self.z.low, self.z.high, self.z.weight))
        self.kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.cell: tuple[int, int] | None = None
        self.filled = self.known = torch.empty(0)
        self.plane = torch.empty(0)

    def _coarse(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return values, decisions and whether each in-plane block agrees, of one coarse slice."""
        if index not in self.kept:
            values = self.values[:, index].to(self.device)
            decision = self.decide(values)
            along_x = decision >= 0
            if self.x.linear:
                along_x[:, :-1] &= decision[:, :-1] == decision[:, 1:]
            agrees = along_x.clone()
            if self.y.linear:
                agrees[:-1] &= along_x[1:] & (decision[:-1] == decision[1:])
            self.kept[index] = values, decision, agrees
        return self.kept[index]

    def enter(self, index: int) -> None:
        """Prepare for a slice of the result: fill voxels where the decision is known."""
        cell = self.z_low[index], self.z_high[index]
        self.plane = torch.empty(0)
        if self.cell == cell:
            return
        self.cell, (low, high) = cell, cell
        self.kept = {index: value for index, value in self.kept.items() if index in cell}
        _, decision, agrees = self._coarse(low)
        if high != low:
            _, high_decision, high_agrees = self._coarse(high)
            agrees = agrees & high_agrees & (decision == high_decision)
        y, x = self.y.low[:, None], self.x.low[None, :]
        self.filled, self.known = decision[y, x], agrees[y, x]

    def _plane(self, low: int, high: int, weight: float) -> Tensor:
        """Return the values ``(Y * X, K)`` of the coarse grid in the plane of one slice, float32."""
        plane = self._coarse(low)[0].float()
        if weight > 0:
            plane = torch.lerp(plane, self._coarse(high)[0].float(), weight)
        return plane.flatten(1).T.contiguous()

    def interpolate(self, index: int, y: Tensor, x: Tensor) -> Tensor:
        """Return the values ``(K, N)`` of N voxels of a slice that was entered, rounded as stock would."""
        if not len(self.plane):
            self.plane = self._plane(self.z_low[index], self.z_high[index], self.z_weight[index])
        width = self.values.shape[3]
        wy, wx = self.y.weight[y], self.x.weight[x]
        rows = self.y.low[y] * width, self.y.high[y] * width
        columns = self.x.low[x], self.x.high[x]
        corners = torch.stack(
            [rows[0] + columns[0], rows[0] + columns[1], rows[1] + columns[0], rows[1] + columns[1]], 1
        )
        weights = torch.stack([(1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx], 1)
        mixed = torch.nn.functional.embedding_bag(corners, self.plane, per_sample_weights=weights, mode="sum")
        return mixed.T.to(self.type)


def open_voxels(parts: Sequence[Slices]) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield, slice after slice of a result, what is known of it, and which voxels have to be interpolated.

    Args:
        parts: Values on one or several grids, all of one shape of the result.

    Yields:
        Number of the slice; the decision ``(Y, X)`` where it is the same and known of all parts, anything elsewhere;
        rows and columns of the other voxels. The parts have entered the slice.

    Raises:
        ValueError: If the shapes of the results differ.
    """
    first = parts[0]
    if any(part.new_shape != first.new_shape for part in parts):
        raise ValueError(f"all parts must have one shape, got {[part.new_shape for part in parts]}")
    cells: list[Any] = []
    open_y = open_x = torch.empty(0)
    for index in range(first.new_shape[0]):
        for part in parts:
            part.enter(index)
        if cells != [part.cell for part in parts]:
            cells = [part.cell for part in parts]
            known = first.known
            for part in parts[1:]:
                known = known & part.known & (part.filled == first.filled)
            open_y, open_x = torch.nonzero(~known, as_tuple=True)
        yield index, first.filled, open_y, open_x


def chunks(y: Tensor, x: Tensor, channels: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and columns of voxels, as many at a time as the buffer holds values of."""
    step = max(1, BUFFER_VALUES // channels)
    for start in range(0, len(y), step):
        yield y[start : start + step], x[start : start + step]
