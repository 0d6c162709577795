"""Trainers by name: stock's folders, then the user's ``nnUNet_extTrainer`` folders, then the names we compose."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.plugin import compat


def install(module: ModuleType) -> None:
    """Extend ``recursive_find_trainer_class_by_name`` of ``nnunetv2.utilities.find_objects``.

    Args:
        module: Module to extend, executed and not copied from yet.

    Raises:
        SeamError: If the function does not look as expected.
    """
    compat.replace(module, [compat.FIND_TRAINER], _with_ours)


def _with_ours(original: Callable[..., Any]) -> Callable[..., Any]:
    def find(trainer_name: str) -> Any:
        try:
            return original(trainer_name)
        except RuntimeError as error:
            if not str(error).startswith(compat.TRAINER_NOT_FOUND):
                raise
            not_found = error
        # Outside the handler: an error about a malformed name of ours is the answer, not stock's 'not found' above it.
        from nnunet_ext.trainers.names import find_trainer

        trainer = find_trainer(trainer_name)
        if trainer is None:
            raise not_found
        return trainer

    return find
