"""Exit status and errors of the commands that fingerprint, plan and preprocess.

Failed cases make it 1, and a mistake of the user that we raise an error for is said in a sentence, without a traceback.
"""

import dis
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.plugin import compat

PACKAGE = "nnunet_ext"
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
        except BaseException as error:
            _report()  # what failed case by case may be why there was nothing left to go on with
            if not _is_said_by_us(error):
                raise
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 1 if _report() else result  # console scripts pass it to sys.exit

    return entry


def _is_said_by_us(error: BaseException) -> bool:
    """Whether a statement of ours raised an error, which then names what is wrong; anything else needs a traceback."""
    traceback = error.__traceback__
    if traceback is None or not isinstance(error, (ValueError, OSError, RuntimeError)):
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    if not str(frame.f_globals.get("__name__")).startswith(f"{PACKAGE}."):
        return False
    # Not what Python itself raises in a line of ours, such as an index out of range: that is a mistake of ours.
    return frame.f_code.co_code[traceback.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _report() -> bool:
    """Print the cases that failed in this process, and return whether there is one."""
    failures = sys.modules.get(FAILURES_MODULE)  # not imported: nothing of ours ran, so nothing of ours failed
    failed = [] if failures is None else failures.drain()
    if failures is None or not failed:
        return False
    print(failures.format_report(failed), file=sys.stderr)
    return True
