"""How many cases may be under way at a time: small ones freely, of large ones two, as their bytes tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any


class InFlight:
    """Bytes of the cases that are under way on one side of a stage.

    Args:
        share: Bytes that may be under way, whatever the size of each case.
        weigh: Tells the bytes of a result.
        sources: Bytes of what each case is made from, by its name, as far as they are known: of a case without a result
            as much is expected for a byte of its source as the results so far had together.
    """

    def __init__(
        self, share: int, weigh: Callable[[Any], int], sources: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self.share, self._weigh, self._sources = share, weigh, sources
        self.largest = 0
        self._made, self._made_from = 0, 0  # bytes of results, and of their sources
        self._sizes: dict[str, int | None] = {}

    def has_room(self, size: int | None = None, name: str = "") -> bool:
        """Whether one more case may begin.

        With it no more bytes are under way than the share, or two of the largest case so far. A case that has no result
        yet is expected to be as large as its source tells, or else as the largest so far; before there is any, two may
        be under way.

        Args:
            size: Its bytes, where they are known.
            name: Its name, where they are not.
        """
        if len(self._sizes) < 2:
            return True
        if not self.largest and not size:
            return False
        under_way = {**self._sizes, name: size}
        largest = max(self.largest, *(self._expected(*case, self.largest) for case in under_way.items()))
        return sum(self._expected(*case, largest) for case in under_way.items()) <= max(self.share, 2 * largest)

    def begin(self, name: str, size: int | None = None) -> None:
        """Count a case, of so many bytes where that is known."""
        self._sizes[name] = size
        self.largest = max(self.largest, size or 0)

    def finished(self, name: str, result: Any) -> None:
        """Note how large the result of a case is, which is still under way."""
        if name in self._sizes:
            size = self._weigh(result)
            if self._sizes[name] is None and self._sources.get(name):
                self._made += size
                self._made_from += self._sources[name]
            self.begin(name, size)

    def end(self, name: str) -> None:
        """Count a case no more."""
        self._sizes.pop(name, None)

    def _expected(self, name: str, size: int | None, otherwise: int) -> int:
        if size is not None:
            return size
        if self._made_from and self._sources.get(name):
            return self._made * self._sources[name] // self._made_from
        return otherwise
