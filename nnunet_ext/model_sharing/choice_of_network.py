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
) -> list[dict[str, Any]]:
    """Load the weights of the networks that are wanted of each fold.

    Args:
        model: Folder of the trained model.
        folds: Folds that have the checkpoint.
        checkpoint_name: Name of the checkpoint file in each fold's folder.
        network: ``"1"``, ``"2"`` or ``"both"``.
        trusted: Whether checkpoints may hold code; None asks the environment.

    Raises:
        ValueError: If a fold has no such network.
    """
    from nnunet_ext.training.safe_load import load_checkpoint

    found = []
    for fold in folds:
        file = model / f"fold_{fold}" / checkpoint_name
        content = load_checkpoint(file, mapped=True, trusted=trusted)
        for weights in chosen_networks(content, network, file, "predict with"):
            found.append({key: value.clone() for key, value in weights.items()})
    return found
