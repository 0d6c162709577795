"""What a fingerprint needs to know of one case, and the files in which it is kept until the scan changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_ext.data.geometry import nonzero_box, orientation
from nnunet_ext.data.reading import describe, read_checked, read_labels
from nnunet_ext.data.signature import case_source
from nnunet_ext.files import DiskFullError, whole
from nnunet_ext.fingerprints.intensity import IntensityStatistics

VERSION = 2  # of the files; others are made anew
PERCENTAGES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)


@dataclass
class CaseStatistics:
    """One case, without its voxels.

    Attributes:
        source: Path, size and time of the files that the case was made of.
        shape: Size in voxels before the crop, in the reader's order of axes.
        shape_after_crop: Size in voxels of the non-zero box.
        spacing: Spacing in mm, in the reader's order of axes.
        orientation: Letters of where the axes of the file point, e.g. ``"LPS"``; None where the reader does not say.
        images: Intensities of all voxels of the box, one entry a channel.
        foreground: Intensities of the voxels with a label above 0, one entry a channel; None for a case without
            label.
        percentiles: Percentiles of each channel, at ``PERCENTAGES``, ``(C, 7)``.
        integer_valued: Whether all values are integers, for each channel.
        extremes: Minimum and maximum of each channel, ``(C, 2)``.
        labels: Values of the case's label map, ascending; None without one, or where they are no integers.
    """

    source: dict[str, Any]
    shape: list[int]
    shape_after_crop: list[int]
    spacing: list[float]
    orientation: str | None
    images: list[IntensityStatistics] = field(default_factory=list)
    foreground: list[IntensityStatistics] | None = None
    percentiles: list[list[float]] = field(default_factory=list)
    integer_valued: list[bool] = field(default_factory=list)
    extremes: list[list[float]] = field(default_factory=list)
    labels: list[float] | None = None


def analyze(
    images: tuple[str, ...],
    label: str | None,
    reader_class: type[BaseReaderWriter],
    channels: int,
    target: str,
    samples: tuple[str, int] | None = None,
) -> None:
    """Read one case, look at all its voxels, and write what was found; runs in a worker.

    Args:
        images: Image files of the case, one a channel.
        label: File of the case's label map, or None.
        reader_class: nnU-Net's reader of these files.
        channels: Channels that dataset.json declares.
        target: File to write, see :func:`save`.
        samples: File and number of the foreground voxels a channel that nnU-Net's own statistics draw (with a label).

    Raises:
        DiskFullError: If what was found cannot be written for lack of room.
        ValueError: Names the file that is wrong, what was expected and what to do.
    """
    files = (*images, label) if label is not None else images
    try:
        source = case_source(files, reader_class, channels)
        # Labelled cases are judged as nnU-Net judges them.
        data, properties = read_checked(images, reader_class, channels, strict=label is None)
        box = nonzero_box(data)
        case = CaseStatistics(
            source=source,
            shape=[int(n) for n in data.shape[1:]],
            shape_after_crop=[s.stop - s.start for s in box],
            spacing=[float(s) for s in properties["spacing"]],
            orientation=orientation(properties),
        )
        case.images = [IntensityStatistics.of(channel[box]) for channel in data]
        case.percentiles = [statistics.percentiles(PERCENTAGES) for statistics in case.images]
        case.integer_valued = [statistics.integer_valued for statistics in case.images]
        case.extremes = [[statistics.minimum, statistics.maximum] for statistics in case.images]
        if label is not None:
            _analyze_foreground(case, data, box, label, reader_class, samples)
        save(case, Path(target))
    except DiskFullError:  # not the scan's fault
        raise
    except Exception as error:
        raise ValueError(describe(error, files)) from error


def _analyze_foreground(
    case: CaseStatistics,
    data: np.ndarray,
    box: tuple[slice, ...],
    label: str,
    reader_class: type[BaseReaderWriter],
    samples: tuple[str, int] | None,
) -> None:
    segmentation = read_labels(label, reader_class, data.shape[1:])
    values = IntensityStatistics.of(segmentation[0])
    case.labels = [float(value) for value in values.distribution()[0]] if values.integer_valued else None
    case.foreground = [IntensityStatistics.of(channel[segmentation[0] > 0]) for channel in data]
    if samples is not None:
        # Imports torch, which takes seconds and 200 MB; workers that see unlabelled scans only do without.
        from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

        # nnU-Net's crop, in which its drawing numbers the voxels; what it changes besides is background.
        index = (slice(None), *box)
        voxels, _ = DatasetFingerprintExtractor.collect_foreground_intensities(
            segmentation[index], data[index], num_samples=samples[1]
        )
        with whole(samples[0]) as temporary, open(temporary, "wb") as file:
            np.save(file, np.array(voxels), allow_pickle=False)


def case_file(folder: Path, name: str) -> Path:
    """Return where a case is kept; any name makes a file of this folder."""
    quoted = quote(name, safe="")
    if len(quoted) > 150:  # file systems end at 255, and the temporary name needs some
        quoted = f"{quoted[:100]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return folder / f"{quoted}.npz"


def save(case: CaseStatistics, path: Path) -> None:
    """Write a case (numpy arrays and JSON, no pickle), whole or not at all."""
    arrays = {}
    metadata = {key: value for key, value in vars(case).items() if key not in ("images", "foreground")}
    for group, statistics in (("images", case.images), ("foreground", case.foreground or [])):
        metadata[group] = []
        for channel, channel_statistics in enumerate(statistics):
            for key in ("values", "counts", "buckets", "bucket_counts"):
                arrays[f"{group}_{channel}_{key}"] = getattr(channel_statistics, key)
            metadata[group].append(
                {
                    "minimum": channel_statistics.minimum if channel_statistics.count else None,
                    "maximum": channel_statistics.maximum if channel_statistics.count else None,
                    "total": [str(channel_statistics.total.numerator), str(channel_statistics.total.denominator)],
                    "squares": [str(channel_statistics.squares.numerator), str(channel_statistics.squares.denominator)],
                }
            )
    metadata |= {"version": VERSION, "labelled": case.foreground is not None}
    with whole(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, metadata=np.array(json.dumps(metadata)), **arrays)


def load(path: Path, source: dict[str, Any] | None = None) -> CaseStatistics | None:
    """Read a case that was kept.

    Args:
        path: File, as :func:`save` writes it.
        source: Path, size and time of the case's files now; None does not compare.

    Returns:
        The case, or None where there is none, it is damaged, or its files have changed.
    """
    try:
        # Opened here: numpy leaves a damaged file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            metadata = json.loads(str(archive["metadata"]))
            if metadata.pop("version") != VERSION or (source is not None and metadata["source"] != source):
                return None
            groups: dict[str, list[IntensityStatistics]] = {}
            for group in ("images", "foreground"):
                groups[group] = [
                    _statistics(entry, {key: archive[f"{group}_{channel}_{key}"] for key in _ARRAYS})
                    for channel, entry in enumerate(metadata.pop(group))
                ]
            foreground = groups["foreground"] if metadata.pop("labelled") else None
            return CaseStatistics(**metadata, images=groups["images"], foreground=foreground)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    except Exception as error:  # a damaged archive: zipfile has errors of its own
        if type(error).__module__ in ("zipfile", "zlib"):
            return None
        raise


_ARRAYS = ("values", "counts", "buckets", "bucket_counts")


def _statistics(entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> IntensityStatistics:
    return IntensityStatistics(
        **arrays,
        minimum=np.inf if entry["minimum"] is None else entry["minimum"],
        maximum=-np.inf if entry["maximum"] is None else entry["maximum"],
        total=Fraction(int(entry["total"][0]), int(entry["total"][1])),
        squares=Fraction(int(entry["squares"][0]), int(entry["squares"][1])),
    )


def merge(cases: Iterable[list[IntensityStatistics]]) -> list[IntensityStatistics]:
    """Merge the channels of any number of cases, holding few of them at a time.

    Partial results of the same number of cases are merged first, so that a long list is not walked through again for
    every case.

    Args:
        cases: Lists of channels, one a case.

    Returns:
        One entry a channel; empty if there is no case.
    """
    partial: list[tuple[int, list[IntensityStatistics]]] = []
    for case in cases:
        size, channels = 1, case
        while partial and partial[-1][0] == size:
            earlier, earlier_channels = partial.pop()
            size, channels = size + earlier, [a + b for a, b in zip(earlier_channels, channels, strict=True)]
        partial.append((size, channels))
    result: list[IntensityStatistics] = []
    for _, channels in reversed(partial):
        result = [a + b for a, b in zip(channels, result, strict=True)] if result else channels
    return result
