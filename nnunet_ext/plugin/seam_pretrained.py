"""``-pretrained_weights`` for trainers with more than one network, or with more input channels than the plain one."""

from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

from nnunet_ext.plugin import compat


def install(module: ModuleType) -> None:
    """Extend ``maybe_load_checkpoint`` of ``nnunetv2.run.run_training``.

    A trainer that has a method ``prepared_pretrained_weights(path)``, a context, is asked for the file that nnU-Net
    loads instead. After nnU-Net loaded it into ``trainer.network``, a trainer that has a method
    ``after_pretrained_weights(path)`` gets it called. Other trainers see no difference.

    Args:
        module: That module, executed.

    Raises:
        SeamError: If the function does not look as expected.
    """
    compat.replace(module, [compat.LOAD_CHECKPOINT], _with_callback)


def _with_callback(original: Callable[..., Any]) -> Callable[..., Any]:
    def load(
        nnunet_trainer: Any,
        continue_training: bool,
        validation_only: bool,
        pretrained_weights_file: str | None = None,
    ) -> Any:
        arguments = (nnunet_trainer, continue_training, validation_only)
        if pretrained_weights_file is None or continue_training or validation_only:
            return original(*arguments, pretrained_weights_file)
        prepared = getattr(nnunet_trainer, "prepared_pretrained_weights", nullcontext)
        with prepared(pretrained_weights_file) as file:
            result = original(*arguments, file)
            getattr(nnunet_trainer, "after_pretrained_weights", lambda _: None)(file)
        return result

    return load
