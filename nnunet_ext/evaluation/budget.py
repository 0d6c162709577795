"""The best trade of a profile: the fastest setting that loses no more than a budget of mean Dice."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

STOCK = "stock"
_ROUNDING = 1e-9  # a setting that loses exactly the budget is within it
_REPLACED = {"-i": "IN", "-o": "OUT"}  # what the user names for other images
_LEFT_OUT = ("--disable_progress_bar",)  # the profile's own


def find_trade(settings: Mapping[str, Mapping[str, Any]], budget: float, labels: str | None = None) -> dict[str, Any]:
    """Find the fastest setting whose mean DSC is at most the budget below that of ``stock``.

    Args:
        settings: Entries of a profile by the name of the setting; those that failed, or have no mean DSC, are passed
            over.
        budget: How much mean DSC may be lost.
        labels: Digest of the label maps; settings that an earlier run compared with others are passed over. None takes
            all.

    Returns:
        ``budget``; ``reference``, the setting to compare with: ``stock``, or the one with the highest DSC where stock
        has none; ``setting``, the pick; and its ``command`` for other images. Of settings that take the same time the
        one with the higher DSC is picked, then the one with the lower peak memory, then the first. Where no setting
        has a DSC, all but the budget are None.
    """
    known = {name: entry for name, entry in settings.items() if _is_compared(entry, labels)}
    if not known:
        return {"budget": budget, "reference": None, "setting": None, "command": None}
    reference = STOCK if STOCK in known else max(known, key=lambda name: _dice(known[name]))
    least = _dice(known[reference]) - budget - _ROUNDING
    within = [name for name, entry in known.items() if _dice(entry) >= least]
    pick = min(within, key=lambda name: _order(known[name]))
    return {
        "budget": budget,
        "reference": reference,
        "setting": pick,
        "command": for_other_images(known[pick]["command"]),
    }


def for_other_images(command: Sequence[str]) -> str:
    """Return the command line of a setting with ``IN`` and ``OUT`` in the place of its folders."""
    words = [word for word in command if word not in _LEFT_OUT]
    replaced = [_REPLACED.get(flag, word) for flag, word in zip(["", *words[:-1]], words, strict=True)]
    return shlex.join(replaced)


def format_trade(document: Mapping[str, Any]) -> str:
    """Return the best trade with what it gains and costs, and its command line.

    Args:
        document: Content of ``profile.json`` with a ``trade``.
    """
    trade, settings = document["trade"], document["settings"]
    budget = f"{trade['budget']:g}"
    if trade["setting"] is None:
        return f"No trade within a budget of {budget}: no setting was measured and compared with the labels."
    pick, reference = settings[trade["setting"]], settings[trade["reference"]]
    seconds, earlier = (entry["measured"]["seconds_per_case"] for entry in (pick, reference))
    text = (
        f"Fastest within {budget} of the mean DSC of {trade['reference']}: {trade['setting']}, {seconds:.2f} s a case"
    )
    if trade["setting"] == trade["reference"]:
        return f"{text}, DSC {_dice(pick):.4f}.\n  {trade['command']}"
    ratio = earlier / seconds if seconds else math.inf
    change = round(_dice(pick) - _dice(reference), 4) + 0.0  # no -0.0000
    return f"{text} ({ratio:.1f} times as fast), DSC {_dice(pick):.4f} ({change:+.4f}).\n  {trade['command']}"


def _is_compared(entry: Mapping[str, Any], labels: str | None) -> bool:
    quality = entry.get("quality", {})
    mean = quality.get("mean", {}).get("dsc")
    if labels is not None and quality.get("labels") != labels:
        return False
    return "error" not in entry and "measured" in entry and mean is not None and not math.isnan(mean)


def _dice(entry: Mapping[str, Any]) -> float:
    return float(entry["quality"]["mean"]["dsc"])


def _order(entry: Mapping[str, Any]) -> tuple[float, float, float]:
    measured = entry["measured"]
    return measured["seconds_per_case"], -_dice(entry), measured["peak_memory_mb"]
