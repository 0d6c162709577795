"""Main memory (RAM): the peak of this process, and what this machine or its container has."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def peak_memory_mib() -> float:
    """Return the largest resident size of this process since it began, in MiB; 0 where it is not known."""
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def total_memory_bytes() -> int | None:
    """Return the memory that this machine, or the container it runs in, has; ``None`` where it is not known."""
    sizes = [psutil.virtual_memory().total]
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(Path(limit).read_text()))  # "max" where there is no limit
    return min((size for size in sizes if size > 0), default=None)
