"""Checks of a prediction's device, model and arguments, before anything is written or loaded with code in it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.model_sharing.choice_of_network import BOTH, FIRST, SECOND, chosen_networks
from nnunet_ext.model_sharing.folders import (
    as_folds,
    find_folds,
    folds_that_predict,
    model_folder,
    read_model_json,
    sha256_of,
)
from nnunet_ext.training.architecture import second_architecture
from nnunet_ext.training.safe_load import load_checkpoint
from nnunet_ext.training.trusted_classes import check_classes, trusted_by_environment

OUR_FLAGS = frozenset(
    (
        *("--forced_spacing", "--target_spacing", "--max_voxels", "--fast_export", "--prune_depth"),
        *("--network", "--agreement", "--min_agreement", "--propagate", "--propagate_references"),
        *("--engine", "--precision", "--skip_background"),
    )
)
TRUST_FLAG = "--trust_model"
TWO_NETWORKS = (
    "name more folds with -f, or pass --network both for a model of CPS (nnUNetTrainerCPS) or of a mean teacher "
    "(nnUNetTrainerSemi), which has two networks a fold"
)
_REMEDY = f"pass {TRUST_FLAG}"
_DIGITS = 12  # of the SHA-256 of a checkpoint that name it


class BadInputError(ValueError):
    """A call of the predictor that cannot be done; the message says what to do instead."""


def check_device(device: str) -> None:
    """Check that torch has the device.

    Raises:
        ValueError: If not.
    """
    import torch

    available = device == "cpu" or (torch.cuda if device == "cuda" else torch.backends.mps).is_available()
    if not available:
        raise ValueError(f"-device is {device}, but torch finds none here; pass one that is there, e.g. -device cpu")


def check_engine(engine: str | None, precision: str | None, device: str) -> None:
    """Check that an engine and a precision can be had on a device.

    Args:
        engine: Name of an engine; None is nnU-Net's own way.
        precision: Name of a precision; None is nnU-Net's.
        device: Name of the device.

    Raises:
        ValueError: If not.
    """
    if engine is None and precision is None:
        return
    import torch

    from nnunet_ext.engines.choice import check
    from nnunet_ext.engines.engine import TORCH

    check(engine or TORCH, precision, torch.device(device))


def check_model(model: Path, folds: Sequence[int | str] | None, checkpoint_name: str, trusted: bool = False) -> None:
    """Check a model that nnU-Net is about to load with whatever code is in its checkpoints and plans.

    Args:
        model: Folder of the trained model, as given to -m.
        folds: Folds that will be loaded; None takes all that have the checkpoint.
        checkpoint_name: Name of the checkpoint file in each fold's folder.
        trusted: Whether checkpoints and plans may hold code; then only missing files are refused.

    Raises:
        FileNotFoundError: If the folder, a fold, the checkpoint or a JSON file is missing.
        ValueError: If a checkpoint holds more than weights and plain values, or the plans name more than networks and
            layers; the message tells how to trust them.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    available_folds = find_folds(model, folds, checkpoint_name)
    plans = read_model_json(model / "plans.json")
    read_model_json(model / "dataset.json")
    if trusted or trusted_by_environment():
        return
    checkpoints = [model / f"fold_{fold}" / checkpoint_name for fold in available_folds]
    for checkpoint in checkpoints:
        content = load_checkpoint(checkpoint, mapped=True, trusted=False, remedy=_REMEDY)
        configuration = content["init_args"]["configuration"]
        if configuration not in plans.get("configurations", {}):
            raise ValueError(
                f"{checkpoint} is of the configuration {configuration}, which {model / 'plans.json'} does not have; "
                "restore the plans that it was trained with"
            )
        check_classes(PlansManager(plans).get_configuration(configuration).configuration["architecture"], _REMEDY)
        second = second_architecture(plans, configuration)
        if second is not None:
            check_classes(second, _REMEDY)


def check_networks(
    model: Path,
    folds: Sequence[int | str] | None,
    checkpoint_name: str,
    network: str = FIRST,
    agreement: bool = False,
    trusted: bool = False,
) -> list[str]:
    """Check that the networks that are to predict are there, and two or more where their agreement is wanted.

    Args:
        model: Folder of the trained model, as given to -m.
        folds: Folds that predict; None takes all that have the checkpoint, but for ``all``.
        checkpoint_name: Name of the checkpoint file in each fold's folder.
        network: Which networks of each checkpoint, ``"1"``, ``"2"`` or ``"both"``.
        agreement: Whether their agreement is wanted.
        trusted: Whether checkpoints may hold code.

    Returns:
        What each network is called.

    Raises:
        FileNotFoundError: If a fold is missing.
        ValueError: If a checkpoint has no such network, or agreement is wanted of too few, of one with itself, or of
            labels that no consensus is defined for.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ext.inference.comparison import why_not_compared

    found = folds_that_predict(model, folds, checkpoint_name)
    if network != FIRST:
        for fold in found:
            file = model / f"fold_{fold}" / checkpoint_name
            content = load_checkpoint(file, mapped=True, trusted=trusted or None, remedy=_REMEDY)
            chosen_networks(content, network, file, "predict with")
    wanted = (FIRST, SECOND) if network == BOTH else (network,)
    names = [f"fold {fold}, network {one}" for fold in found for one in wanted]
    if not agreement:
        return names
    if len(names) < 2:
        raise ValueError(f"agreement needs two networks or more, got one ({names[0]}); {TWO_NETWORKS}")
    if len(set(names)) < len(names):
        raise ValueError(
            f"-f names a fold twice ({' '.join(map(str, found))}), which would agree with itself; name it once"
        )
    hashes = [sha256_of(model / f"fold_{fold}" / checkpoint_name)[:_DIGITS] for fold in found]
    if len(set(hashes)) < len(hashes):
        alike = [fold for fold, of_fold in zip(found, hashes, strict=True) if hashes.count(of_fold) > 1]
        raise ValueError(
            f"the folds {' and '.join(map(str, alike))} of {model} have the very same {checkpoint_name}, which would "
            "agree with itself; leave one out"
        )
    # so that the record of a case tells whether the same networks predicted it
    names = [f"{name}, {of_fold}" for name, of_fold in zip(names, _repeated(hashes, len(wanted)), strict=True)]
    reason = why_not_compared(
        PlansManager(read_model_json(model / "plans.json")).get_label_manager(read_model_json(model / "dataset.json"))
    )
    if reason is not None:
        raise ValueError(f"agreement is not defined for {model}: {reason}; predict without --agreement")
    return names


def _repeated(values: Sequence[str], times: int) -> list[str]:
    return [value for value in values for _ in range(times)]


def check_command(
    parsed: argparse.Namespace,
    trusted: bool = False,
    network: str = FIRST,
    agreement: bool = False,
    propagate: Path | None = None,
) -> None:
    """Check the arguments of one of nnU-Net's predict commands, before it begins.

    Args:
        parsed: Arguments of the predict command as argparse returns them.
        trusted: Whether checkpoints and plans may hold code.
        network: Which networks of each checkpoint predict, ``"1"``, ``"2"`` or ``"both"``.
        agreement: Whether their agreement is wanted.
        propagate: Propagation model that carries on what they segment.

    Raises:
        FileNotFoundError: If something that is read is missing.
        FileExistsError: If the output is a file.
        ValueError: If a value makes no sense.
    """
    given = vars(parsed)
    _check_numbers(given)
    if "i" in given and "o" in given:
        _check_folders(given)
    model = _model_of(given)
    if model is None:
        return
    folds = as_folds(given["f"])
    check_model(model, folds, given["chk"], trusted)
    check_networks(model, folds, given["chk"], network, agreement, trusted)
    if propagate is not None:
        from nnunet_ext.inference.propagation_model import check_propagation

        check_propagation(propagate, model, folds, given["chk"], trusted, given.get("save_probabilities", False))
    check_device(given["device"])


def _check_numbers(given: dict[str, Any]) -> None:
    for fold in given.get("f") or ():
        if str(fold) != "all" and not str(fold).isdigit():
            raise ValueError(f"-f must be folds, integers of 0 or more, or all, got {fold!r}")
    for flag in ("npp", "nps"):
        if given.get(flag, 0) < 0:
            raise ValueError(f"-{flag} must be a number of processes of 0 or more, got {given[flag]}")
    if not 0 < given.get("step_size", 1) <= 1:
        raise ValueError(f"-step_size must be above 0 and at most 1, got {given['step_size']}; the default is 0.5")
    if given.get("device", "cpu") not in ("cpu", "cuda", "mps"):
        raise ValueError(f"-device must be cpu, cuda or mps, got {given['device']!r}")
    part, parts = given.get("part_id", 0), given.get("num_parts", 1)
    if not 0 <= part < parts:
        raise ValueError(f"-part_id must lie in 0 to {parts - 1} (-num_parts - 1), got {part}")


def _check_folders(given: dict[str, Any]) -> None:
    previous = given.get("prev_stage_predictions")
    for flag, path, content in (("-i", given["i"], "images"), ("-prev_stage_predictions", previous, "label maps")):
        if path is not None and not Path(path).is_dir():
            state = "is a file" if Path(path).exists() else "is not there"
            raise FileNotFoundError(f"{flag} {path} {state}, expected a folder of {content}; name it")
    for place in (Path(given["o"]), *Path(given["o"]).parents):
        if place.exists() and not place.is_dir():
            raise FileExistsError(f"-o {given['o']} cannot be a folder, because {place} is a file; name another place")


def _model_of(given: dict[str, Any]) -> Path | None:
    if "m" in given:
        return Path(given["m"])
    if "d" not in given:
        return None
    return model_folder(given["d"], given["tr"], given["p"], given["c"])
