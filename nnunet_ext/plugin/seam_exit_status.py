"""Failed cases decide the exit status of the commands that fingerprint and preprocess."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.plugin import compat

FAILURES_MODULE = "nnunet_ext.data.failures"


def install(module: ModuleType) -> None:
    """Extend the entry points of ``nnunetv2.experiment_planning.plan_and_preprocess_entrypoints``.

    Args:
        module: That module, executed.

    Raises:
        SeamError: If an entry point does not look as expected.
    """
    compat.replace(module, compat.PREPROCESSING_ENTRIES, _with_exit_status)


def _with_exit_status(original: Callable[..., Any]) -> Callable[..., Any]:
    def entry() -> Any:
        try:
            result = original()
        except BaseException:
            _report()  # what failed case by case may be why there was nothing left to go on with
            raise
        return 1 if _report() else result  # console scripts pass it to sys.exit

    return entry


def _report() -> bool:
    """Print the cases that failed in this process, and return whether there is one."""
    failures = sys.modules.get(FAILURES_MODULE)  # not imported: nothing of ours ran, so nothing of ours failed
    failed = [] if failures is None else failures.drain()
    if failures is None or not failed:
        return False
    print(failures.format_report(failed), file=sys.stderr)
    return True
