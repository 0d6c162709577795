"""Every depth of a nested network on the cases that it was not trained on: accuracy, size, time and memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext import files
from nnunet_ext.data.classes import classes_of
from nnunet_ext.data.reading import choose_reader
from nnunet_ext.evaluation.inputs import ProfileInputs, find_inputs
from nnunet_ext.evaluation.profile import ProfileOptions, failed, profile
from nnunet_ext.evaluation.record import without_nan
from nnunet_ext.evaluation.settings import Setting
from nnunet_ext.evaluation.table import align
from nnunet_ext.figures.depths import draw_depths
from nnunet_ext.model_sharing.folders import find_folds, read_model_json
from nnunet_ext.model_sharing.pruning import depth_of, pruned_network
from nnunet_ext.training.safe_load import load_checkpoint
from nnunet_ext.training.trusted_classes import check_classes

ACCURACY = ("dice", "iou", "precision", "recall")
FILE, PICTURE = "prune.json", "prune.png"


@dataclass(frozen=True)
class PruneOptions:
    """Output folder, device and tolerance of a comparison of depths.

    Attributes:
        output: Folder of reports, predictions and logs.
        tolerance: Largest loss of mean Dice, against the deepest, of a recommended depth.
        flags: Flags of nnU-Net's predict command, added for every depth.
        device: Device to predict on, ``cuda``, ``cpu`` or ``mps``, as nnU-Net takes it.
        npp: Number of processes for preprocessing.
        nps: Number of processes for resampling and writing.
        overwrite: Whether to run every depth again, even if it is measured already.
        progress_bar: Whether to show progress over depths and cases.
    """

    output: Path
    tolerance: float = 0.01
    flags: tuple[str, ...] = ()
    device: str = "cuda"
    npp: int = 3
    nps: int = 3
    overwrite: bool = False
    progress_bar: bool = True


def link_validation_cases(dataset: str, fold: int | str, target: Path, ending: str) -> tuple[Path, Path]:
    """Make folders of links to the images and labels that a fold was not trained on, and return them.

    Args:
        dataset: Name of the dataset, ``Dataset904_...``.
        fold: Fold whose validation cases are linked.
        target: Folder of the two folders, which holds nothing else.
        ending: File ending of the dataset, e.g. ``.nii.gz``.

    Raises:
        FileNotFoundError: If there is no split, no raw dataset, or not all of its cases.
        FileExistsError: If the folders hold other files.
        ValueError: If the split has no such fold.
    """
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    splits_file = Path(str(nnUNet_preprocessed)) / dataset / "splits_final.json"
    raw = Path(str(nnUNet_raw)) / dataset
    remedy = "or pass images and labels with -i and --labels"
    if fold == "all":
        raise ValueError(f"fold all has no validation cases; name another fold, {remedy}")
    for file, description in (
        (splits_file, "the split that it was trained with"),
        (raw / "dataset.json", "the raw dataset"),
    ):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing, {description}; set nnUNet_preprocessed and nnUNet_raw, {remedy}"
            )
    splits = files.read_json(splits_file, remedy, list)
    if not int(fold) < len(splits):
        raise ValueError(f"{splits_file} has {len(splits)} folds, not fold {fold}; name another one, {remedy}")
    cases = get_filenames_of_train_images_and_targets(str(raw))
    validation_cases = splits[int(fold)]["val"]
    missing = [case for case in validation_cases if case not in cases]
    if missing:
        raise FileNotFoundError(f"{raw} lacks {', '.join(missing)} of {splits_file}; put them back, {remedy}")
    folders = target / "images", target / "labels"
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            if not file.is_symlink():
                raise FileExistsError(f"{file} is not ours; move it elsewhere, or pass another -o")
            file.unlink()
    listed: dict[Path, list[str]] = {}
    for case in validation_cases:
        for channel, image in enumerate(cases[case]["images"]):
            _link(Path(image), folders[0], f"{case}_{channel:04d}", f"_{channel:04d}", ending, listed)
        _link(Path(cases[case]["label"]), folders[1], case, "", ending, listed)
    return folders


def _link(file: Path, folder: Path, name: str, channel: str, ending: str, listed: dict[Path, list[str]]) -> None:
    """Link a file, and what lies beside it under its name: some formats keep spacing or voxels in a second file."""
    (folder / f"{name}{ending}").symlink_to(file.resolve())
    stem = file.name.removesuffix(ending)
    names = {f"{stem}.": f"{name}.", f"{stem.removesuffix(channel)}.": f"{name.removesuffix(channel)}."}
    if file.parent not in listed:
        listed[file.parent] = sorted(sibling.name for sibling in file.parent.iterdir())
    siblings = listed[file.parent]
    for old, new in names.items():
        for sibling in siblings[bisect_left(siblings, old) :]:
            if not sibling.startswith(old):
                break
            target = folder / f"{new}{sibling.removeprefix(old)}"
            if not target.is_symlink():
                target.symlink_to((file.parent / sibling).resolve())


def check_nested_model(model: Path, fold: int | str, checkpoint: str) -> str:
    """Return the configuration of a model whose depths can be compared.

    Raises:
        FileNotFoundError: If the model, the fold or the checkpoint is missing.
        ValueError: If the network is not a nested one, or needs the predictions of a previous stage.
    """
    find_folds(model, [fold], checkpoint)
    file = model / f"fold_{fold}" / checkpoint
    checkpoint_content = load_checkpoint(file, mapped=True)
    configuration: str = checkpoint_content["init_args"]["configuration"]
    plans = read_model_json(model / "plans.json")
    depth_of(plans, configuration, f"the model {model}")
    manager = PlansManager(plans).get_configuration(configuration)
    check_classes(manager.configuration["architecture"])
    stage = manager.previous_stage_name
    if stage is not None:
        raise ValueError(
            f"the model {model} is the second stage of a cascade, whose depths are not compared; predict with "
            f"--prune_depth and -prev_stage_predictions (of {stage}), and evaluate with nnUNetv2_evaluate_folder"
        )
    return configuration


def compare_depths(
    model: Path, fold: int | str, checkpoint: str, images: Path, labels: Path, options: PruneOptions
) -> dict[str, Any]:
    """Predict with every depth by the stock command, and compare.

    What an earlier call predicted with the same command, files and machine is kept.

    Args:
        model: Folder of a model trained by a trainer with ANUNet in its name.
        fold: Fold of the model whose weights predict.
        checkpoint: Name of the checkpoint file in the fold's folder.
        images: Folder of images, ``CASE_0000.nii.gz``.
        labels: Folder of the label maps of these images, ``CASE.nii.gz``.
        options: Output folder, device and tolerance of the comparison.

    Returns:
        The content of ``prune.json``: ``model``, ``fold``, ``cases``, ``tolerance``, ``recommended`` and ``depths``:
        for each ``parameters``, the means ``dice``, ``iou``, ``precision`` and ``recall`` over cases and classes,
        ``classes`` with the same by class, ``seconds`` (of the network, a case), ``peak_memory_mb`` and
        ``peak_gpu_memory_mb`` of the command. What is not known is None.

    Raises:
        FileNotFoundError: If something that is read is missing.
        ValueError: If the network is not a nested one.
        RuntimeError: If a depth cannot be predicted.
    """
    _check_earlier(options.output / FILE)
    files.sweep(options.output)
    inputs = find_inputs(model, images, labels, [fold], checkpoint)
    configuration = check_nested_model(model, fold, checkpoint)
    deepest = depth_of(inputs.plans, configuration, f"the model {model}")
    settings = [
        Setting(f"depth_{depth}", (*options.flags, "--prune_depth", str(depth)), f"nodes up to depth {depth}")
        for depth in range(1, deepest + 1)
    ]
    profile_options = ProfileOptions(
        options.output / "predictions",
        device=options.device,
        npp=options.npp,
        nps=options.nps,
        overwrite=options.overwrite,
        progress_bar=options.progress_bar,
    )
    profile_document = profile(inputs, settings, profile_options)
    failures = failed(profile_document, settings)
    if failures:
        name, reason = next(iter(failures.items()))
        raise RuntimeError(f"{name} failed: {reason}")
    depths = {}
    for depth, setting in enumerate(settings, 1):
        predictions = profile_options.output / setting.name
        entry = profile_document["settings"][setting.name]
        depths[str(depth)] = _entry_of_depth(inputs, configuration, depth, predictions, entry["measured"])
    document = without_nan(
        {
            "model": str(model),
            "fold": fold,
            "cases": list(inputs.cases),
            "tolerance": options.tolerance,
            "recommended": recommend({int(d): entry["dice"] for d, entry in depths.items()}, options.tolerance),
            "depths": depths,
        }
    )
    draw_depths(options.output / PICTURE, document)
    files.write_json(options.output / FILE, document, indent=1)
    return document


def _check_earlier(file: Path) -> None:
    """Refuse to write over a file of the same name that another program wrote."""
    if file.is_file():
        remedy = "name another place with -o, or remove it by hand"
        if not {"depths", "recommended"} <= files.read_json(file, remedy).keys():
            raise FileExistsError(f"{file} was not written by nnUNetv2_ext prune; {remedy}")


def _entry_of_depth(
    inputs: ProfileInputs, configuration: str, depth: int, predictions: Path, measured: dict[str, Any]
) -> dict[str, Any]:
    network = pruned_network(inputs.plans, configuration, inputs.dataset_json, depth)
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        **accuracy(inputs, predictions),
        "seconds": (measured["stages"] or {}).get("network"),
        "peak_memory_mb": measured["peak_memory_mb"],
        "peak_gpu_memory_mb": measured["peak_gpu_memory_mb"],
    }


def accuracy(inputs: ProfileInputs, predictions: Path) -> dict[str, Any]:
    """Return Dice, IoU, precision and recall of predictions, means over the cases: of each class, and over classes.

    What nnU-Net leaves undefined (a class that neither label map nor prediction has), and precision where nothing was
    predicted or recall where nothing is there, counts in no mean.
    """
    labels = inputs.labels or {}
    reader = choose_reader(inputs.dataset_json, [str(file) for file in labels.values()])()
    classes = classes_of(inputs.plans, inputs.dataset_json)
    names = {region: name for name, region in classes.regions.items()}
    values: dict[str, list[list[float]]] = {name: [] for name in names.values()}
    for case, file in inputs.predictions(predictions).items():
        metrics = compute_metrics(str(labels[case]), str(file), reader, list(names), classes.ignored)["metrics"]
        for region, scores in metrics.items():
            tp, positive, true = scores["TP"], scores["n_pred"], scores["n_ref"]
            shares = [tp / positive if positive else np.nan, tp / true if true else np.nan]
            values[names[region]].append([scores["Dice"], scores["IoU"], *shares])
    by_class = {name: dict(zip(ACCURACY, _means(cases), strict=True)) for name, cases in values.items()}
    table = [list(means.values()) for means in by_class.values()]
    return {**dict(zip(ACCURACY, _means(table), strict=True)), "classes": by_class}


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    columns = np.array(rows, float).T
    defined = [column[~np.isnan(column)] for column in columns]
    return [float(np.mean(column)) if column.size else float("nan") for column in defined]


def recommend(dice: Mapping[int, float], tolerance: float) -> int | None:
    """Return the shallowest depth that loses at most ``tolerance`` of the deepest's Dice; None if that is NaN."""
    least = dice[max(dice)] - tolerance
    return min((depth for depth, value in dice.items() if value >= least), default=None)


def format_depths(document: dict[str, Any]) -> str:
    """Return the comparison as a table, with what is recommended."""
    gpu = any(entry["peak_gpu_memory_mb"] is not None for entry in document["depths"].values())
    head = ["depth", *("Dice", "IoU", "precision", "recall"), "parameters", "network s/case", "peak memory MB"]
    rows = [head + ["peak GPU MB"] * gpu]
    for depth, entry in document["depths"].items():
        row = [depth, *(_number(entry[name], 4) for name in ACCURACY), f"{entry['parameters']:,}"]
        row += [_number(entry["seconds"], 2), _number(entry["peak_memory_mb"], 0)]
        rows.append(row + [_number(entry["peak_gpu_memory_mb"], 0)] * gpu)
    best, deepest = document["recommended"], max(map(int, document["depths"]))
    if best is None:
        return f"{align(rows)}\n\nNo depth is recommended: no class is in these cases or their predictions."
    reason = f"the shallowest whose mean Dice is at most {document['tolerance']:g} below depth {deepest}"
    return f"{align(rows)}\n\nRecommended: depth {best}, {reason}."


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
