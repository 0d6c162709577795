"""``-pretrained_weights`` for trainers with more than one network."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from nnunet_ext.plugin import compat


def install(module: ModuleType) -> None:
    """Extend ``maybe_load_checkpoint`` of ``nnunetv2.run.run_training``.

    After stock nnU-Net loaded pretrained weights into ``trainer.network``, a trainer that has a method
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
        result = original(nnunet_trainer, continue_training, validation_only, pretrained_weights_file)
        callback = getattr(nnunet_trainer, "after_pretrained_weights", None)
        if pretrained_weights_file is not None and not (continue_training or validation_only) and callback is not None:
            callback(pretrained_weights_file)
        return result

    return load
