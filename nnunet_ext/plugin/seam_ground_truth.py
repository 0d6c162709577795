"""Preprocessing with plans of ours: plans are checked and folders locked first, a missing label costs itself.

One labelled case without its label does not keep the ground truth of the others from being copied.
"""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.plugin import compat


def install(module: ModuleType) -> None:
    """Extend ``preprocess_dataset`` of ``nnunetv2.experiment_planning.plan_and_preprocess_api``.

    Args:
        module: Module to extend, executed.

    Raises:
        SeamError: If the function does not look as expected.
    """
    compat.replace(module, [compat.PREPROCESS_DATASET], _guarded_with_isolated_copies)


def _guarded_with_isolated_copies(original: Callable[..., Any]) -> Callable[..., Any]:
    of_call = inspect.signature(original)

    def preprocess_dataset(*args: Any, **kwargs: Any) -> Any:
        call = of_call.bind(*args, **kwargs)
        call.apply_defaults()
        from nnunet_ext.data.preprocess_guard import guarded

        asked = [call.arguments[name] for name in ("dataset_id", "plans_identifier", "configurations")]
        with guarded(*asked):
            return with_isolated_copies(*asked[:2], *args, **kwargs)

    def with_isolated_copies(dataset_id: int, plans_identifier: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except Exception as error:
            # nnU-Net copies after all configurations are done, and stops at the first label that is missing. The name,
            # because distutils, from which it takes the function, comes from one package or another.
            if not isinstance(error, FileNotFoundError) and type(error).__name__ != "DistutilsFileError":
                raise
            from nnunet_ext.data.ground_truth import copy_what_is_there

            if not copy_what_is_there(dataset_id, plans_identifier, str(error)):
                raise
            return None

    return preprocess_dataset
