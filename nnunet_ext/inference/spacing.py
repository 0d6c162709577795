"""Rules that choose the spacings of a case: the one declared to the preprocessor, and the one it resamples to.

Forced spacing is Huang, Zhang, Yan, Hassan, "3D Cross Pseudo Supervision (3D-CPS)", FLARE 2022. All spacings are in mm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

from nnunet_ext.inference.axes import XYZ, Axes

PAPER_SPACING = (0.75, 0.75, 0.5)
RELEASED_SPACING = (1.0, 1.0, 1.5)
FEW_SLICES, MANY_SLICES, SMALLEST_FACTOR = 150, 600, 0.8
KEEP = -1  # of a target spacing: the plans' value


@dataclass(frozen=True)
class CaseGeometry:
    """Shape, spacings and axes of a case, from which its spacings are chosen. Everything is in array order.

    Attributes:
        shape: Number of voxels of the image along each axis.
        cropped_shape: Number of voxels of the image's non-zero part, which is what nnU-Net resamples.
        spacing: True spacing of the image in mm.
        plan_spacing: Spacing in mm that the network was trained at, ``None`` for the axis that a 2d configuration does
            not resample.
        axes: Array axes of the patient's x, y and z.
    """

    shape: tuple[int, int, int]
    cropped_shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    plan_spacing: tuple[float | None, float | None, float | None]
    axes: Axes


@dataclass(frozen=True)
class SpacingChoice:
    """The spacings of one case, in mm and in array order.

    Attributes:
        declared: Spacing that is given to the preprocessor as that of the image.
        target: Spacing that the preprocessor resamples to; ``None`` where it does not resample.
    """

    declared: tuple[float, float, float]
    target: tuple[float | None, float | None, float | None]

    def resampled_shape(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Return the number of voxels of each axis after resampling, rounded as nnU-Net rounds."""
        target = [kept if to is None else to for kept, to in zip(self.declared, self.target, strict=True)]
        first, second, third = (int(n) for n in compute_new_shape(list(shape), list(self.declared), target))
        return first, second, third

    def stretch(self, case: CaseGeometry) -> tuple[float, float, float]:
        """Return by how much larger than in training things appear to the network, along each axis.

        1 is as in training; 0.5 is half as large. An axis that is not resampled counts as 1.
        """
        factors = (
            1.0 if plan is None or to is None else (declared / true) * (plan / to)
            for plan, to, declared, true in zip(
                case.plan_spacing, self.target, self.declared, case.spacing, strict=True
            )
        )
        first, second, third = factors
        return first, second, third


class SpacingRule(Protocol):
    """Chooses the spacings of a case."""

    def choose(self, case: CaseGeometry) -> SpacingChoice:
        """Choose the spacings of a case."""
        ...  # pragma: no cover

    def describe(self) -> str:
        """Return the rule as a user would write it on the command line."""
        ...  # pragma: no cover


@dataclass(frozen=True)
class PlansSpacing:
    """nnU-Net's own: true spacing, resampled to the plans' spacing."""

    def choose(self, case: CaseGeometry) -> SpacingChoice:
        """Return the true spacing and the plans' one."""
        return SpacingChoice(case.spacing, case.plan_spacing)

    def describe(self) -> str:
        """Return the rule as a user would write it: nothing."""
        return "plans"


@dataclass(frozen=True)
class ForcedSpacing:
    """The forced spacing of 3D-CPS: the spacing declared to the preprocessor replaces the true one.

    With S slices along the axial axis the declared spacing is (sx, sy, true z) below 150 slices, (sx, sy, sz) up to
    600, and (sx, sy, max(0.8, 600 / S) sz) above. Axes that a 2d configuration does not resample keep their true
    spacing.

    Attributes:
        sx: Declared left-right spacing in mm. The defaults are the paper's; the released code has 1, 1, 1.5.
        sy: Declared front-back spacing in mm.
        sz: Declared head-foot spacing in mm.

    Raises:
        ValueError: If a value is not positive and finite.
    """

    sx: float = PAPER_SPACING[0]
    sy: float = PAPER_SPACING[1]
    sz: float = PAPER_SPACING[2]

    def __post_init__(self) -> None:
        """Check the values."""
        check_positive((self.sx, self.sy, self.sz), "forced spacing")

    def declared_xyz(self, slices: int, true_z: float) -> tuple[float, float, float]:
        """Return the declared spacing in the order x, y, z.

        Args:
            slices: Number of slices along the axial axis.
            true_z: True spacing along it, in mm.
        """
        if slices < FEW_SLICES:
            return self.sx, self.sy, true_z
        if slices <= MANY_SLICES:
            return self.sx, self.sy, self.sz
        return self.sx, self.sy, max(SMALLEST_FACTOR, MANY_SLICES / slices) * self.sz

    def choose(self, case: CaseGeometry) -> SpacingChoice:
        """Replace the true spacing, and keep the plans' target."""
        axial = case.axes.axial
        forced = case.axes.to_array(self.declared_xyz(case.shape[axial], case.spacing[axial]))
        first, second, third = (
            true if plan is None else value
            for true, plan, value in zip(case.spacing, case.plan_spacing, forced, strict=True)
        )
        return SpacingChoice((first, second, third), case.plan_spacing)

    def describe(self) -> str:
        """Return the rule as a user would write it on the command line."""
        return f"--forced_spacing {self.sx:g} {self.sy:g} {self.sz:g}"


@dataclass(frozen=True)
class TargetSpacing:
    """Another spacing to resample to instead of the plans' one; the geometry stays true.

    Attributes:
        sx: Left-right spacing to resample to, in mm; -1 keeps the plans' value.
        sy: Front-back spacing to resample to, in mm; -1 keeps the plans' value.
        sz: Head-foot spacing to resample to, in mm; -1 keeps the plans' value.

    Raises:
        ValueError: If a value is neither positive and finite nor -1.
    """

    sx: float
    sy: float
    sz: float

    def __post_init__(self) -> None:
        """Check the values."""
        values = (self.sx, self.sy, self.sz)
        check_positive(tuple(1.0 if value == KEEP else value for value in values), "target spacing", values)

    def choose(self, case: CaseGeometry) -> SpacingChoice:
        """Replace the plans' target where a value is given."""
        target = case.axes.to_array((self.sx, self.sy, self.sz))
        first, second, third = (
            plan if plan is None or value == KEEP else value
            for plan, value in zip(case.plan_spacing, target, strict=True)
        )
        return SpacingChoice(case.spacing, (first, second, third))

    def describe(self) -> str:
        """Return the rule as a user would write it on the command line."""
        return f"--target_spacing {self.sx:g} {self.sy:g} {self.sz:g}"


@dataclass(frozen=True)
class MaxVoxels:
    """The finest true-geometry spacing whose resampled volume has at most so many voxels.

    It is the plans' spacing where that fits, and else the plans' spacing times the smallest factor that does, the same
    for every axis, so that things keep the proportions they had in training. It is never finer than the plans' one.

    Attributes:
        voxels: Largest number of voxels of the resampled volume, counted in one channel.

    Raises:
        ValueError: If the number is not at least 1.
    """

    voxels: int

    def __post_init__(self) -> None:
        """Check the values."""
        if not math.isfinite(self.voxels) or self.voxels < 1 or int(self.voxels) != self.voxels:
            raise ValueError(f"max voxels must be an integer of at least 1, got {self.voxels}; pass e.g. 20000000")

    def choose(self, case: CaseGeometry) -> SpacingChoice:
        """Scale the plans' target by the smallest factor that fits."""

        def scaled(factor: float) -> SpacingChoice:
            first, second, third = (None if plan is None else plan * factor for plan in case.plan_spacing)
            return SpacingChoice(case.spacing, (first, second, third))

        def fits(factor: float) -> bool:
            shape = scaled(factor).resampled_shape(case.cropped_shape)
            return math.prod(max(1, size) for size in shape) <= self.voxels

        return scaled(_smallest(fits, 1.0))

    def describe(self) -> str:
        """Return the rule as a user would write it on the command line."""
        return f"--max_voxels {self.voxels}"


def check_positive(values: tuple[Any, ...], what: str, shown: tuple[Any, ...] | None = None) -> None:
    """Refuse anything but three positive, finite lengths.

    Args:
        values: Three lengths in mm, of x, y and z.
        what: Kind of the lengths, for the message, e.g. ``forced spacing``.
        shown: Values that the message shows instead of ``values``.

    Raises:
        ValueError: If the values are not three positive, finite lengths.
    """
    try:
        valid = len(values) == 3 and all(math.isfinite(value) and value > 0 for value in values)
    except TypeError:
        valid = False
    if not valid:
        keep = ", or -1 to keep the plans' value" if what.startswith("target") else ""
        text = " ".join(str(value) for value in (values if shown is None else shown))
        raise ValueError(f"{what} must be 3 positive values in mm{keep}, got {text}; pass e.g. 1.5 1.5 1.5")


def check_shape(choice: SpacingChoice, case: CaseGeometry, rule: SpacingRule) -> None:
    """Refuse spacings so coarse that an axis would have fewer than 2 voxels, and fewer than with the plans' spacing.

    Raises:
        ValueError: If an axis would have too few voxels; names the axis and the coarsest spacing that it allows.
    """
    shape = choice.resampled_shape(case.cropped_shape)
    usual = PlansSpacing().choose(case).resampled_shape(case.cropped_shape)
    for letter, axis in zip(XYZ, case.axes.of, strict=True):
        target = choice.target[axis]
        if target is not None and shape[axis] < min(2, usual[axis]):
            length = choice.declared[axis] * case.cropped_shape[axis]
            raise ValueError(
                f"{rule.describe()} leaves {shape[axis]} voxel(s) along {letter} ({length:g} mm resampled to "
                f"{target:g} mm), expected at least 2; use a spacing below {length / 2:g} mm along {letter}"
                + (", or more voxels" if isinstance(rule, MaxVoxels) else "")
            )


def _smallest(fits: Callable[[float], bool], start: float) -> float:
    """Return the smallest factor from ``start`` on that fits, to a millionth; it fits all the larger ones too."""
    if fits(start):
        return start
    low, high = start, start
    while not fits(high):
        low, high = high, high * 2
        if high > 1e9:
            return high  # one voxel an axis is still too many: the check of the shape says so
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
