"""Memory of steps on CPUs: what a step frees stays with the process, for the next step to take.

glibc gives large pieces back to the system as soon as they are free, and the next step has them mapped and cleared
anew, page by page. Results do not depend on it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER = -1
_PIECES = (2**30, 2**25)  # bytes up to which a piece is kept; older versions of glibc take the second at most
_SETTINGS_OF_USERS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let glibc keep what this process frees in pieces up to 1 GB; elsewhere, or with settings of users, do nothing.

    Args:
        environment: Variables of the environment, in which users have settings of glibc's memory.

    Returns:
        Whether it is kept from now on.
    """
    of_users = any(name in environment for name in _SETTINGS_OF_USERS) or "malloc" in environment.get(
        "GLIBC_TUNABLES", ""
    )
    if of_users or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other libraries have none, or one that does nothing
    if mallopt is None or not mallopt(_TRIM_THRESHOLD, _NEVER):
        return False
    return any(mallopt(_MMAP_THRESHOLD, size) for size in _PIECES)
