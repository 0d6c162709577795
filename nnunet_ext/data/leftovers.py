"""What killed runs left behind: temporary files of this version and of earlier ones."""

from __future__ import annotations

import re
from pathlib import Path

from nnunet_ext.files import is_of_dead_process, remove, sweep

# .CASE.b2nd.PID.tmp, .CASE.PID.json.tmp, .NAME.npz.PID.tmp
_EARLIER = re.compile(r"\..+\.(\d+)(?:\.json)?\.tmp")


def sweep_all(folder: str | Path) -> list[Path]:
    """Remove what killed processes left half-written in a folder; whoever is alive keeps theirs.

    Args:
        folder: Folder to look at, without its subfolders; it need not exist.

    Returns:
        What was removed.
    """
    removed = sweep(folder)
    for path in Path(folder).glob(".*.tmp"):
        match = _EARLIER.fullmatch(path.name)
        if match is not None and is_of_dead_process(path, int(match[1])):
            remove(path)
            removed.append(path)
    return removed
