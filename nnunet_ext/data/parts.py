"""Parts of a dataset for many machines: which cases each does, and that nobody does the same at the same time."""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nnunet_ext.files import only_here

_Name = TypeVar("_Name", str, tuple[str, str])
_LOCK = re.compile(r".*\.(part_\d+_of_\d+)\.lock", re.DOTALL)
_PATIENCE_SECONDS = 20.0  # many parts that start at once look one after the other whether the whole is being done


@dataclass(frozen=True)
class Part:
    """One of several equal parts of the cases, as nnU-Net's ``-num_parts`` and ``-part_id`` divide them.

    Attributes:
        index: Number of this part, from 0.
        count: How many parts there are; 1 is everything.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        """Raise ValueError if there is no such part."""
        if not 0 <= self.index < self.count:
            expected = "0" if self.count == 1 else f"0 to {self.count - 1}"
            raise ValueError(
                f"-part_id is {self.index}, expected {expected}, as -num_parts is {self.count}; the first part is 0"
            )

    @property
    def is_all(self) -> bool:
        """Whether this is everything, so that what belongs to no case may be removed, too."""
        return self.count == 1

    def take(self, names: Iterable[_Name]) -> list[_Name]:
        """Return every ``count``-th of the sorted names, from ``index`` on."""
        return sorted(names)[self.index :: self.count]

    def __str__(self) -> str:
        """Return the part as messages name it."""
        return "all" if self.is_all else f"part {self.index} of {self.count}"


ALL = Part()


@contextlib.contextmanager
def only_part(folder: str | Path, doing: str, part: Part = ALL) -> Iterator[None]:
    """Keep other processes from doing the same part, and the whole; other parts may be done at the same time.

    Args:
        folder: What is worked on; the locks lie beside it, hidden, and stay as empty files.
        doing: What is done, for the message, e.g. ``"preprocessed"``.
        part: Which cases; all of them exclude every part.

    Raises:
        BusyError: If another process has the part or the whole, or any part where this is the whole; names it.
    """
    folder = Path(folder)
    if part.is_all:
        with only_here(folder, doing):
            for lock in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.part_*.lock")):
                match = _LOCK.fullmatch(lock.name)
                if match is not None:
                    with only_here(folder, doing, match[1].replace("_", " ")):
                        pass
            yield
    else:
        # First the own lock, then a look at the other: of two that begin at once, one at least sees the other.
        with only_here(folder, doing, str(part)):
            with only_here(folder, doing, patience_seconds=_PATIENCE_SECONDS):
                pass
            yield
