"""Draws what the attention gates of an ANU-Net let pass in one case.

The network runs once, on the patch in the middle of the case. Each row is a node X(i, j) of a level; its maps show,
over the middle slice, the coefficients by which the gates scale X(i, 0) to X(i, j - 1).
"""

from __future__ import annotations

import argparse

from nnunet_ext.cli.values import add_picture_arguments, natural


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext attention``."""
    add_picture_arguments(parser)
    parser.add_argument("--level", type=natural, default=0, metavar="I", help="0 is full resolution (default)")


def run(arguments: argparse.Namespace) -> int:
    """Draw."""
    import torch

    from nnunet_ext.figures.attention import draw_gates, gate_maps, load_network
    from nnunet_ext.figures.middle_patch import channels_of_case
    from nnunet_ext.files import sweep
    from nnunet_ext.inference.checks import check_device
    from nnunet_ext.model_sharing.folders import find_folds, read_model_json

    check_device(arguments.device)
    fold = find_folds(arguments.m, None if arguments.f is None else [arguments.f], arguments.chk)[0]
    plans, dataset_json = (read_model_json(arguments.m / f"{name}.json") for name in ("plans", "dataset"))
    network, model = load_network(arguments.m, plans, dataset_json, arguments.m / f"fold_{fold}" / arguments.chk)
    case, images = channels_of_case(arguments.i, dataset_json["file_ending"])
    image, maps = gate_maps(network, model, images, torch.device(arguments.device))
    target = arguments.o if arguments.o.suffix.lower() == ".png" else arguments.o / f"{case}.png"
    sweep(target.parent)
    title = f"{case}, patch in the middle\n{arguments.m.name}, {model.fold}"
    draw_gates(target, title, image, maps, arguments.level)
    for gate_map in maps:
        name = f"X({gate_map.level},{gate_map.skip}) into X({gate_map.level},{gate_map.column})"
        print(f"{name}: mean {gate_map.alpha.mean():.3f}, {gate_map.alpha.min():.3f} to {gate_map.alpha.max():.3f}")
    print(f"Wrote {target}")
    return 0
