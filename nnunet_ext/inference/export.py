"""Export of trained models to folders and archives that plain nnU-Net predicts with."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.inference.safe_load import load_checkpoint
from nnunet_ext.training.sharing import for_inference, without_private_keys

STOCK_TRAINER = "nnUNetTrainer"
STOCK_ARCHITECTURES = "dynamic_network_architectures."
CPS_KEY = "nnunet_ext_cps"
# What stock inference reads, and nothing else: no optimiser states, no curves.
_KEPT = ("network_weights", "inference_allowed_mirroring_axes")


def export_model(
    model: str | Path,
    output: str | Path,
    network: str = "1",
    folds: Sequence[int | str] | None = None,
    checkpoint_name: str = "checkpoint_final.pth",
    overwrite: bool = False,
) -> list[int | str]:
    """Write a model that predicts without this plugin, bit for bit the same.

    Args:
        model: Trained model, ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``.
        output: Folder to write, or a file ending in ``.zip`` for ``nnUNetv2_install_pretrained_model_from_zip``.
        network: ``"1"``, ``"2"`` or ``"both"``; both become two folds each, which stock prediction averages.
        folds: Folds to export; None takes all that have the checkpoint.
        checkpoint_name: File in each fold's folder.
        overwrite: Replace what is at ``output``.

    Returns:
        The folds of the exported model.

    Raises:
        FileNotFoundError: If the model, a fold or the checkpoint is missing.
        FileExistsError: If ``output`` exists and is not empty, without ``overwrite``.
        ValueError: If the architecture is not a stock one, the model has no second network, or ``output`` holds the
            model.
    """
    model, output = Path(model), Path(output)
    check_target(model, output, overwrite)
    plans, dataset_json = (read_json(model / name) for name in ("plans.json", "dataset.json"))
    sources = find_folds(model, folds, checkpoint_name)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export") as temporary:
        built = Path(temporary) / "model"
        built.mkdir()
        written, configuration = _write_folds(model, built, sources, network, checkpoint_name, plans)
        write_json(built / "plans.json", for_inference(plans))
        write_json(built / "dataset.json", without_private_keys(dataset_json))
        if (model / "dataset_fingerprint.json").is_file():
            shutil.copyfile(model / "dataset_fingerprint.json", built / "dataset_fingerprint.json")
        name = f"{plans['dataset_name']}/{STOCK_TRAINER}__{plans['plans_name']}__{configuration}"
        publish(built, output, name)
    return written


def _write_folds(
    model: Path, built: Path, sources: list[int | str], network: str, checkpoint_name: str, plans: dict[str, Any]
) -> tuple[list[int | str], str]:
    written: list[int | str] = []
    configuration = ""
    for fold in sources:
        checkpoint = load_checkpoint(model / f"fold_{fold}" / checkpoint_name)
        configuration = checkpoint["init_args"]["configuration"]
        _refuse_foreign_architecture(plans, configuration, checkpoint["trainer_name"])
        for weights in _weights(checkpoint, network, model / f"fold_{fold}" / checkpoint_name):
            number = len(written) if network == "both" else fold
            target = built / f"fold_{number}" / "checkpoint_final.pth"
            target.parent.mkdir()
            _save(checkpoint | {"network_weights": weights}, configuration, target)
            written.append(number)
    return written, configuration


def _weights(checkpoint: dict[str, Any], network: str, file: Path) -> list[dict[str, Any]]:
    if network == "1":
        return [checkpoint["network_weights"]]
    if CPS_KEY not in checkpoint:
        raise ValueError(f"{file} (of {checkpoint['trainer_name']}) has no second network; export it with --network 1")
    second = checkpoint[CPS_KEY]["network_weights"]
    return [second] if network == "2" else [checkpoint["network_weights"], second]


def _save(checkpoint: dict[str, Any], configuration: str, target: Path) -> None:
    import torch

    content = {key: checkpoint[key] for key in _KEPT if key in checkpoint}
    content["trainer_name"] = STOCK_TRAINER
    content["init_args"] = {"configuration": configuration}
    torch.save(content, target)


def _refuse_foreign_architecture(plans: dict[str, Any], configuration: str, trainer: str) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    name = PlansManager(plans).get_configuration(configuration).network_arch_class_name
    if not name.startswith(STOCK_ARCHITECTURES):
        raise ValueError(
            f"the model of {trainer} uses the architecture {name}, which plain nnU-Net does not have; predict with it "
            "where nnunet_ext is installed"
        )


def find_folds(model: Path, folds: Sequence[int | str] | None, checkpoint_name: str) -> list[int | str]:
    """Return the folds of a model that have a checkpoint.

    Args:
        model: Model folder.
        folds: Those wanted; None takes all there are.
        checkpoint_name: File in each fold's folder.

    Raises:
        FileNotFoundError: If the folder, the checkpoint or a wanted fold is missing.
    """
    if not model.is_dir():
        raise FileNotFoundError(
            f"there is no model folder {model}; expected nnUNet_results/DATASET/TRAINER__PLANS__CONF"
        )
    there = [f.parent.name[len("fold_") :] for f in sorted(model.glob(f"fold_*/{checkpoint_name}"))]
    found: list[int | str] = [int(f) if f.isdigit() else f for f in there]
    if not found:
        raise FileNotFoundError(
            f"no fold of {model} has {checkpoint_name}; finish the training, or name another by -chk"
        )
    missing = [f for f in folds or () if f not in found]
    if missing:
        raise FileNotFoundError(f"{model} has no fold_{missing[0]}/{checkpoint_name}; it has the folds {found}")
    return list(folds) if folds else found


def check_target(model: Path, output: Path, overwrite: bool) -> None:
    """Raise if a model cannot be written where it should be; see :func:`export_model`."""
    if model.resolve().is_relative_to(output.resolve()):
        raise ValueError(f"{output} holds the model that is to be exported; name another place")
    occupied = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if occupied and not overwrite:
        raise FileExistsError(f"{output} exists; pass --overwrite to replace it, or name another place")
    if output.is_dir() and output.suffix == ".zip":
        raise FileExistsError(f"{output} is a folder; name a file for the archive")


def publish(built: Path, output: Path, name: str) -> None:
    """Move what was built to its place in one step, after everything was written."""
    if output.suffix == ".zip":
        archive = built.parent / "model.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted(p for p in built.rglob("*") if p.is_file()):
                file.write(path, f"{name}/{path.relative_to(built)}")
        os.replace(archive, output)
        return
    if output.is_dir():
        shutil.rmtree(output)
    os.replace(built, output)


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a file that each model has.

    Raises:
        FileNotFoundError: If it is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a model folder written by nnUNetv2_train")
    return json.loads(path.read_text())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of a model."""
    path.write_text(json.dumps(content, indent=2))
