"""What networks said of each scan, kept between runs: label map, uncertain voxels, scores; a finished case stays.

Layout of ``nnUNet_preprocessed/DATASET/pseudo_labels/KEY``, where KEY follows from the members and from how they
predict: ``consensus/CASE`` and ``uncertain/CASE`` with the ending of the dataset, ``slices/CASE.npz``, the slice that
the networks disagree about most, and ``scores/CASE.json``, which is written last and so marks a finished case.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_ext import files
from nnunet_ext.data.completeness import check_complete
from nnunet_ext.data.signature import digest, source_signature
from nnunet_ext.evaluation.record import without_nan
from nnunet_ext.inference.agreement_scores import SCORES
from nnunet_ext.inference.writing import check_written
from nnunet_ext.pseudo_labels.consensus import Consensus
from nnunet_ext.pseudo_labels.members import Member, members_digest
from nnunet_ext.pseudo_labels.selection import CaseScores

FOLDER = "pseudo_labels"
CONSENSUS, UNCERTAIN, SLICES, RECORDS = "consensus", "uncertain", "slices", "scores"


class Store:
    """Results of some members.

    Args:
        preprocessed: The dataset's folder in ``nnUNet_preprocessed``.
        members: The members.
        options: What else the results depend on, as JSON values.
        ending: File ending of label maps.

    Attributes:
        folder: Of the results.
    """

    def __init__(self, preprocessed: Path, members: Sequence[Member], options: dict[str, Any], ending: str) -> None:
        self.ending = ending
        self.made_by = {"members": [member.describe() for member in members], "options": options}
        key = digest({"members": members_digest(members), "options": options})[:12]
        self.folder = preprocessed / FOLDER / key

    def begin(self) -> None:
        """Make the folder, say in it what it is of, and remove what a killed run left half-written."""
        for name in (CONSENSUS, UNCERTAIN, SLICES, RECORDS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            files.sweep(self.folder / name)
        files.sweep(self.folder)
        files.write_json(self.folder / "members.json", self.made_by)

    def label_map(self, case: str) -> Path:
        """Return where the consensus of a case lies."""
        return self.folder / CONSENSUS / f"{case}{self.ending}"

    def uncertain(self, case: str) -> Path:
        """Return where the mask of uncertain voxels of a case lies."""
        return self.folder / UNCERTAIN / f"{case}{self.ending}"

    def record(self, case: str) -> dict[str, Any]:
        """Return the record of a finished case."""
        content: dict[str, Any] = files.read_json(self._record_file(case))
        return content

    def is_done(self, case: str, images: tuple[str, ...]) -> bool:
        """Whether a case is finished, and its images are those that it was made of."""
        try:
            if self.record(case).get("source") != source_signature(images):
                return False
            for file in (self.label_map(case), self.uncertain(case)):
                check_complete(str(file))
            return self._slice_file(case).is_file() and all(
                file.stat().st_size for file in (self.label_map(case), self.uncertain(case))
            )
        except (OSError, ValueError):
            return False

    def save(
        self,
        case: str,
        source: dict[str, Any],
        found: Consensus,
        features: dict[str, Any],
        writer: BaseReaderWriter,
        properties: dict[str, Any],
    ) -> None:
        """Write a case; the record comes last.

        Args:
            case: Its name.
            source: Signature of its images, taken before they were read.
            found: What the members say.
            features: From :func:`~nnunet_ext.pseudo_labels.consensus.features_of`.
            writer: nnU-Net's writer of the file format.
            properties: Of the image, for the writer.
        """
        files.remove(self._record_file(case))
        for file, array in (
            (self.label_map(case), found.labels),
            (self.uncertain(case), found.uncertain.astype(np.uint8)),
        ):
            write_label_map(file, array, writer, properties)
        with files.whole(self._slice_file(case)) as temporary:
            worst = found.worst
            np.savez_compressed(temporary, index=worst.index, consensus=worst.consensus, members=worst.members)
        record = {
            "source": source,
            "scores": {kind: found.agreement.class_scores(kind) for kind in SCORES},
            "uncertain_share": float(found.uncertain.mean()),
            "foreground_share": float((found.labels > 0).mean()),
            "features": features,
            "seconds": {stage: round(value, 3) for stage, value in found.seconds.items()},
        }
        files.write_json(self._record_file(case), without_nan(record), 1)

    def scores(self, case: str, kind: str) -> CaseScores:
        """Return the scores of a finished case.

        Args:
            case: Its name.
            kind: ``"volume"`` or ``"slice"``.
        """
        scores = self.record(case)["scores"][kind]
        return CaseScores(case, {name: float("nan") if s is None else float(s) for name, s in scores.items()})

    def worst_slice(self, case: str) -> tuple[int, np.ndarray, np.ndarray]:
        """Return number, consensus ``(Y, X)`` and members ``(M, Y, X)`` of the slice that they disagree about most."""
        with np.load(self._slice_file(case)) as content:
            return int(content["index"]), content["consensus"], content["members"]

    def _record_file(self, case: str) -> Path:
        return self.folder / RECORDS / f"{case}.json"

    def _slice_file(self, case: str) -> Path:
        return self.folder / SLICES / f"{case}.npz"


def write_label_map(file: Path, labels: np.ndarray, writer: BaseReaderWriter, properties: dict[str, Any]) -> None:
    """Write a label map, whole or not at all."""
    with files.whole(file) as temporary:
        writer.write_seg(labels, str(temporary), properties)
        check_written(temporary, writer, labels.shape)
