"""What parts with a network of their own have in common."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.training import architecture


class NetworkPart(TrainerMixin):
    """Changes the plans' network. Plans beside the model name what was built; other settings are refused.

    Attributes:
        network_keys: Arguments of the network that the part decides.
    """

    network_keys: ClassVar[tuple[str, ...]] = ()

    def changed_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """Return plans with the part's network.

        Raises:
            NotImplementedError: If two parts of the trainer have a network of their own.
        """
        cls = type(self)
        parts = [part.__name__ for part in cls.__mro__ if vars(part).get("network_keys")]
        if len(parts) > 1:
            raise NotImplementedError(
                f"{cls.__name__} has {' and '.join(parts)}, but can change its network in one way"
            )
        change = partial(self.network_architecture, self)
        plans = super().changed_plans(plans, configuration)
        return architecture.changed_plans(plans, configuration, change, self.network_keys, cls.__name__)

    @staticmethod
    def network_architecture(settings: Any, configuration: ConfigurationManager) -> dict[str, Any]:
        """Return the architecture of plans with the part's network; what plans say of it already stays.

        Args:
            settings: The trainer, or its class where a network is built without one.
            configuration: Configuration of the plans.
        """
        raise NotImplementedError

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the network; plans that already name it decide its settings."""
        changed = cls.network_architecture(cls, configuration_manager)
        return architecture.build(changed, num_input_channels, num_output_channels, enable_deep_supervision)

    def refuse_unsupported(self) -> None:
        """Refuse settings other than those of the folds that are there: all share the plans beside the model."""
        super().refuse_unsupported()
        architecture.refuse_other_folds(self, self.network_keys)

    def refuse_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that was trained with other settings."""
        super().refuse_checkpoint(checkpoint)
        plans = checkpoint["init_args"].get("plans")
        architecture.refuse_other_settings(self, plans, "this checkpoint", self.network_keys)
