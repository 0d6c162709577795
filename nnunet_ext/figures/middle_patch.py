"""A trained network and the patch in the middle of a case, for pictures of what the network computes inside."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_ext.inference.case import Model, prepare
from nnunet_ext.inference.spacing import PlansSpacing
from nnunet_ext.model_sharing.choice_of_network import SECOND, networks_of
from nnunet_ext.training.architecture import build, check_fit, plans_of_second, second_architecture
from nnunet_ext.training.safe_load import load_checkpoint


@dataclass(frozen=True)
class DrawnModel(Model):
    """Plans of the network that is drawn.

    Attributes:
        fold: Name of the fold, and of the network where the model has several: ``fold 0, network 2``.
    """

    fold: str = ""


def load_network(
    model: Path,
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    checkpoint: Path,
    networks: Sequence[str],
    reason: str,
) -> tuple[nn.Module, DrawnModel]:
    """Build a trained network from the plans beside it: network 1, or network 2 where that alone is allowed.

    Args:
        model: Folder of the trained model, for messages.
        plans: Content of the model's plans.json.
        dataset_json: Content of the model's dataset.json.
        checkpoint: Checkpoint file with the weights.
        networks: Class paths of the networks that are allowed.
        reason: Reason why another network is refused, and what to do, for the message.

    Raises:
        ValueError: If the network is another one, or the second stage of a cascade.
    """
    content = load_checkpoint(checkpoint)
    name, of_model = content["init_args"]["configuration"], networks_of(content)
    which, weights = next(iter(of_model.items()))
    second = second_architecture(plans, name)
    first = PlansManager(plans).get_configuration(name).network_arch_class_name
    if first not in networks and second is not None and second["network_class_name"] in networks:
        plans, which, weights = plans_of_second(plans, name), SECOND, of_model[SECOND]
    manager = PlansManager(plans)
    configuration = manager.get_configuration(name)
    if configuration.network_arch_class_name not in networks:
        raise ValueError(f"the model {model} was trained by {content['trainer_name']} and {reason}")
    if configuration.previous_stage_name is not None:
        raise ValueError(f"the model {model} is the second stage of a cascade; give one of a single stage")
    fold = checkpoint.parent.name.replace("_", " ")
    which = f"network {which}" if which.isdigit() else which
    case_model = DrawnModel(manager, configuration, dataset_json, fold=f"{fold}, {which}" if which else fold)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    network = build(configuration.configuration["architecture"], case_model.channels, heads, False)
    check_fit(network, weights, checkpoint)
    network.load_state_dict(weights)
    return network.eval(), case_model


def read_middle_patch(model: Model, images: tuple[str, ...]) -> Tensor:
    """Read a case and return the patch in its middle, ``(C, *patch)``, padded with zeros where the case is smaller.

    Args:
        model: Plans of the network, from :func:`load_network`.
        images: Image files of the case, one a channel.
    """
    data = torch.from_numpy(prepare(images, None, PlansSpacing(), model).data)
    size = model.configuration.patch_size
    if len(size) == 2:
        data = data[:, data.shape[1] // 2]
    for axis, length in enumerate(size, 1):
        missing = max(0, length - data.shape[axis])
        padding = [0] * (2 * (data.ndim - axis - 1)) + [missing // 2, missing - missing // 2]
        data = nn.functional.pad(data, padding)
        data = data.narrow(axis, (data.shape[axis] - length) // 2, length)
    return data


def channels_of_case(first_channel: Path, ending: str) -> tuple[str, tuple[str, ...]]:
    """Return the name of a case and the existing files of its channels, as nnU-Net finds them.

    Args:
        first_channel: Image file of the first channel, ``CASE_0000.nii.gz``.
        ending: File ending of the dataset, e.g. ``.nii.gz``.

    Raises:
        ValueError: If the name is not that of a first channel.
        FileNotFoundError: If it is missing.
    """
    end = f"_0000{ending}"
    if not first_channel.name.endswith(end):
        raise ValueError(f"{first_channel} is not the first channel of a case; its name must end in {end}")
    if not first_channel.is_file():
        raise FileNotFoundError(f"{first_channel} is missing; give the first channel of a case")
    case = first_channel.name[: -len(end)]
    files = sorted(first_channel.parent.glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{ending}"))
    return case, tuple(map(str, files))
