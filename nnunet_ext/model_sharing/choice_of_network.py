"""Networks of a checkpoint: one, both of CPS, or teacher and student of a mean teacher; and which are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIRST, SECOND, BOTH = NETWORKS = ("1", "2", "both")  # as options name them; the first is the one that stock loads


def networks_of(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the weights of each network of a checkpoint, the one that stock loads first.

    Args:
        checkpoint: Its content.

    Returns:
        ``""`` for the only network, else ``"1"`` and ``"2"``, or ``"teacher"`` and ``"student"``.
    """
    from nnunet_ext.training.checkpoints import SECOND_NETWORK, TEACHING

    if SECOND_NETWORK in checkpoint:
        return {"1": checkpoint["network_weights"], "2": checkpoint[SECOND_NETWORK]["network_weights"]}
    if "student" in checkpoint.get(TEACHING, ()):
        return {"teacher": checkpoint["network_weights"], "student": checkpoint[TEACHING]["student"]}
    return {"": checkpoint["network_weights"]}


def chosen_networks(checkpoint: dict[str, Any], network: str, file: Path, verb: str) -> list[dict[str, Any]]:
    """Return the weights of the networks that are wanted.

    Args:
        checkpoint: Content of a checkpoint.
        network: ``"1"``, ``"2"`` or ``"both"``.
        file: The checkpoint, for messages.
        verb: What is done with them, for messages: ``"predict with"``.

    Raises:
        ValueError: If there is no such network.
    """
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
    weights = list(networks_of(checkpoint).values())
    if network != FIRST and len(weights) < 2:
        raise ValueError(
            f"{file} (of {checkpoint['trainer_name']}) has no second network; {verb} --network 1 "
            "(trainers of CPS, as nnUNetTrainerCPS, and of a mean teacher, as nnUNetTrainerSemi, have two)"
        )
    return {FIRST: weights[:1], SECOND: weights[1:], BOTH: weights}[network]


def weights_of_folds(
    model: Path, folds: Sequence[int | str], checkpoint_name: str, network: str, trusted: bool | None = None
) -> list[list[dict[str, Any]]]:
    """Load the weights of the networks that are wanted of each fold.

    Args:
        model: Folder of the trained model.
        folds: Folds that have the checkpoint.
        checkpoint_name: Name of the checkpoint file in each fold's folder.
        network: ``"1"``, ``"2"`` or ``"both"``.
        trusted: Whether checkpoints may hold code; None asks the environment.

    Returns:
        For each fold the weights of one network, or of both.

    Raises:
        ValueError: If a fold has no such network.
    """
    from nnunet_ext.training.safe_load import load_checkpoint

    found = []
    for fold in folds:
        file = model / f"fold_{fold}" / checkpoint_name
        content = load_checkpoint(file, mapped=True, trusted=trusted)
        chosen = chosen_networks(content, network, file, "predict with")
        found.append([{key: value.clone() for key, value in weights.items()} for weights in chosen])
    return found


def joined(weights: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the weights of one network as they are, those of several as the average of these networks has them."""
    if len(weights) == 1:
        return weights[0]
    return {f"networks.{number}.{key}": value for number, one in enumerate(weights) for key, value in one.items()}


def plans_of_network(plans: dict[str, Any], configuration: str, network: str) -> dict[str, Any]:
    """Return plans that name the chosen network alone, as that of the configuration.

    Args:
        plans: Content of plans.json of a model.
        configuration: Name of the configuration.
        network: ``"1"`` or ``"2"``.
    """
    from nnunet_ext.training.architecture import plans_of_second, without_second

    return (plans_of_second if network == SECOND else without_second)(plans, configuration)
