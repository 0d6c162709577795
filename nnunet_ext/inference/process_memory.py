"""Main memory (RAM): the peak of this process, and what this machine or its container has."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def peak_memory_mib() -> float:
    """Return the largest resident size of this process since it began, in MiB; 0 where it is not known."""
    with contextlib.suppress(OSError):
        if peak := high_water_bytes("self"):
            return round(peak / 2**20, 1)
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def high_water_bytes(process: int | str) -> int:
    """Return the largest resident size that the kernel (Linux) has seen of a process; 0 where it does not say.

    Args:
        process: Its number, or ``"self"``.

    Raises:
        OSError: If there is no such process, or no ``/proc``.
    """
    with Path(f"/proc/{process}/status").open(encoding="utf-8") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:")), 0)


def total_memory_bytes() -> int | None:
    """Return the memory that this machine, or the container it runs in, has; ``None`` where it is not known."""
    sizes = [psutil.virtual_memory().total]
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(Path(limit).read_text()))  # "max" where there is no limit
    return min((size for size in sizes if size > 0), default=None)
