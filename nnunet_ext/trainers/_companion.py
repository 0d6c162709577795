"""What trains network 2 of CPS where it is another kind of network: a trainer of that network alone, without CPS.

It is an object of a class of its own, made of the part of network 2 and of the loss in the trainer's name, so that
whatever a part does alone (network, optimiser, schedule, loss, scales of deep supervision) it does in a pair. It lives
inside of the trainer of both, and shares its settings, folders and log.
"""

from __future__ import annotations

from typing import Any, cast

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext.plugin import compat
from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.trainers._network import NetworkPart
from nnunet_ext.trainers.base import ExtPart
from nnunet_ext.training import architecture
from nnunet_ext.training.checkpoints import plain_module
from nnunet_ext.training.criteria import cross_pseudo_criterion
from nnunet_ext.training.schedules import PlateauScheduler

SETTINGS_OF_BOTH = (  # which nnU-Net has; a part of network 2 may have values of its own
    *("initial_lr", "weight_decay", "oversample_foreground_percent", "probabilistic_oversampling"),
    *("num_iterations_per_epoch", "num_val_iterations_per_epoch", "num_epochs", "save_every"),
    "enable_deep_supervision",
)
METHODS = (  # that make or supervise a network
    *("build_network_architecture", "configure_optimizers", "own_optimizer", "make_network"),
    *(compat.BUILD_LOSS, "default_loss", "pseudo_criterion", "output_weights", "deep_supervision_scales"),
)


class CompanionPart(TrainerMixin):
    """Stands in the place of CPS among the bases of what trains network 2."""

    network_number = 2
    lr_schedule: str

    def pseudo_criterion(self) -> nn.Module:
        """Return the loss against the labels of network 1; a part with another loss may replace it."""
        return cross_pseudo_criterion(self)

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Return nnU-Net's optimiser, and its scheduler unless ``lr_schedule`` says otherwise."""
        optimizer, scheduler = super().configure_optimizers()
        return optimizer, PlateauScheduler(optimizer) if self.lr_schedule == "plateau" else scheduler


def companion_class(pair: Any) -> Any:
    """Return the class of what trains network 2 of a pair's trainer, under the name of that trainer.

    Class attributes that the trainer's user has set, such as those that shape a network, hold for network 2, too. The
    class is made anew at each call, as they may have changed.

    Args:
        pair: Class of a trainer with ``companion_bases``.
    """
    bases = pair.companion_bases
    content: dict[str, Any] = {"__module__": pair.__module__, "__doc__": f"Network 2 of {pair.__name__}."}
    composed = _composed(pair)
    for cls in reversed([cls for cls in pair.__mro__ if cls is composed or not issubclass(composed, cls)]):
        content |= {name: value for name, value in vars(cls).items() if _is_setting(name, value, bases)}
    return type(pair.__name__, bases, content)


def _composed(pair: Any) -> Any:
    """Return the class among a pair's bases that is made of the parts of its name."""
    return next(cls for cls in pair.__mro__ if "companion_bases" in vars(cls))


def _is_setting(name: str, value: Any, bases: tuple[type, ...]) -> bool:
    """Whether a class attribute is a value that a part of network 2 has as well."""
    own = [base for base in bases if issubclass(base, (NetworkPart, ExtPart))]
    return not name.startswith("_") and not hasattr(value, "__get__") and any(hasattr(base, name) for base in own)


def with_second(pair: Any, changed: dict[str, Any], plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """Return plans that name network 2 of a pair's trainer beside network 1.

    Args:
        pair: Class of the trainer.
        changed: A copy of the plans that says nothing of network 2; it is completed.
        plans: Plans of the dataset, or those beside a model of the pair.
        configuration: Name of the configuration that is trained.
    """
    cls = companion_class(pair)
    of_second = architecture.plans_for_part(plans, configuration, getattr(cls, "network_keys", ()))
    own = cls.__new__(cls).changed_plans(of_second, configuration)
    content = PlansManager(own).get_configuration(configuration).configuration["architecture"]
    changed["configurations"][configuration][architecture.SECOND] = content
    return changed


def make_companion(trainer: ExtPart) -> Any:
    """Make what trains network 2 of a trainer, with the trainer's settings as they are now.

    Args:
        trainer: A trainer of a pair, before it builds its networks.
    """
    pair = cast(Any, type(trainer))
    cls = companion_class(pair)
    companion = cls.__new__(cls)
    given = {name: value for name, value in vars(trainer).items() if name != "companion"}
    vars(companion).update(given | _own_settings(pair, cls, given))
    plans = architecture.plans_of_second(trainer.plans_manager.plans, trainer.configuration_name)
    companion.plans_manager = PlansManager(plans)
    companion.configuration_manager = companion.plans_manager.get_configuration(trainer.configuration_name)
    return companion


def _own_settings(pair: Any, cls: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of network 2's part, without those that the trainer's user has set."""
    rest = tuple(base for base in cls.__bases__ if not issubclass(base, NetworkPart))
    shared = _set_by(type(cls.__name__, rest, {}), given)
    own = {name: value for name, value in _set_by(cls, given).items() if name not in shared}
    of_first = _set_by(_composed(pair), given)
    known = {*of_first, *SETTINGS_OF_BOTH}  # what else is there was set by the user
    alike = {name for name, value in own.items() if name in of_first and of_first[name] == value}
    return {name: value for name, value in own.items() if name not in alike and (name in known or name not in given)}


def _set_by(cls: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return what ``set_defaults`` of a class sets."""
    found: dict[str, Any] = {}

    def note(self: Any, name: str, value: Any) -> None:
        found[name] = value
        object.__setattr__(self, name, value)

    recorder = cast(Any, type(cls.__name__, (cls,), {"__setattr__": note}))
    blank = recorder.__new__(recorder)
    vars(blank).update(given)
    blank.set_defaults()
    return found


def _say_what_is_of_network_1(trainer: ExtPart, second: str) -> None:
    """Warn of methods of the user's class that make or supervise a network: network 2 is not made by that class."""
    pair = type(trainer)
    composed = _composed(pair)
    own = [name for name in METHODS if any(name in vars(cls) for cls in pair.__mro__ if not issubclass(composed, cls))]
    if own:
        trainer.print_to_log_file(
            f"WARNING: {' and '.join(own)} of {pair.__name__} {'is that' if len(own) == 1 else 'are those'} of network "
            f"1 alone; network 2 ({second}) has the one{'' if len(own) == 1 else 's'} that its part of the name brings"
        )


def build(companion: Any, trainer: ExtPart) -> tuple[nn.Module, Any, Any]:
    """Build network 2 with its optimiser, scheduler and loss, once network 1 is built.

    Args:
        companion: What trains network 2.
        trainer: Trainer of both, from which it takes what is known by now.
    """
    for name in ("batch_size", "oversample_foreground_percent", "num_input_channels"):
        setattr(companion, name, getattr(trainer, name))
    companion.build_networks()
    companion.loss = compat.build_loss(companion)
    _say_what_is_of_network_1(trainer, type(plain_module(companion.network)).__name__)
    return companion.network, companion.optimizer, companion.lr_scheduler
