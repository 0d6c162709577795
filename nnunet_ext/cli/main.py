"""``nnUNetv2_ext``: what the stock commands cannot express, one subcommand each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from nnunet_ext import __version__

COMMANDS = {
    "trainers": "list trainers and the parts that trainer names are made of",
    "info": "versions, state of the plugin, environment variables",
    "preprocess_unlabeled": "preprocess the unlabelled cases of a dataset for any plans",
    "fingerprint": "draw intensities, spacings and shapes of labelled and unlabelled scans, and name outliers",
    "ife": "draw which channels a model with instructive feature enhancement repeats",
    "attention": "draw where the attention gates of an ANU-Net look",
    "prune": "compare the depths of an ANU-Net on its validation cases, and write a pruned model",
    "contours": "draw the contours that the contour-weighted loss finds in label files",
    "windows": "draw a slice of a CT in the windows that networks of the reference module see it in",
    "export": "write a trained model that plain nnU-Net predicts with",
    "pseudo_label": "label unlabelled scans by what several networks agree about, and make a dataset of them",
    "self_train": "train, label the unlabelled scans by agreement, train with the certain ones, and so on",
    "propagate": "carry the labels of a few annotated slices to all others of a scan",
    "profile": "predict in several ways and compare time, memory and accuracy",
    "demo": "generate phantoms, train with and without unlabelled scans by the stock commands, and compare",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser(words).parse_args(words)
    try:
        return int(arguments.run(arguments))
    except (ValueError, OSError, RuntimeError) as error:
        # Wrong input is reported in a sentence; a traceback is for our own mistakes.
        print(f"nnUNetv2_ext {arguments.command}: error: {error}", file=sys.stderr)
        return 1


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser; of the subcommands, only the one that is named is imported and gets its arguments."""
    parser = argparse.ArgumentParser(prog="nnUNetv2_ext", description=__doc__)
    parser.add_argument("--version", action="version", version=f"nnunetv2-ext {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name != named:
            subparsers.add_parser(name, help=summary)
            continue
        module = import_module(f"nnunet_ext.cli.{name}")
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
