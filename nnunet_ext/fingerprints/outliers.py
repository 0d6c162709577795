"""Scans that look unlike the others: warnings before a planning, never errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from nnunetv2.configuration import ANISO_THRESHOLD

from nnunet_ext.data.dataset_json import channel_names
from nnunet_ext.fingerprints.case_statistics import CaseStatistics

_FEWEST = 3  # cases that make a reference
_DISTANCE = 0.25  # of the reference's range: other fields of view of one modality stay below
_RARE = 0.15  # share of the reference below which an orientation is worth a word
_SHOWN = 5


@dataclass(frozen=True)
class Outlier:
    """One thing that is odd about one case.

    Attributes:
        case: Case name.
        kind: What is odd, the same words for all such cases.
        detail: Figures that show it.
    """

    case: str
    kind: str
    detail: str


def find_outliers(
    labelled: Mapping[str, CaseStatistics], unlabelled: Mapping[str, CaseStatistics], dataset_json: dict[str, Any]
) -> list[Outlier]:
    """Compare every case with the labelled ones (with all, where there are fewer than three labelled).

    Args:
        labelled: Labelled cases by name.
        unlabelled: Unlabelled cases by name.
        dataset_json: The dataset's dataset.json, which names the channels and the labels.
    """
    cases = dict(labelled) | dict(unlabelled)
    if not cases:
        return []
    reference = list(labelled.values()) if len(labelled) >= _FEWEST else list(cases.values())
    outliers: list[Outlier] = []
    for name, case in cases.items():
        outliers += _voxels(name, case, channel_names(dataset_json))
    for name, case in labelled.items():
        outliers += _labels(name, case, dataset_json)
    outliers += _single_slices(cases)
    if len(cases) >= _FEWEST:
        outliers += _geometry(cases, reference)
        for channel, title in enumerate(channel_names(dataset_json)):
            outliers += _intensities(cases, reference, channel, title)
    return outliers


def _voxels(name: str, case: CaseStatistics, channels: list[str]) -> list[Outlier]:
    outliers = []
    for channel, title in enumerate(channels):
        minimum, maximum = case.extremes[channel]
        if minimum == maximum:
            outliers.append(Outlier(name, "constant image", f"channel {title}: {minimum:g} everywhere"))
        elif title.lower() == "ct" and not case.integer_valued[channel]:
            outliers.append(Outlier(name, "CT values that are no integers", f"channel {title}; HU are expected"))
    return outliers


def _labels(name: str, case: CaseStatistics, dataset_json: dict[str, Any]) -> list[Outlier]:
    """Find label values that dataset.json does not have: nnU-Net takes them for background, or stops in training."""
    file = [file for file in case.source["files"] if not file.endswith(".json")][-1]  # after the images
    if case.labels is None:
        return [Outlier(name, "label values that are no integers", f"{file}; labels are 0, 1, 2, ...")]
    labels = np.concatenate([np.ravel(value) for value in dataset_json["labels"].values()]).astype(int).tolist()
    unknown = sorted(set(case.labels) - set(labels))
    if not unknown:
        return []
    unknown_text = ", ".join(f"{value:g}" for value in unknown[:_SHOWN]) + (", ..." if len(unknown) > _SHOWN else "")
    known_text = ", ".join(str(value) for value in sorted(set(labels)))
    return [
        Outlier(
            name, "label values that dataset.json does not have", f"{file} has {unknown_text}; named are {known_text}"
        )
    ]


def _single_slices(cases: Mapping[str, CaseStatistics]) -> list[Outlier]:
    names = [name for name, case in cases.items() if min(case.shape) == 1]
    if 2 * len(names) > len(cases):  # a 2D dataset
        return []
    return [Outlier(name, "one slice", f"shape {tuple(cases[name].shape)}") for name in names]


def _geometry(cases: Mapping[str, CaseStatistics], reference: list[CaseStatistics]) -> list[Outlier]:
    outliers = []
    median = np.median([case.spacing for case in reference], 0)
    orientations = Counter(case.orientation for case in reference)
    usual_orientation = orientations.most_common(1)[0][0]
    for name, case in cases.items():
        factors = np.asarray(case.spacing) / median
        if max(factors.max(), 1 / factors.min()) > ANISO_THRESHOLD:
            spacing = " x ".join(f"{s:g}" for s in case.spacing)
            usual_spacing = " x ".join(f"{s:g}" for s in median)
            outliers.append(Outlier(name, "spacing unlike the others", f"{spacing} mm, median {usual_spacing} mm"))
        if orientations[case.orientation] < _RARE * len(reference):
            outliers.append(
                Outlier(name, "orientation unlike the others", f"{case.orientation}, most are {usual_orientation}")
            )
    return outliers


def _intensities(
    cases: Mapping[str, CaseStatistics], reference: list[CaseStatistics], channel: int, title: str
) -> list[Outlier]:
    """Mean distance of percentiles from the reference's medians, beside the reference's own spread."""
    table = np.array([case.percentiles[channel] for case in reference])
    medians = np.median(table, 0)
    scale = medians[-1] - medians[0]
    if scale <= 0:
        return []
    distances = np.abs(table - medians).mean(1) / scale
    spread = 1.4826 * float(np.median(np.abs(distances - np.median(distances))))
    limit = max(_DISTANCE, float(np.median(distances)) + 5 * spread)
    outliers = []
    for name, case in cases.items():
        of_case = np.array(case.percentiles[channel])
        if np.abs(of_case - medians).mean() / scale > limit:
            detail = (
                f"channel {title}: 99 % in [{of_case[0]:g}, {of_case[-1]:g}], usually [{medians[0]:g}, "
                f"{medians[-1]:g}]; "
                "another modality, unit or window?"
            )
            outliers.append(Outlier(name, "intensities unlike the others", detail))
    return outliers


def format_outliers(outliers: list[Outlier]) -> str:
    """Return a text with one paragraph a kind; long lists are cut."""
    kinds: dict[str, list[Outlier]] = {}
    for outlier in outliers:
        kinds.setdefault(outlier.kind, []).append(outlier)
    lines = []
    for kind, members in kinds.items():
        lines.append(f"WARNING: {kind} ({len(members)} case(s)):")
        lines += [f"  {m.case}: {m.detail}" for m in members[:_SHOWN]]
        if len(members) > _SHOWN:
            lines.append(f"  ... and {len(members) - _SHOWN} more")
    return "\n".join(lines)
