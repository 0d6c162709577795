"""Distributions of intensities that can be merged: exact for integers, a fine logarithmic histogram otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

# float32 has 23 bits of mantissa; without the lowest 12 a bucket is 2**-11 of its value wide, its middle within 2**-12.
_DROPPED_BITS = 12
_CHUNK = 2**21  # voxels looked at together: small beside an image, large beside Python's overhead
_DENSE = 2**22  # integers with a smaller range are counted in an array, others are sorted


def _nothing(dtype: type) -> np.ndarray:
    return np.zeros(0, dtype)


@dataclass(frozen=True)
class IntensityStatistics:
    """The intensities of any number of images, in memory that does not grow with their number.

    Integer-valued images are counted value by value, so that every figure is exact. Others are counted in buckets of
    relative width 2**-11; their minimum, maximum, mean and standard deviation do not depend on the buckets.
    ``a + b`` gives the same as counting all voxels at once: counts are integers, and sums are exact fractions of what
    each image contributes, so that neither order nor grouping matters.

    Attributes:
        values: Integer values, ascending, float64 ``(V,)``.
        counts: Number of voxels of each value, int64 ``(V,)``.
        buckets: Keys of the buckets of the images that are not integer-valued, uint32 ``(K,)``, ascending.
        bucket_counts: Number of voxels in each bucket, int64 ``(K,)``.
        minimum: Smallest value of all voxels; infinite if there is none.
        maximum: Largest value of all voxels; minus infinite if there is none.
        total: Sum of the voxels that lie in buckets.
        squares: Sum of the squares of these voxels.
    """

    values: np.ndarray = field(default_factory=lambda: _nothing(np.float64))
    counts: np.ndarray = field(default_factory=lambda: _nothing(np.int64))
    buckets: np.ndarray = field(default_factory=lambda: _nothing(np.uint32))
    bucket_counts: np.ndarray = field(default_factory=lambda: _nothing(np.int64))
    minimum: float = np.inf
    maximum: float = -np.inf
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)

    @classmethod
    def of(cls, image: np.ndarray) -> IntensityStatistics:
        """Count the voxels of one image.

        Args:
            image: Array of any shape; looked at as float32, as nnU-Net reads images.

        Raises:
            ValueError: If a value is NaN or infinite.
        """
        if image.size == 0:
            return cls()
        minimum, maximum, integer = _extremes(image)
        if not (np.isfinite(minimum) and np.isfinite(maximum)):
            raise ValueError("NaN or infinite values; replace them by values that mean something")
        if integer:
            values, counts = _count_integers(image, minimum, maximum)
            return cls(values=values, counts=counts, minimum=minimum, maximum=maximum)
        buckets, counts = _count_buckets(image)
        mean, deviations = _moments(image)
        return cls(
            buckets=buckets,
            bucket_counts=counts,
            minimum=minimum,
            maximum=maximum,
            total=image.size * Fraction(mean),
            squares=Fraction(deviations) + image.size * Fraction(mean) ** 2,
        )

    @property
    def count(self) -> int:
        """Number of voxels."""
        return int(self.counts.sum()) + int(self.bucket_counts.sum())

    @property
    def integer_valued(self) -> bool:
        """Whether every image was integer-valued."""
        return len(self.buckets) == 0

    def __add__(self, other: IntensityStatistics) -> IntensityStatistics:
        """Return the statistics of the voxels of both."""
        values, counts = _add_counts(self.values, self.counts, other.values, other.counts)
        buckets, bucket_counts = _add_counts(self.buckets, self.bucket_counts, other.buckets, other.bucket_counts)
        return IntensityStatistics(
            values,
            counts,
            buckets,
            bucket_counts,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.total + other.total,
            self.squares + other.squares,
        )

    def distribution(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ascending values (the middle of each bucket) and how often they occur, float64 and int64 ``(V,)``."""
        middles = np.clip(_middle(self.buckets), self.minimum, self.maximum)
        return _add_counts(self.values, self.counts, middles, self.bucket_counts)

    def percentiles(self, percentages: Sequence[float]) -> list[float]:
        """Return percentiles with linear interpolation, as :func:`numpy.percentile` does over all voxels.

        Args:
            percentages: Which percentiles, from 0 to 100.

        Raises:
            ValueError: If there is no voxel.
        """
        if self.count == 0:
            raise ValueError("no voxel, so no percentile")
        values, counts = self.distribution()
        ends = np.cumsum(counts)
        # The first and last order statistics are known exactly, whatever bucket they lie in.
        values[0], values[-1] = self.minimum, self.maximum
        result = []
        for percentage in percentages:
            position = (self.count - 1) * (percentage / 100)
            below = int(np.floor(position))
            low, high = (
                float(values[np.searchsorted(ends, min(rank, self.count - 1), side="right")])
                for rank in (below, below + 1)
            )
            fraction = position - below
            step = high - low
            # The two forms of numpy's interpolation, so that rounding is the same.
            result.append(high - step * (1 - fraction) if fraction >= 0.5 else low + step * fraction)
        return result

    def summary(self) -> dict[str, float]:
        """Return the keys of nnU-Net's ``foreground_intensity_properties_per_channel``, of one channel.

        Raises:
            ValueError: If there is no voxel.
        """
        low, median, high = self.percentiles((0.5, 50.0, 99.5))
        integers = [(int(value), count) for value, count in zip(self.values, self.counts.tolist(), strict=True)]
        total = self.total + sum(count * value for value, count in integers)
        squares = self.squares + sum(count * value**2 for value, count in integers)
        mean = total / self.count
        variance = squares / self.count - mean**2
        return {
            "mean": float(mean),
            "median": median,
            "std": float(max(variance, Fraction(0))) ** 0.5,
            "min": float(self.minimum),
            "max": float(self.maximum),
            "percentile_99_5": high,
            "percentile_00_5": low,
        }


def _chunks(image: np.ndarray) -> Iterator[np.ndarray]:
    """Yield flat float32 pieces, without a copy where the memory allows."""
    rows = image.reshape(-1) if image.flags.c_contiguous else image
    if rows.ndim == 1:
        for start in range(0, len(rows), _CHUNK):
            yield rows[start : start + _CHUNK].astype(np.float32, copy=False)
        return
    step = max(1, _CHUNK // max(1, rows[0].size))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        if part.size > 2 * _CHUNK and part.ndim > 1 and len(part) == 1:
            yield from _chunks(part[0])
        else:
            yield part.astype(np.float32, copy=False).reshape(-1)


def _extremes(image: np.ndarray) -> tuple[float, float, bool]:
    """Return minimum, maximum (NaN if there is one) and whether all values are integers."""
    low, high, integer = np.inf, -np.inf, True
    for chunk in _chunks(image):
        low, high = np.minimum(low, chunk.min()), np.maximum(high, chunk.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            return float(low), float(high), False
        integer = integer and bool((np.rint(chunk) == chunk).all())
    return float(low), float(high), integer


def _count_integers(image: np.ndarray, minimum: float, maximum: float) -> tuple[np.ndarray, np.ndarray]:
    if maximum - minimum < _DENSE:
        dense = np.zeros(int(maximum - minimum) + 1, np.int64)
        for chunk in _chunks(image):
            found = np.bincount((chunk - np.float32(minimum)).astype(np.int64))
            dense[: len(found)] += found
        offsets = np.flatnonzero(dense)
        return offsets + minimum, dense[offsets]
    values, counts = _nothing(np.float64), _nothing(np.int64)
    for chunk in _chunks(image):
        found, occurrences = np.unique(chunk, return_counts=True)
        values, counts = _add_counts(values, counts, found.astype(np.float64), occurrences)
    return values, counts


def _count_buckets(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dense = np.zeros(2 ** (32 - _DROPPED_BITS), np.int64)
    for chunk in _chunks(image):
        # Adding 0 makes -0 a 0.
        chunk_counts = np.bincount((chunk + np.float32(0)).view(np.uint32) >> _DROPPED_BITS)
        dense[: len(chunk_counts)] += chunk_counts
    keys = np.flatnonzero(dense)
    return keys.astype(np.uint32), dense[keys]


def _middle(buckets: np.ndarray) -> np.ndarray:
    """Return the middle of each bucket as float64; the buckets of the smallest numbers stand for 0."""
    middles = ((buckets << _DROPPED_BITS) | np.uint32(1 << (_DROPPED_BITS - 1))).view(np.float32).astype(np.float64)
    middles[(buckets << 1 << _DROPPED_BITS) == 0] = 0
    return middles


def _moments(image: np.ndarray) -> tuple[float, float]:
    """Return mean and sum of squared deviations, float64, in two passes."""
    mean = sum(float(chunk.sum(dtype=np.float64)) for chunk in _chunks(image)) / image.size
    deviations = sum(float(np.square(np.subtract(chunk, mean, dtype=np.float64)).sum()) for chunk in _chunks(image))
    return mean, deviations


def _add_counts(
    values: np.ndarray, counts: np.ndarray, more: np.ndarray, more_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Merge two lists of values and counts; the values ascend."""
    joined = np.concatenate([values, more])
    if len(joined) == 0:
        return joined, np.concatenate([counts, more_counts])
    order = np.argsort(joined, kind="stable")
    joined, joined_counts = joined[order], np.concatenate([counts, more_counts])[order]
    starts = np.flatnonzero(np.concatenate([[True], joined[1:] != joined[:-1]]))
    return joined[starts], np.add.reduceat(joined_counts, starts)
