"""What was done with each case, as a file beside the predictions, and in words."""

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


@dataclass(frozen=True)
class CaseRecord:
    """The record of one case, which is written with its label map, and lies beside it until the report has it.

    Attributes:
        file: Hidden.
        case: Name.
    """

    file: Path
    case: str

    def write(self, record: dict[str, Any]) -> None:
        """Write it."""
        files.write_json(self.file, {"case": self.case, "record": record})


def finished(record: dict[str, Any], seconds: dict[str, float], peak_memory_mib: float) -> dict[str, Any]:
    """Return the record of a case with what its export took."""
    return {
        **record,
        "seconds": {key: round(value, 3) for key, value in (record["seconds"] | seconds).items()},
        "peak_memory_mib": record["peak_memory_mib"] | {"resampling": peak_memory_mib},
    }


class SpacingReport:
    """``spacing_report.json``: one record a case, rewritten as a whole whenever a case is done.

    A process that is killed leaves the records of cases that it had finished beside their label maps; whoever goes on
    takes them over.

    Args:
        folder: Where the predictions are written.
        part: Which part of how many (``-part_id``, ``-num_parts``); each writes a report of its own.
    """

    def __init__(self, folder: Path, part: tuple[int, int] = (0, 1)) -> None:
        suffix = "" if part[1] == 1 else f"_part_{part[0]}_of_{part[1]}"
        self.file = folder / f"{NAME}{suffix}.json"
        self.content: dict[str, Any] = {
            "nnunet_ext": __version__,
            "order": ORDER,
            "units": "mm, seconds, MiB",
            "cases": {},
        }

    def go_on(
        self, outputs: Sequence[str], ending: str, with_probabilities: bool, alone: bool, how: dict[str, Any]
    ) -> tuple[list[int], list[str]]:
        """Take over the records of finished cases, and say which of these were predicted otherwise than now.

        Args:
            outputs: Paths of the results of this part without their endings.
            ending: Of label maps.
            with_probabilities: Whether a finished case has probabilities too.
            alone: Whether there are no other parts, so that everything in the folder is looked at.
            how: This run predicts.

        Returns:
            Which of the cases are to be predicted, and what to say.
        """
        known = self._earlier()
        to_do, said, done = [], [], set()
        for index, output in enumerate(outputs):
            reason = _why_not_done(output, ending, with_probabilities, Path(output).name in known)
            if reason is None:
                done.add(Path(output).name)
                continue
            to_do.append(index)
            if reason:
                said.append(f"{Path(output).name} is predicted again: {reason}")
        if alone:
            missing = {Path(outputs[index]).name for index in to_do}
            done |= {file.name.removesuffix(ending) for file in self.file.parent.glob(f"*{ending}")} - missing
        self.content["cases"] = {case: known[case] for case in sorted(done & known.keys())}
        if self.content["cases"]:
            self._save(self.content["cases"])
        said.append(  # in nnU-Net's words
            "overwrite was set to False, so I am only working on cases that haven't been predicted yet. That's "
            f"{len(to_do)} cases."
        )
        return to_do, said + _predicted_otherwise(done, known, how)

    def _earlier(self) -> dict[str, dict[str, Any]]:
        """Gather records: of parts, which may have been others before, of this report, and not yet reported."""
        found: dict[str, Any] = {}
        folder = self.file.parent
        reports = [*sorted(folder.glob(f"{NAME}_part_*.json")), folder / f"{NAME}.json", self.file]
        for file in reports:
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


def _why_not_done(output: str, ending: str, with_probabilities: bool, recorded: bool) -> str | None:
    """Say why a case is to be predicted; None if it is done. Earlier versions recorded what they had not looked at."""
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


def _predicted_otherwise(done: Iterable[str], known: Mapping[str, Any], how: dict[str, Any]) -> list[str]:
    otherwise: dict[str, list[str]] = {}
    for case in sorted(done):
        before = known.get(case, {}).get("predicted_with")
        if not isinstance(before, dict):
            otherwise.setdefault("without a record of how", []).append(case)
        elif differs := [key for key in how if before.get(key) != how[key]]:
            text = f"with {', '.join(f'{key} {before.get(key)}' for key in differs)}"
            otherwise.setdefault(text, []).append(case)
    return [f"Kept as they are, though predicted {text}: {', '.join(cases)}" for text, cases in otherwise.items()]


def spacing_line(case: str, record: dict[str, Any]) -> str:
    """Say in one line which spacings a case got, and what that makes of it in the eyes of the network."""
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
