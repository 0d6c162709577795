"""Our options on nnU-Net's predict commands, in a group of their own."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nnunet_ext.engines.engine import ENGINES, PRECISIONS
from nnunet_ext.inference.spacing import (
    KEEP,
    PAPER_SPACING,
    RELEASED_SPACING,
    ForcedSpacing,
    MaxVoxels,
    SpacingRule,
    TargetSpacing,
)
from nnunet_ext.model_sharing.choice_of_network import FIRST, NETWORKS
from nnunet_ext.propagation.references import CHOICES

PREDICTOR = "nnUNetPredictor"  # the class that the entry points look up in their module
_OF_NETWORKS = ("network", "agreement", "min_agreement")
_OF_ENGINES = ("engine", "precision", "skip_background")
LARGEST, UNIFORM = CHOICES
_NONE = {  # what is parsed where none of our options is given
    "spacing": None,
    "fast_export": False,
    "prune_depth": None,
    "network": FIRST,
    "agreement": False,
    "min_agreement": None,
    "propagate": None,
    "engine": None,
    "precision": None,
    "skip_background": False,
}


class _SpacingValues(argparse.Action):
    """Three values that make the rule given as ``const``; none, where the option allows it, are the paper's."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Parse."""
        setattr(namespace, self.dest, _rule(self, self.const, values or PAPER_SPACING))


def _max_voxels(text: str) -> MaxVoxels:
    try:
        return MaxVoxels(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}") from None


def _depth(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a depth of 1 or more, got {text!r}")
    return int(text)


def _references(text: str) -> str | int:
    if text in (LARGEST, UNIFORM):
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected {LARGEST}, {UNIFORM} or a number of slices, got {text!r}")
    return int(text)


def _score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f"expected a score of 0 to 1, got {text!r}")
    return score


def _rule(
    action: argparse.Action, kind: type[ForcedSpacing | TargetSpacing], values: Sequence[str] | Sequence[float]
) -> SpacingRule:
    title, text = kind.__name__.replace("Spacing", " spacing").lower(), " ".join(map(str, values))
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        raise argparse.ArgumentError(action, f"{title} must be 3 values in mm, got {text}") from None
    if len(numbers) != 3:
        raise argparse.ArgumentError(action, f"{title} must be 3 values in mm (x y z), got {text}")
    try:
        return kind(*numbers)
    except ValueError as error:
        raise argparse.ArgumentError(action, str(error)) from None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add our options to the parser of one of nnU-Net's predict commands."""
    group = parser.add_argument_group(
        "nnunet_ext", "options of the plugin; with none of them the prediction is nnU-Net's own (docs/inference.md)"
    )
    _add_spacings(group.add_mutually_exclusive_group())
    group.add_argument(
        "--fast_export",
        action="store_true",
        help="make the same label map without interpolating logits where the winner is known",
    )
    group.add_argument(
        "--prune_depth",
        type=_depth,
        metavar="N",
        default=None,
        help="cut a network trained with ANUNet at depth N: only what that depth needs is built, loaded and run "
        "(nnUNetv2_ext prune compares the depths)",
    )
    _add_engines(group)
    _add_networks(group)
    _add_propagation(group)
    group.add_argument(
        "--trust_model",
        action="store_true",
        help="with another of these options: load the model as nnU-Net does, even if that runs code in it",
    )


def _add_engines(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engine",
        choices=ENGINES,
        default=None,
        help="what runs the network: torch; compile (torch.compile, for GPUs); openvino (for CPUs, pip install "
        "nnunetv2-ext[openvino]); or auto, the fastest that is there and worth its start, which is printed "
        "(default: nnU-Net's own way)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=None,
        help="what the network computes in (default: nnU-Net's, float32 on CPUs and float16 on GPUs); bfloat16 is "
        "several times as fast on CPUs that have units for it",
    )
    group.add_argument(
        "--skip_background",
        action="store_true",
        help="do not run windows that hold only air (CT) or one value throughout, if the network says background of "
        "one of them",
    )


def _add_networks(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--network",
        choices=NETWORKS,
        default=FIRST,
        help="which networks of each checkpoint predict: 1 is the one that nnU-Net loads (of CPS the first, of a mean "
        "teacher the teacher), 2 the other one (the second, the student), both averages their probabilities in each "
        "window (default: 1)",
    )
    group.add_argument(
        "--agreement",
        action="store_true",
        help="of two networks or more (folds, --network both): score how far they agree about each case, 0 to 1, as "
        "nnUNetv2_ext pseudo_label does; printed, and kept in spacing_report.json",
    )
    group.add_argument(
        "--min_agreement",
        type=_score,
        metavar="S",
        default=None,
        help="--agreement, and at the end a list of the cases with a score below S, to be looked at first",
    )


def _add_propagation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--propagate",
        type=Path,
        metavar="MODEL_FOLDER",
        default=None,
        help="segment a few slices only, if the model is 2d, and let a model of nnUNetTrainerPropagation carry their "
        "masks through the volume (docs/propagation.md); a 3d model segments everything, and slices of it are taken",
    )
    group.add_argument(
        "--propagate_references",
        type=_references,
        metavar="HOW",
        default=None,
        help=f"with --propagate, the slices to start from: {LARGEST} (of each class the one with its largest area, the "
        f"default), {UNIFORM} (every segmented slice with a class) or a number of these",
    )


def _add_spacings(group: argparse._MutuallyExclusiveGroup) -> None:
    paper, released = (" ".join(f"{value:g}" for value in values) for values in (PAPER_SPACING, RELEASED_SPACING))
    group.add_argument(
        "--forced_spacing",
        nargs="*",
        metavar="MM",
        action=_SpacingValues,
        const=ForcedSpacing,
        default=None,
        help="forced spacing of 3D-CPS: declare SX SY SZ (mm) instead of the true spacing; z is kept below 150 slices "
        "and shrinks above 600. The network sees things stretched, which is printed; the output keeps the input's "
        f"geometry. Without values the paper's {paper}; the released code has {released}",
    )
    group.add_argument(
        "--target_spacing",
        nargs="+",
        metavar="MM",
        action=_SpacingValues,
        const=TargetSpacing,
        default=None,
        help="resample to SX SY SZ (mm) instead of the plans' spacing, in true geometry; "
        f"{KEEP} keeps the plans' value",
    )
    group.add_argument(
        "--max_voxels",
        type=_max_voxels,
        metavar="N",
        default=None,
        help="resample to the finest spacing, but not finer than the plans' one, at which the volume has at most N "
        "voxels",
    )


def take_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """Take our options out of what was parsed and return the arguments for the predictor that differ from nnU-Net's."""
    rules = [vars(parsed).pop(name) for name in ("forced_spacing", "target_spacing", "max_voxels")]
    options: dict[str, Any] = {"spacing": next((rule for rule in rules if rule is not None), None)}
    options |= {name: vars(parsed).pop(name) for name in ("fast_export", "prune_depth", *_OF_NETWORKS, *_OF_ENGINES)}
    options["agreement"] |= options["min_agreement"] is not None
    options["propagate"], references = (vars(parsed).pop(name) for name in ("propagate", "propagate_references"))
    trust = {"trust_model": vars(parsed).pop("trust_model")}
    if options == _NONE:
        return {}
    options |= trust | {"propagate_references": references or LARGEST}
    return options | {"part": (getattr(parsed, "part_id", 0), getattr(parsed, "num_parts", 1))}


def run(entry: Callable[[], Any], names: dict[str, Any]) -> int | None:
    """Run an entry point of nnU-Net with our options beside its own.

    Args:
        entry: Entry point of nnU-Net, which parses ``sys.argv`` and predicts.
        names: Namespace of the module of the entry point. Where one of our options is given, its name of the predictor
            is bound to ours meanwhile.

    Returns:
        Exit status: 1 if cases failed or nothing could be predicted, else what the entry point returns.
    """
    stock_parse, stock_predictor = argparse.ArgumentParser.parse_args, names[PREDICTOR]
    options: dict[str, Any] = {}

    def parse_args(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        argparse.ArgumentParser.parse_args = stock_parse  # type: ignore[method-assign]
        add_options(parser)
        parsed = stock_parse(parser, args, namespace)
        if parsed.propagate_references is not None and parsed.propagate is None:
            parser.error("--propagate_references says where a propagation starts; name its model by --propagate")
        options.update(take_options(parsed))
        if options:
            from nnunet_ext.inference.checks import check_command, check_engine

            check_command(
                parsed, options["trust_model"], options["network"], options["agreement"], options["propagate"]
            )
            check_engine(options["engine"], options["precision"], getattr(parsed, "device", "cpu"))
            names[PREDICTOR] = _predictor_with(options)
        return parsed

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign,assignment]
    try:
        return entry()
    except Exception as error:
        from nnunet_ext.errors import is_said_by_us
        from nnunet_ext.inference.checks import BadInputError
        from nnunet_ext.inference.prediction_run import PredictionFailedError

        # without our options everything is nnU-Net's, its tracebacks too
        is_message = isinstance(error, (BadInputError, PredictionFailedError)) or is_said_by_us(error)
        if not options or not is_message:
            raise
        print(error if isinstance(error, PredictionFailedError) else f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        argparse.ArgumentParser.parse_args = stock_parse  # type: ignore[method-assign]
        names[PREDICTOR] = stock_predictor


def _predictor_with(options: dict[str, Any]) -> type[Any]:
    from nnunet_ext.inference.predictor import Predictor

    class PredictorWithOptions(Predictor):
        """A predictor with the options of the command line."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **options, **keywords)

    return PredictorWithOptions
