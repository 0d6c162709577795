"""Lists trainers and the parts that trainer names are made of."""

from __future__ import annotations

import argparse
import json
from itertools import groupby

from nnunet_ext.trainers.names import COMMON, PARTS, RECOMMENDED, summary_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext trainers``."""
    parser.add_argument("--all", action="store_true", help="list every combination of parts, too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def trainers_and_parts() -> dict[str, list[dict[str, str]]]:
    """Return what is recommended and for which case, and one-line summaries of all trainers listed and of the parts."""
    recommended = [{"name": name, "summary": case} for name, case in RECOMMENDED]
    trainers = [{"name": name, "summary": summary_of(name)} for name in COMMON]
    parts = [{"name": part.name, "kind": part.kind, "summary": part.summary} for part in PARTS]
    return {"recommended": recommended, "trainers": trainers, "parts": parts}


def run(arguments: argparse.Namespace) -> int:
    """Print the list."""
    listing = trainers_and_parts()
    if arguments.json:
        print(json.dumps(listing, indent=1))
        return 0
    shown = ["recommended", "parts", "trainers"] if arguments.all else ["recommended", "parts"]
    width = max(len(row["name"]) for name in shown for row in listing[name])
    print("Recommended:")
    for row in listing["recommended"]:
        print(f"  {row['name']:<{width}}  {row['summary']}")
    print("\nParts of a trainer name, in their order:")
    for kind, rows in groupby(listing["parts"], lambda row: row["kind"]):
        print(f"{kind}")
        for row in rows:
            print(f"  {row['name']:<{width}}  {row['summary']}")
    print(
        "\nA name is nnUNetTrainer plus parts, the first joined directly, the others by '_', e.g. "
        "nnUNetTrainerSemi_20epochs_50iterations;\na length alone is joined by '_' too: "
        "nnUNetTrainer_20epochs_50iterations. Give it to nnUNetv2_train after -tr."
    )
    if not arguments.all:
        print(f"There are {len(listing['trainers'])} combinations without a length; --all lists them.")
        return 0
    print("\nTrainers:")
    for row in listing["trainers"]:
        print(f"  {row['name']:<{width}}  {row['summary']}")
    return 0
