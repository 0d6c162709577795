"""Lists trainers and the parts that trainer names are made of."""

from __future__ import annotations

import argparse
import json

from nnunet_ext.trainers.names import COMMON, PARTS, summary_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext trainers``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def trainers_and_parts() -> dict[str, list[dict[str, str]]]:
    """Return names and one-line summaries of the trainers that are listed, and of the parts."""
    trainers = [{"name": name, "summary": summary_of(name)} for name in COMMON]
    return {"trainers": trainers, "parts": [{"name": part.name, "summary": part.summary} for part in PARTS]}


def run(arguments: argparse.Namespace) -> int:
    """Print the list."""
    listing = trainers_and_parts()
    if arguments.json:
        print(json.dumps(listing, indent=1))
        return 0
    width = max(len(row["name"]) for rows in listing.values() for row in rows)
    print("Trainers (nnUNetv2_train ... -tr NAME):")
    for row in listing["trainers"]:
        print(f"  {row['name']:<{width}}  {row['summary']}")
    print("\nParts of a trainer name, in their order:")
    for row in listing["parts"]:
        print(f"  {row['name']:<{width}}  {row['summary']}")
    print(
        "\nA name is nnUNetTrainer plus parts, the first joined directly, the others by '_', e.g. "
        "nnUNetTrainerCPS_20epochs_50iterations;\na length alone is joined by '_' too: "
        "nnUNetTrainer_20epochs_50iterations."
    )
    return 0
