"""Prints versions, whether the plugin is active, the seams it holds, and the environment variables that count.

With -d and -tr: parameters and memory of that trainer's network, beside nnU-Net's own, for each configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "nnunetv2-ext",
    "nnunetv2",
    "torch",
    "dynamic-network-architectures",
    "batchgenerators",
    "batchgeneratorsv2",
    "SimpleITK",
    "numpy",
)
VARIABLES = {
    "nnUNet_raw": "raw datasets",
    "nnUNet_preprocessed": "preprocessed datasets and plans",
    "nnUNet_results": "trained models",
    "nnUNet_extTrainer": "folders with trainers of your own; they win over ours",
    "nnUNet_compile": "torch.compile on (default) or off",
    "nnUNet_n_proc_DA": "loader processes",
    "nnUNet_def_n_proc": "processes of pools",
    "nnUNet_wandb_enabled": "log to Weights & Biases",
    "nnUNet_wandb_project": "its project",
    "nnUNet_wandb_mode": "its mode, online or offline",
    "nnUNet_ext_seed": "seed of our trainers (default 0)",
    "nnUNet_ext_cpu_bf16": "bfloat16 on CPUs, 1 or 0 (default)",
    "nnUNet_ext_trust_weights": "1 loads checkpoints and plans of others with whatever code is in them",
    "NNUNET_EXT_DISABLE": "1 switches the plugin off",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext info``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("-d", metavar="DATASET", help="dataset number or name: look at a trainer's network instead")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="with -d (default: %(default)s)")
    parser.add_argument("-tr", metavar="TRAINER", help="with -d: name of the trainer")
    parser.add_argument("-c", nargs="+", metavar="CONF", help="with -d: configurations (default: all of the plans)")


def collect() -> dict[str, Any]:
    """Return what the command prints."""
    from nnunet_ext import discovery_folder
    from nnunet_ext.plugin import startup
    from nnunet_ext.training.precision import cpu_has_bf16_units

    for module in startup.SEAMS:
        import_module(module)  # a seam shows its state once the module that it extends is there
    seams = [dict(zip(("name", "module", "state"), row, strict=True)) for row in startup.status()]
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "active": all(seam["state"] == "active" for seam in seams),
        "seams": seams,
        "discovery_folder": discovery_folder(),
        "cpu_has_bf16_units": cpu_has_bf16_units(),
        "environment": {name: os.environ.get(name) for name in VARIABLES},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def run(arguments: argparse.Namespace) -> int:
    """Print the state, or a trainer's networks."""
    if arguments.d is not None or arguments.tr is not None:
        return _print_networks(arguments)
    state = collect()
    if arguments.json:
        print(json.dumps(state, indent=1))
        return 0
    print(f"Python {state['python']}")
    for name, version in state["packages"].items():
        print(f"  {name:<30} {version or 'not installed'}")
    print(f"\nPlugin {'active' if state['active'] else 'NOT active'}; seams:")
    for seam in state["seams"]:
        print(f"  {seam['name']:<20} {seam['module']:<62} {seam['state']}")
    print(f"\nTrainers for nnUNet_extTrainer, where the plugin cannot be active:\n  {state['discovery_folder']}")
    print(f"\nbfloat16 units in this CPU: {'yes' if state['cpu_has_bf16_units'] else 'no'}")
    print("\nEnvironment variables:")
    for name, meaning in VARIABLES.items():
        value = state["environment"][name]
        note = (
            "" if value is None or not name.startswith(("nnUNet_raw", "nnUNet_pre", "nnUNet_res")) else _folder(value)
        )
        print(f"  {name:<22} {'not set' if value is None else value}{note}  ({meaning})")
    return 0


def _print_networks(arguments: argparse.Namespace) -> int:
    from nnunet_ext.evaluation.network_info import compare_networks, read_plans

    if arguments.d is None or arguments.tr is None:
        raise ValueError("-d and -tr belong together: a dataset, and the trainer whose network to look at")
    plans, dataset_json = read_plans(arguments.d, arguments.p)
    comparison = compare_networks(plans, dataset_json, arguments.tr, arguments.c)
    if arguments.json:
        print(json.dumps(comparison, indent=1))
        return 0
    print(f"{arguments.tr}, {plans['dataset_name']}, {arguments.p}; beside it nnUNetTrainer")
    for name, networks in comparison.items():
        plain, trainer = networks["plain"], networks["trainer"]
        print(f"\n{name}: patch {' x '.join(map(str, networks['patch_size']))}, batch {networks['batch_size']}")
        print(
            f"  network     {trainer['network']}"
            + (f", {trainer['networks']} of them" if trainer["networks"] > 1 and "network_2" not in trainer else "")
        )
        if "network_2" in trainer:
            second = trainer["network_2"]
            print(f"  network 2   {second['network']}, {second['parameters']:,} parameters")
        ratio = trainer["parameters"] / plain["parameters"]
        print(f"  parameters  {trainer['parameters']:,} (plain {plain['parameters']:,}, {ratio:.3f} times)")
        ratio = trainer["gib"] / plain["gib"]
        print(
            f"  memory      {trainer['gib']:.2f} GiB a training step (plain {plain['gib']:.2f} GiB, {ratio:.2f} times)"
        )
    print("\nMemory is an estimate in mixed precision without torch.compile, cuDNN's workspaces and the CUDA context.")
    return 0


def _folder(path: str) -> str:
    return "" if Path(path).is_dir() else " [no such folder]"
