"""The networks of a model of two networks, built: the second one, and both as one."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_ext.networks.averaging import AverageOfNetworks
from nnunet_ext.training.architecture import build, second_architecture
from nnunet_ext.training.checkpoints import plain_module


def second_network(
    plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any], first: nn.Module
) -> nn.Module:
    """Return network 2 of a model, without deep supervision and without its weights.

    Args:
        plans: Content of plans.json of the model.
        configuration: Name of the configuration.
        dataset_json: Content of dataset.json of the model.
        first: Network 1, of which network 2 is a copy where the plans name no other architecture.

    Raises:
        ValueError: If the plans name anything but a network.
    """
    architecture = second_architecture(plans, configuration)
    if architecture is None:
        return deepcopy(first)
    manager = PlansManager(plans)
    channels = determine_num_input_channels(manager, manager.get_configuration(configuration), dataset_json)
    return build(architecture, channels, manager.get_label_manager(dataset_json).num_segmentation_heads, False)


def average_of(networks: Sequence[nn.Module], regions: bool) -> nn.Module:
    """Return a network as it is, several as the one whose probabilities are their mean.

    Args:
        networks: Networks of one output each.
        regions: Whether the channels are regions instead of exclusive classes.
    """
    return networks[0] if len(networks) == 1 else AverageOfNetworks(*networks, regions=regions)


def members_of(network: nn.Module) -> list[nn.Module]:
    """Return the networks that an average is made of, or the network itself; it may be compiled."""
    plain = plain_module(network) if isinstance(network, nn.Module) else network
    return list(plain.networks) if isinstance(plain, AverageOfNetworks) else [network]
