"""Draws which channels a model with instructive feature enhancement repeats for one case, and their scores.

The network runs once, on the patch in the middle of the case. For each enhanced stage the picture shows the scores of
all channels, the middle slice of those with the highest scores, and of those with the lowest.
"""

from __future__ import annotations

import argparse

from nnunet_ext.cli.values import add_picture_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext ife``."""
    add_picture_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Draw."""
    import torch

    from nnunet_ext.figures.enhancement import draw_stages, enhanced_stages, load_network
    from nnunet_ext.figures.middle_patch import channels_of_case
    from nnunet_ext.files import sweep
    from nnunet_ext.inference.checks import check_device
    from nnunet_ext.model_sharing.folders import find_folds, read_model_json

    check_device(arguments.device)
    fold = find_folds(arguments.m, None if arguments.f is None else [arguments.f], arguments.chk)[0]
    plans, dataset_json = (read_model_json(arguments.m / f"{name}.json") for name in ("plans", "dataset"))
    checkpoint = arguments.m / f"fold_{fold}" / arguments.chk
    network, model = load_network(arguments.m, plans, dataset_json, checkpoint)
    case, images = channels_of_case(arguments.i, dataset_json["file_ending"])
    stages = enhanced_stages(network, model, images, torch.device(arguments.device))
    target = arguments.o if arguments.o.suffix.lower() == ".png" else arguments.o / f"{case}.png"
    sweep(target.parent)
    draw_stages(target, f"{case}: {stages[0].score}, patch in the middle, {arguments.m.name}, {model.fold}", stages)
    for stage in stages:
        chosen = stage.ranking[: stage.selected]
        print(f"encoder stage {stage.number}: channels {' '.join(map(str, chosen))}")
        limits = stage.scores[stage.ranking[[0, max(0, stage.selected - 1), -1]]]
        print("  {} {:.4g} (highest), {:.4g} (last selected), {:.4g} (lowest)".format(stage.score, *limits))
    print(f"Wrote {target}")
    return 0
