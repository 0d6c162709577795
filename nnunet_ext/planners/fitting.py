"""Patches and batches that fit what is really trained into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnunet_ext.training.memory import GIB

Plan = dict[str, Any]


_FARTHEST = 64


class MemoryFit:
    """Searches nnU-Net's own memory target, meant for its plain U-Net, at which a training step takes a budget.

    Memory grows with that target in steps, so it is bisected; the lower-resolution configurations, of which nnU-Net
    plans dozens while it looks for a spacing, start from what was found for the same number of dimensions.

    Args:
        memory: Returns the bytes that a training step of a configuration allocates.
        budget_in_gb: Of which it may take at most this.
        highest: Target of nnU-Net to begin with, in GB; larger ones are tried where it fits.
    """

    def __init__(self, memory: Callable[[Plan], int], budget_in_gb: float, highest: float) -> None:
        self.memory, self.budget_in_gb, self.highest = memory, budget_in_gb, highest
        self._found: dict[int, float] = {}

    def search(self, dimensions: int, plan_at: Callable[[float], Plan]) -> Plan | None:
        """Return the plan of the highest target found that fits, or None.

        Args:
            dimensions: Of the configuration.
            plan_at: Plans for a target of nnU-Net.
        """

        def attempt(target: float) -> tuple[Plan, bool]:
            plan = plan_at(target)
            return plan, self.memory(plan) <= self.budget_in_gb * GIB

        best: Plan | None = None
        if dimensions in self._found:
            best, fits = attempt(self._found[dimensions])
            while not fits and self._found[dimensions] > self.highest / 64:
                self._found[dimensions] *= 0.9
                best, fits = attempt(self._found[dimensions])
            return best if fits else None
        low, high = 0.0, self.highest
        plan, fits = attempt(high)
        # What is trained may take less than nnU-Net thinks, so that its own targets are no bound.
        while fits and high < _FARTHEST * self.highest:
            best, low, high = plan, high, 2 * high
            plan, fits = attempt(high)
            if _size(plan) == _size(best):
                break  # the data allow no more
        if fits:
            best, low, high = plan, high, high
        for _ in range(0 if fits else 7):
            middle = (low + high) / 2
            plan, fits = attempt(middle)
            if fits:
                best, low = plan, middle
            else:
                high = middle
        self._found[dimensions] = low
        return best


def _size(plan: Plan) -> tuple[list[int], int]:
    return [int(n) for n in plan["patch_size"]], int(plan["batch_size"])
