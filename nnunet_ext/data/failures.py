"""Cases that failed in this process, collected so that one bad case costs nothing but itself.

The preprocessing commands go on after a failure; when they are done, the start-up plugin prints what was collected
here and lets the command exit with status 1.
"""

from __future__ import annotations

from dataclasses import dataclass

LABELLED = "labelled"
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Failure:
    """One case that could not be processed.

    Attributes:
        case: Case name, or the file name where no case could be made of it.
        kind: ``"labelled"`` or ``"unlabelled"``.
        reason: What was wrong with the case, with the file, what was expected and what to do.
        stage: Step that was being done, e.g. the configuration that was being preprocessed.
    """

    case: str
    kind: str
    reason: str
    stage: str = ""


_collected: list[Failure] = []


def record(failures: list[Failure]) -> None:
    """Add failures to those of this process."""
    _collected.extend(failures)


def drain() -> list[Failure]:
    """Return the failures collected so far and forget them."""
    failures = list(_collected)
    _collected.clear()
    return failures


def format_report(failures: list[Failure]) -> str:
    """Return a text that lists every failure once, labelled cases first.

    Args:
        failures: Failures as :func:`drain` returns them; the same case may fail in several configurations.
    """
    if not failures:
        return ""
    lines = [f"{len({(f.kind, f.case) for f in failures})} case(s) failed; everything else is done and kept."]
    for kind in (LABELLED, UNLABELLED):
        reasons: dict[tuple[str, str], list[str]] = {}
        for failure in failures:
            if failure.kind == kind:
                reasons.setdefault((failure.case, failure.reason), []).append(failure.stage)
        if kind == LABELLED and reasons:
            lines.append("LABELLED cases that failed (those that failed in preprocessing are not trained on):")
        elif reasons:
            lines.append("Unlabelled cases that failed:")
        for (case, reason), stages in reasons.items():
            step = f" [{', '.join(s for s in stages if s)}]" if any(stages) else ""
            lines.append(f"  {case}{step}: {reason}")
    lines.append("Mend or remove them and run the same command again; finished unlabelled cases are not redone.")
    return "\n".join(lines)
