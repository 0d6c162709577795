"""Our options on the commands that predict."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.plugin import compat


def install(module: ModuleType) -> None:
    """Extend the entry points of ``nnunetv2.inference.predict_from_raw_data``.

    Args:
        module: Module to extend, executed and not copied from yet.

    Raises:
        SeamError: If an entry point does not look as expected, or builds its predictor otherwise.
    """
    if not isinstance(getattr(module, "nnUNetPredictor", None), type):
        raise compat.SeamError("expected nnunetv2.inference.predict_from_raw_data.nnUNetPredictor, not found")

    def with_options(original: Callable[..., Any]) -> Callable[..., Any]:
        def entry() -> Any:
            from nnunet_ext.inference.options import run

            return run(original, vars(module))

        return entry

    compat.replace(module, compat.PREDICT_ENTRIES, with_options)
