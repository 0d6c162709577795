"""Which scans a person should label next: those that networks agree about least, of all kinds of scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunet_ext.pseudo_labels.selection import CaseScores

_DIGITS = 9  # of distances: ties must not depend on the order of a sum


def annotate_first(
    cases: Sequence[CaseScores], features: Mapping[str, Mapping[str, Any]] | None = None, clusters: int = 1
) -> list[tuple[CaseScores, int]]:
    """Order cases by how much a label of them is worth.

    Args:
        cases: Scores; cases without one, in which no network finds anything, come last.
        features: Case -> name -> numbers, by which scans are alike or not; needed for clusters.
        clusters: Number of clusters of alike scans that take turns; 1 orders by agreement alone.

    Returns:
        Cases with their clusters, counted from 1, the first to annotate first.
    """
    ordered = sorted(cases, key=lambda case: (np.isnan(case.score), case.score, case.name))
    if clusters <= 1 or features is None or len(ordered) < 2:
        return [(case, 1) for case in ordered]
    places = standardised([features[case.name] for case in ordered])
    number = farthest_first(places, clusters)
    places_of: dict[int, list[int]] = {}
    for place, cluster in enumerate(number):
        places_of.setdefault(cluster, []).append(place)
    turns = sorted((turn, place) for own in places_of.values() for turn, place in enumerate(own))
    return [(ordered[place], number[place] + 1) for _, place in turns]


def standardised(features: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return numbers of each case, of mean 0 and deviation 1, each feature weighing the same however many it has.

    Args:
        features: Name -> numbers of each case. Lengths in mm, whose names say so, count by their logarithms.
    """
    columns = []
    for name in features[0]:
        values = np.array([np.ravel(np.asarray(case[name], float)) for case in features])
        if name.endswith("_mm"):
            values = np.log(np.maximum(values, 1e-6))
        spread = values.std(0)
        values = (values - values.mean(0)) / np.where(spread > 1e-9, spread, 1)
        columns.append(values / np.sqrt(values.shape[1]))
    return np.concatenate(columns, 1)


def farthest_first(places: np.ndarray, clusters: int) -> list[int]:
    """Return the cluster of each place: centres are the first place, then always the one farthest from all centres.

    Args:
        places: ``(N, D)``.
        clusters: Number of clusters; fewer are made where places coincide.
    """
    nearest = np.zeros(len(places), int)
    distance = np.round(((places - places[0]) ** 2).sum(1), _DIGITS)
    for cluster in range(1, min(clusters, len(places))):
        centre = int(distance.argmax())
        if distance[centre] <= 0:
            break
        to_centre = np.round(((places - places[centre]) ** 2).sum(1), _DIGITS)
        nearest[to_centre < distance] = cluster
        distance = np.minimum(distance, to_centre)
    return [int(cluster) for cluster in nearest]
