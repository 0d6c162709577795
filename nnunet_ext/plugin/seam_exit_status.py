"""Exit status and errors of the commands that fingerprint, plan and preprocess.

Failed cases make it 1, and a mistake of the user that we raise an error for is said in a sentence, without a traceback.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.errors import is_said_by_us
from nnunet_ext.plugin import compat

PACKAGE = "nnunet_ext"
FAILURES_MODULE = "nnunet_ext.data.failures"


def install(module: ModuleType) -> None:
    """Extend the entry points of ``nnunetv2.experiment_planning.plan_and_preprocess_entrypoints``.

    Args:
        module: Module to extend, executed.

    Raises:
        SeamError: If an entry point does not look as expected.
    """
    compat.replace(module, compat.PREPROCESSING_ENTRIES, _with_exit_status)


def _with_exit_status(original: Callable[..., Any]) -> Callable[..., Any]:
    def entry() -> Any:
        try:
            result = original()
        except BaseException as error:
            _report()  # what failed case by case may be why there was nothing left to go on with
            if not is_said_by_us(error):
                raise
            print(f"error: {error}", file=sys.stderr)
            return 1
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
