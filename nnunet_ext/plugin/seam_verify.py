"""``--verify_dataset_integrity`` for datasets without labels."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.plugin import compat


def install(module: ModuleType) -> None:
    """Extend ``verify_dataset_integrity`` of the module of that name in ``nnunetv2.experiment_planning``.

    Args:
        module: Module to extend, executed and not copied from yet.

    Raises:
        SeamError: If the function does not look as expected.
    """
    compat.replace(module, [compat.VERIFY], _with_unlabelled_only)


def _with_unlabelled_only(original: Callable[..., Any]) -> Callable[..., Any]:
    def verify(folder: str, num_processes: int = 8) -> Any:
        from nnunet_ext.data.unlabeled_only import unlabelled_only

        if unlabelled_only(folder) is None:
            return original(folder, num_processes)
        from nnunet_ext.data.verify import verify_unlabelled_only

        return verify_unlabelled_only(folder, num_processes)

    return verify
