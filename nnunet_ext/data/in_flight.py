"""How many cases may be under way at a time: small ones freely, of large ones two, as their bytes tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class InFlight:
    """Bytes of the cases that are under way on one side of a stage.

    Args:
        share: Bytes that may be under way, whatever the size of each case.
        weigh: Tells the bytes of a result.
    """

    def __init__(self, share: int, weigh: Callable[[Any], int]) -> None:
        self.share, self._weigh = share, weigh
        self.largest = 0
        self._sizes: dict[str, int | None] = {}

    def has_room(self, size: int | None = None) -> bool:
        """Whether one more case may begin.

        With it no more bytes are under way than the share, or two of the largest case so far. A case that has no result
        yet is taken to be as large as the largest so far; before there is any, two may be under way.

        Args:
            size: Its bytes, where they are known.
        """
        if len(self._sizes) < 2:
            return True
        largest = max(self.largest, size or 0)
        if not largest:
            return False
        known = [largest if other is None else other for other in (size, *self._sizes.values())]
        return sum(known) <= max(self.share, 2 * largest)

    def begin(self, name: str, size: int | None = None) -> None:
        """Count a case, of so many bytes where that is known."""
        self._sizes[name] = size
        self.largest = max(self.largest, size or 0)

    def finished(self, name: str, result: Any) -> None:
        """Note how large the result of a case is, which is still under way."""
        if name in self._sizes:
            self.begin(name, self._weigh(result))

    def end(self, name: str) -> None:
        """Count a case no more."""
        self._sizes.pop(name, None)
