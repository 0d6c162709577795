"""Training with trainers of ours: damaged plans are named, mistakes are said in a sentence, pretrained weights fit.

``-pretrained_weights`` serves trainers with more than one network, or with more input channels than the plain one.
"""

import inspect
import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import ModuleType
from typing import Any

from nnunet_ext.errors import is_said_by_us
from nnunet_ext.plugin import compat


def install(module: ModuleType) -> None:
    """Extend functions of ``nnunetv2.run.run_training``: the entry point and what makes and loads trainers.

    A mistake of the user that we raise an error for is said without a traceback.

    A trainer that has a method ``prepared_pretrained_weights(path)``, a context, is asked for the file that nnU-Net
    loads instead. After nnU-Net loaded it into ``trainer.network``, a trainer that has a method
    ``after_pretrained_weights(path)`` gets it called. For these and all trainers of ours the file is looked at first,
    because nnU-Net runs whatever code is in it. Other trainers see no difference.

    Args:
        module: Module to extend, executed.

    Raises:
        SeamError: If a function does not look as expected.
    """
    wrappers = {
        compat.LOAD_CHECKPOINT.function: _with_callback,
        compat.MAKE_TRAINER.function: _naming_damaged_files,
        compat.TRAINING_ENTRY.function: _with_exit_status,
    }
    targets = (compat.LOAD_CHECKPOINT, compat.MAKE_TRAINER, compat.TRAINING_ENTRY)
    compat.replace(module, targets, lambda original: wrappers[original.__name__](original))


def _with_exit_status(original: Callable[..., Any]) -> Callable[..., Any]:
    def entry() -> Any:
        try:
            return original()
        except Exception as error:
            if not is_said_by_us(error):
                raise
            print(f"error: {error}", file=sys.stderr)
            return 1  # console scripts pass it to sys.exit

    return entry


def _naming_damaged_files(original: Callable[..., Any]) -> Callable[..., Any]:
    of_call = inspect.signature(original)

    def make_trainer(*args: Any, **kwargs: Any) -> Any:
        _refuse_reference_plans(of_call.bind(*args, **kwargs).arguments)
        try:
            return original(*args, **kwargs)
        except (
            KeyError,
            OSError,
            TypeError,
            ValueError,
        ) as error:  # of a damaged file
            if not is_said_by_us(error):
                call = of_call.bind(*args, **kwargs)
                call.apply_defaults()
                _name_damaged(call.arguments)
            raise

    return make_trainer


def _refuse_reference_plans(arguments: dict[str, Any]) -> None:
    """Refuse plans of the reference module for trainers that would spoil their data, before anything is written."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_ext.data.reference_plans import plans_of_ours, refuse_training

    dataset, plans = arguments["dataset_name_or_id"], arguments.get("plans_identifier", "nnUNetPlans")
    if plans_of_ours(dataset, plans):
        trainer = recursive_find_trainer_class_by_name(arguments.get("trainer_name", "nnUNetTrainer"))
        refuse_training(dataset, plans, arguments["configuration"], trainer)


def _name_damaged(arguments: dict[str, Any]) -> None:
    """Raise an error of ours if a trainer of ours could not be made because plans or dataset.json are no JSON."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    if not _is_class_of_ours(recursive_find_trainer_class_by_name(arguments["trainer_name"])):
        return
    from nnunet_ext.data.plans import check_readable

    check_readable(arguments["dataset_name_or_id"], arguments["plans_identifier"])


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
    return any(hasattr(trainer, hook) for hook in hooks) or _is_class_of_ours(type(trainer))


def _is_class_of_ours(trainer_class: type) -> bool:
    return any(cls.__module__.startswith("nnunet_ext.") for cls in trainer_class.__mro__)


def _check(file: str) -> None:
    """Refuse weights that come with code; nnU-Net's command has no flag to trust them, so a variable says it."""
    from nnunet_ext.training.safe_load import check_weights
    from nnunet_ext.training.trusted_classes import TRUST_VARIABLE, trusted_by_environment

    if not trusted_by_environment():
        check_weights([file], f"set {TRUST_VARIABLE}=1", ("network_weights",))
