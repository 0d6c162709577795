"""Spawned workers activate the plugin too, where ``.pth`` files do not run."""

import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.plugin import compat

KEY = "nnunet_ext"

# Runs in the worker before it has the parent's sys.path, hence the detour.
_ACTIVATE = """
import sys
try:
    from nnunet_ext.plugin.startup import activate
except ModuleNotFoundError:
    sys.path.append({root!r})
    try:
        from nnunet_ext.plugin.startup import activate
    finally:
        sys.path.remove({root!r})
activate()
"""


class ActivateInWorker:
    """Unpickling it activates the plugin in the process that unpickles, and gives ``None``."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, dict[str, Any]]]:
        """Reduce to a call that does not need our package to be importable already."""
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        return exec, (_ACTIVATE.format(root=root), {})


def install(module: ModuleType) -> None:
    """Add one key to what ``multiprocessing.spawn`` sends ahead of the work item.

    The worker unpickles that dictionary first and ``multiprocessing.spawn.prepare`` picks the keys it knows out of it,
    so the key has done its work by the time that the work item, which may import nnunetv2, is unpickled.

    Args:
        module: Module ``multiprocessing.spawn``.

    Raises:
        SeamError: If its function does not look as expected.
    """
    original = module.get_preparation_data
    if getattr(original, compat.MARKER, False):
        return
    compat.expect_signature(original, ("name",))

    @functools.wraps(original)
    def get_preparation_data(name: str) -> dict[str, Any]:
        data: dict[str, Any] = original(name)
        data[KEY] = ActivateInWorker()
        return data

    setattr(get_preparation_data, compat.MARKER, True)
    module.get_preparation_data = get_preparation_data  # type: ignore[attr-defined]
