"""Writes a trained model that plain nnU-Net, without this plugin, predicts with.

Of CPS and of a mean teacher either network can be exported, or both as two folds, which stock prediction averages.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from nnunet_ext.cli.values import add_checkpoint, add_model_argument, fold
from nnunet_ext.model_sharing.choice_of_network import NETWORKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``nnUNetv2_ext export``."""
    add_model_argument(parser)
    parser.add_argument("-o", type=Path, required=True, metavar="OUTPUT", help="folder to write, or a file *.zip")
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default="1",
        help="of CPS, or of a mean teacher, whose student is 2 (default: %(default)s)",
    )
    parser.add_argument("-f", nargs="+", type=fold, default=None, metavar="FOLD", help="folds (default: all there are)")
    add_checkpoint(parser)
    parser.add_argument("--stock", action="store_true", help="what export does anyway; kept for scripts")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier export wrote to OUTPUT")


def run(arguments: argparse.Namespace) -> int:
    """Export and say how to predict with the result."""
    from nnunet_ext.model_sharing.export import export_model
    from nnunet_ext.model_sharing.folders import is_archive

    folds = export_model(
        arguments.m,
        arguments.o,
        network=arguments.network,
        folds=arguments.f,
        checkpoint_name=arguments.chk,
        overwrite=arguments.overwrite,
    )
    print(f"Wrote {arguments.o} with fold(s) {' '.join(map(str, folds))}.")
    output = shlex.quote(str(arguments.o))
    if is_archive(arguments.o):
        print(f"Install it with: nnUNetv2_install_pretrained_model_from_zip {output}")
    else:
        print(
            f"Predict with: nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m {output} "
            f"-f {' '.join(map(str, folds))}"
        )
    return 0
