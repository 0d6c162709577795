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
    ``after_pretrained_weights(path)`` gets it called. For these and all trainers of ours the file is looked at first,
    because nnU-Net runs whatever code is in it. Other trainers see no difference.

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
        if validation_only and _is_ours(nnunet_trainer):
            nnunet_trainer.only_validates = True  # the cases of the training may be gone by now
        if pretrained_weights_file is None or continue_training or validation_only:
            return original(*arguments, pretrained_weights_file)
        if _is_ours(nnunet_trainer):
            _check(pretrained_weights_file)
        prepared = getattr(nnunet_trainer, "prepared_pretrained_weights", nullcontext)
        with prepared(pretrained_weights_file) as file:
            result = original(*arguments, file)
            getattr(nnunet_trainer, "after_pretrained_weights", lambda _: None)(file)
        return result

    return load


def _is_ours(trainer: Any) -> bool:
    hooks = ("prepared_pretrained_weights", "after_pretrained_weights")
    return any(hasattr(trainer, hook) for hook in hooks) or any(
        cls.__module__.startswith("nnunet_ext.") for cls in type(trainer).__mro__
    )


def _check(file: str) -> None:
    """Refuse weights that come with code; nnU-Net's command has no flag to trust them, so a variable says it."""
    from nnunet_ext.inference.safe_load import check_weights
    from nnunet_ext.training.trust import TRUST_VARIABLE, trusted_by_environment

    if not trusted_by_environment():
        check_weights([file], f"set {TRUST_VARIABLE}=1", ("network_weights",))
