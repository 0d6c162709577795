"""``spacing_report.json`` beside the predictions: spacings, seconds and memory of each case, and the same in words."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext import __version__, files
from nnunet_ext.data.completeness import check_complete
from nnunet_ext.inference.axes import XYZ

NAME = "spacing_report"
STAGES = ("reading", "preprocessing", "network", "resampling", "writing")  # of a prediction, in this order
ORDER = "x y z: left-right, front-back, head-foot"
_RECORD = ".spacing_record_"
# options that earlier versions did not have, as these predicted
_BEFORE = {"network": "1", "propagate": None, "engine": None, "precision": None, "skip_background": False}


@dataclass(frozen=True)
class CaseRecord:
    """The record of one case, which is written with its label map, and lies beside it until the report has it.

    Attributes:
        file: Hidden JSON file of the record.
        case: Name of the case, that of its label map without the file ending.
    """

    file: Path
    case: str

    def write(self, record: dict[str, Any]) -> None:
        """Write the file of the record."""
        files.write_json(self.file, {"case": self.case, "record": record})


def complete_record(record: dict[str, Any], seconds: dict[str, float], peak_memory_mib: float) -> dict[str, Any]:
    """Return the record of a case with the seconds and the peak memory of its export."""
    return {
        **record,
        "seconds": {key: round(value, 3) for key, value in (record["seconds"] | seconds).items()},
        "peak_memory_mib": record["peak_memory_mib"] | {"resampling": peak_memory_mib},
    }


class SpacingReport:
    """``spacing_report.json``: one record a case, rewritten as a whole whenever a case is done.

    A process that is killed leaves the records of cases that it had finished beside their label maps; :meth:`resume`
    takes them over.

    Args:
        folder: Folder that the predictions are written to.
        part: Number of this part and number of all parts (``-part_id``, ``-num_parts``); each part writes its own
            report.
        name: Name of the report without its ending.
    """

    def __init__(self, folder: Path, part: tuple[int, int] = (0, 1), name: str = NAME) -> None:
        suffix = "" if part[1] == 1 else f"_part_{part[0]}_of_{part[1]}"
        self.name, self.file = name, folder / f"{name}{suffix}.json"
        self.content: dict[str, Any] = {
            "nnunet_ext": __version__,
            "order": ORDER,
            "units": "mm, seconds, MiB",
            "cases": {},
        }

    def resume(
        self, outputs: Sequence[str], ending: str, with_probabilities: bool, alone: bool, options: dict[str, Any]
    ) -> tuple[list[int], list[str]]:
        """Take over the records of finished cases, and tell which of these were predicted with other options.

        Args:
            outputs: Paths of the label maps of this part, without their endings.
            ending: File ending of the label maps, e.g. ``.nii.gz``.
            with_probabilities: Whether a finished case has a file of probabilities too.
            alone: Whether there are no other parts, so that every label map in the folder counts.
            options: Options of this run, as ``Predictor.describe_options`` returns them.

        Returns:
            Indices of the cases that are to be predicted, and lines to print.
        """
        records = self._earlier()
        to_do, messages, done = [], [], set()
        for index, output in enumerate(outputs):
            reason = _why_not_done(output, ending, with_probabilities)
            if reason is None:
                done.add(Path(output).name)
                continue
            to_do.append(index)
            if reason:
                messages.append(f"{Path(output).name} is predicted again: {reason}")
        if alone:
            missing = {Path(outputs[index]).name for index in to_do}
            done |= {file.name.removesuffix(ending) for file in self.file.parent.glob(f"*{ending}")} - missing
        self.content["cases"] = {case: records[case] for case in sorted(done & records.keys())}
        if self.content["cases"]:
            self._save(self.content["cases"])
        messages.append(  # in nnU-Net's words
            "overwrite was set to False, so I am only working on cases that haven't been predicted yet. That's "
            f"{len(to_do)} cases."
        )
        return to_do, messages + _predicted_otherwise(done, records, options)

    def _earlier(self) -> dict[str, dict[str, Any]]:
        """Gather records: of parts, which may have been others before, of this report, and not yet reported."""
        found: dict[str, Any] = {}
        folder = self.file.parent
        reports = {*folder.glob(f"{self.name}_part_*.json"), folder / f"{self.name}.json", self.file}
        for file in sorted((file for file in reports if file.is_file()), key=lambda file: file.stat().st_mtime_ns):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found |= files.read_json(file)["cases"]
        for file in folder.glob(f"{_RECORD}*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                content = files.read_json(file)
                found[content["case"]] = content["record"]
        return {case: record for case, record in found.items() if isinstance(record, dict)}

    def record_of(self, case: str) -> CaseRecord:
        """Return where the record of a case lies until :meth:`add`."""
        name = hashlib.sha256(case.encode()).hexdigest()[:16]
        return CaseRecord(self.file.with_name(f"{_RECORD}{name}.json"), case)

    def add(self, case: str, record: dict[str, Any]) -> None:
        """Add the record of a case and write the file."""
        self.content["cases"][case] = record
        self._save([case])

    def _save(self, new: Iterable[str]) -> None:
        """Write the file, and remove the records that it has now."""
        files.write_json(self.file, self.content)
        for case in new:
            self.record_of(case).file.unlink(missing_ok=True)


def _why_not_done(output: str, ending: str, with_probabilities: bool) -> str | None:
    """Return why a case is to be predicted, "" where files are missing, None if it is done.

    Its record proves nothing: earlier versions recorded cases without a check of their label maps.
    """
    file = Path(output + ending)
    if not file.is_file() or (with_probabilities and not Path(f"{output}.npz").is_file()):
        return ""
    if not file.stat().st_size:
        return f"{file} is empty"
    try:
        check_complete(file)
    except ValueError as error:
        return str(error)
    return None


def _predicted_otherwise(done: Iterable[str], records: Mapping[str, Any], options: dict[str, Any]) -> list[str]:
    """Return lines on the finished cases whose records have other options than those of this run."""
    otherwise: dict[str, list[str]] = {}
    for case in sorted(done):
        before = records.get(case, {}).get("predicted_with")
        if not isinstance(before, dict):
            otherwise.setdefault("without a record of how", []).append(case)
        elif differs := [key for key in options if (_BEFORE | before).get(key) != options[key]]:
            text = f"with {', '.join(f'{key} {(_BEFORE | before).get(key)}' for key in differs)}"
            otherwise.setdefault(text, []).append(case)
    return [f"Kept as they are, though predicted {text}: {', '.join(cases)}" for text, cases in otherwise.items()]


def spacing_line(case: str, record: dict[str, Any]) -> str:
    """Return one line on the spacings of a case, and on how large they make things appear to the network."""
    parts = [f"{case}: {_times(record['shape'])} voxels of {_times(record['true_spacing'])} mm"]
    if record["declared_spacing"] != record["true_spacing"]:
        parts.append(f"declared as {_times(record['declared_spacing'])} mm")
    resampled = [
        true if target is None else target
        for true, target in zip(record["declared_spacing"], record["target_spacing"], strict=True)
    ]
    parts.append(f"resampled to {_times(resampled)} mm, {_times(record['resampled_shape'])} voxels")
    factors = ", ".join(f"{letter} {factor:.3g}" for letter, factor in zip(XYZ, record["stretch"], strict=True))
    if all(abs(factor - 1) < 1e-3 for factor in record["stretch"]):
        return "; ".join([*parts, "to the network things look as large as in training"])
    return "; ".join([*parts, f"to the network things look this many times as large as in training: {factors}"])


def _times(values: list[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
