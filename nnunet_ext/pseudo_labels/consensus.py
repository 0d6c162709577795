"""What the members say of one scan: each predicts it, and then they are compared."""

from __future__ import annotations

import contextlib
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nnunet_ext import files
from nnunet_ext.inference.agreement_scores import Agreement
from nnunet_ext.inference.case import Model, Prepared
from nnunet_ext.inference.comparison import Frame, Grid, WorstSlice, compare, frame_of, keep_logits
from nnunet_ext.pseudo_labels.panel import Group, Panel, Seat


class MemberFailedError(RuntimeError):
    """A network could not predict a scan; the message names it."""


@dataclass(frozen=True)
class Consensus:
    """What the networks say of a scan, at its own size and order of axes.

    Attributes:
        labels: Label map ``(*S)``.
        uncertain: Where a network disagrees with it, or its probability is below the threshold, ``(*S)`` bool.
        agreement: Counts, of which the scores are made.
        worst: The slice that they disagree about most.
        seconds: Stage -> seconds.
    """

    labels: np.ndarray
    uncertain: np.ndarray
    agreement: Agreement
    worst: WorstSlice
    seconds: dict[str, float]


def find_consensus(panel: Panel, prepared: list[Prepared], folder: Path, min_probability: float = 0.0) -> Consensus:
    """Let all members predict a scan.

    Args:
        panel: The members.
        prepared: The scan as each group sees it; emptied, so that no image is held longer than needed.
        folder: On whose disk the logits lie meanwhile: two bytes a voxel of the networks' grid, class and network, in
            files without names.
        min_probability: Mean probability below which a voxel is uncertain; 0 asks for agreement alone.

    Raises:
        DiskFullError: If there is no room for the logits.
        MemberFailedError: If a network cannot predict the scan; names it.
        ValueError: If the models crop the scan differently.
    """
    clock = time.perf_counter()
    seconds = {"network": 0.0}
    grids: list[Grid] = []
    frames: list[Frame] = []
    with contextlib.ExitStack() as stack, files.naming_full_disk(folder):
        for group in panel.groups:
            own = prepared.pop(0)
            for seat in group.seats:
                try:
                    grids.append(_predict(seat, group, own, folder, stack, seconds))
                except (files.DiskFullError, MemoryError):
                    raise
                except Exception as error:
                    reason = str(error).strip() or type(error).__name__
                    raise MemberFailedError(f"{seat.member.name} cannot predict it: {reason}") from error
            frames.append(frame_of(own, group.model))
            del own
        if any(frame != frames[0] for frame in frames):
            raise ValueError(
                f"the models crop the scan differently (size and box {[(one.shape, one.box) for one in frames]}), "
                "expected the same box; leave out those with another preprocessor"
            )
        seconds["networks_and_files"] = time.perf_counter() - clock
        device = panel.groups[0].seats[0].predictor.export_device
        found = compare(panel.labels, panel.classes.regions, grids, frames[0], device, min_probability)
    seconds["consensus"] = time.perf_counter() - clock - seconds["networks_and_files"]
    return Consensus(found.labels, found.uncertain, found.agreement, found.worst, seconds)


def _predict(
    seat: Seat, group: Group, prepared: Prepared, folder: Path, stack: contextlib.ExitStack, seconds: dict[str, float]
) -> Grid:
    """Let one member predict, and write its logits to a file that ``stack`` closes."""
    own = replace(
        prepared, record=deepcopy(prepared.record)
    )  # which predict_logits completes, and empties of the image
    logits = seat.take().predict_logits(own)
    seconds["network"] += own.record["seconds"]["network"]
    return keep_logits(logits, own, group.model, folder, stack)


def features_of(prepared: Prepared, model: Model) -> dict[str, list[float]]:
    """Return what is like or unlike in two scans: spacing and size in mm, and percentiles of the network's input."""
    data = prepared.data.reshape(len(prepared.data), -1)
    step = max(1, data.shape[1] // 100_000)
    spacing = np.asarray(prepared.true_spacing, float)
    voxels = [prepared.properties["shape_before_cropping"][axis] for axis in model.plans.transpose_backward]
    return {
        "spacing_mm": spacing.tolist(),
        "size_mm": (spacing * voxels).tolist(),
        "percentiles": np.percentile(data[:, ::step], (5, 25, 50, 75, 95), axis=1).T.ravel().tolist(),
    }
