"""One trained network and one patch of one case, for pictures of what the network does inside."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_ext.inference.case import Model, prepare
from nnunet_ext.inference.spacing import PlansSpacing
from nnunet_ext.training.architecture import build, check_fit
from nnunet_ext.training.safe_load import load_checkpoint


def load_network(
    model: Path,
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    checkpoint: Path,
    networks: Sequence[str],
    lacks: str,
) -> tuple[nn.Module, Model]:
    """Build a trained network from the plans beside it.

    Args:
        model: Model folder, for messages.
        plans: Its plans.
        dataset_json: Its dataset.json.
        checkpoint: File of weights.
        networks: Class paths of the networks that will do.
        lacks: What another one lacks, and what to do, for the message.

    Raises:
        ValueError: If the network is another one, or the second stage of a cascade.
    """
    content = load_checkpoint(checkpoint)
    manager = PlansManager(plans)
    configuration = manager.get_configuration(content["init_args"]["configuration"])
    if configuration.network_arch_class_name not in networks:
        raise ValueError(f"the model {model} was trained by {content['trainer_name']} and {lacks}")
    if configuration.previous_stage_name is not None:
        raise ValueError(f"the model {model} is the second stage of a cascade; give one of a single stage")
    case_model = Model(manager, configuration, dataset_json)
    heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    network = build(configuration.configuration["architecture"], case_model.channels, heads, False)
    check_fit(network, content["network_weights"], checkpoint)
    network.load_state_dict(content["network_weights"])
    return network.eval(), case_model


def cut(model: Model, images: tuple[str, ...]) -> Tensor:
    """Return the patch in the middle of a case, ``(C, *patch)``, padded with zeros where the case is smaller.

    Args:
        model: Of :func:`load_network`.
        images: Files, one a channel.
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


def channels_of_case(first: Path, ending: str) -> tuple[str, tuple[str, ...]]:
    """Return the name of a case and the files of its channels that are there, as nnU-Net finds them.

    Args:
        first: Its first channel.
        ending: File ending of the dataset.

    Raises:
        ValueError: If the name is not that of a first channel.
        FileNotFoundError: If it is missing.
    """
    end = f"_0000{ending}"
    if not first.name.endswith(end):
        raise ValueError(f"{first} is not the first channel of a case; its name must end in {end}")
    if not first.is_file():
        raise FileNotFoundError(f"{first} is missing; give the first channel of a case")
    case = first.name[: -len(end)]
    files = sorted(first.parent.glob(f"{glob.escape(case)}_[0-9][0-9][0-9][0-9]{ending}"))
    return case, tuple(map(str, files))
