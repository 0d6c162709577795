"""Everything of nnU-Net that is private or may change with its version: what the seams replace, and how they look.

A seam is installed only where nnU-Net looks exactly as it did when the seam was written. Anything else raises
``SeamError``, upon which the start-up hook leaves nnU-Net as it is.
"""

import functools
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

MINIMUM_VERSION = (2, 8, 1)
BELOW_VERSION = (3,)
SUPPORTED = "nnunetv2>=2.8.1,<3"
MARKER = "__nnunet_ext_seam__"

TRAINER_NOT_FOUND = (
    "Could not find requested nnunet trainer"  # start of the only RuntimeError that means 'no such name'
)
PLANNING_MODULE = "nnunetv2.experiment_planning"  # where stock looks for planners and fingerprint extractors
PREPROCESSING_MODULE = "nnunetv2.preprocessing"  # where it looks for preprocessors


class SeamError(RuntimeError):
    """nnU-Net does not look as a seam expects; nothing was changed."""


@dataclass(frozen=True)
class Target:
    """A function of nnU-Net that a seam replaces.

    Attributes:
        module: Module that defines it.
        function: Its name there.
        parameters: Names of its parameters, in order.
    """

    module: str
    function: str
    parameters: tuple[str, ...]


FIND_CLASS = Target(
    "nnunetv2.utilities.find_class_by_name",
    "recursive_find_python_class",
    ("folder", "class_name", "current_module", "base_folder", "verbose", "cleanup_imports_from_base_folder"),
)
FIND_TRAINER = Target("nnunetv2.utilities.find_objects", "recursive_find_trainer_class_by_name", ("trainer_name",))
_ENTRY_POINTS = "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"
PREPROCESSING_ENTRIES = tuple(
    Target(_ENTRY_POINTS, name, ())
    for name in ("plan_and_preprocess_entry", "preprocess_entry", "extract_fingerprint_entry", "plan_experiment_entry")
)
PREDICT_ENTRIES = tuple(
    Target("nnunetv2.inference.predict_from_raw_data", name, ())
    for name in ("predict_entry_point", "predict_entry_point_modelfolder")
)
DATASET = Target(
    "nnunetv2.utilities.utils", "get_filenames_of_train_images_and_targets", ("raw_dataset_folder", "dataset_json")
)
VERIFY = Target(
    "nnunetv2.experiment_planning.verify_dataset_integrity", "verify_dataset_integrity", ("folder", "num_processes")
)
PREPROCESS_DATASET = Target(
    "nnunetv2.experiment_planning.plan_and_preprocess_api",
    "preprocess_dataset",
    ("dataset_id", "plans_identifier", "configurations", "num_processes", "verbose", "show_progress_bar"),
)
LOAD_CHECKPOINT = Target(
    "nnunetv2.run.run_training",
    "maybe_load_checkpoint",
    ("nnunet_trainer", "continue_training", "validation_only", "pretrained_weights_file"),
)
MAKE_TRAINER = Target(
    "nnunetv2.run.run_training",
    "get_trainer_from_args",
    (
        "dataset_name_or_id",
        "configuration",
        "fold",
        "trainer_name",
        "plans_identifier",
        "continue_training",
        "device",
    ),
)
TRAINING_ENTRY = Target("nnunetv2.run.run_training", "run_training_entry", ())

SINGLE_TARGETS = (
    FIND_CLASS,
    FIND_TRAINER,
    DATASET,
    VERIFY,
    PREPROCESS_DATASET,
    LOAD_CHECKPOINT,
    MAKE_TRAINER,
    TRAINING_ENTRY,
)


@functools.lru_cache(maxsize=1)
def nnunetv2_version() -> str | None:
    """Version of the installed nnunetv2, ``None`` where it has no metadata (a bare source tree)."""
    try:
        return importlib.metadata.version("nnunetv2")
    except importlib.metadata.PackageNotFoundError:
        return None


def check_version() -> None:
    """Refuse an nnunetv2 outside the range the seams were made for.

    A version that is not known passes: the signatures of the functions are checked all the same.

    Raises:
        SeamError: If the version is known and outside the range.
    """
    version = nnunetv2_version()
    if version is None:
        return
    release = re.match(r"\d+(\.\d+)*", version)
    numbers = tuple(int(part) for part in release.group().split(".")) if release else ()
    if not MINIMUM_VERSION <= numbers < BELOW_VERSION:
        raise SeamError(f"made for {SUPPORTED}, found nnunetv2 {version}; {_remedy()}")


def expect_signature(function: Any, names: tuple[str, ...]) -> None:
    """Refuse a function whose parameters are not the expected ones.

    Args:
        function: What nnU-Net has under the name in question.
        names: The expected parameters, in order.

    Raises:
        SeamError: If ``function`` is no function, or its parameters have other names or another order.
    """
    try:
        found = tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        raise SeamError(f"made for {SUPPORTED}, expected a function, got {function!r}; {_remedy()}") from None
    if found != names:
        name = getattr(function, "__qualname__", repr(function))
        raise SeamError(
            f"made for {SUPPORTED}, expected {name}({', '.join(names)}), "
            f"found nnunetv2 {nnunetv2_version() or 'of unknown version'} with {name}({', '.join(found)}); {_remedy()}"
        )


def replace(module: ModuleType, targets: Sequence[Target], wrap: Callable[[Callable[..., Any]], Any]) -> None:
    """Replace functions of a module by wrappers of them: all or, where one does not look as expected, none.

    A function that is already replaced is left alone.

    Args:
        module: The module, executed.
        targets: The functions to replace.
        wrap: Takes the original function, returns what replaces it. Name, docstring and signature are copied.

    Raises:
        SeamError: If nnU-Net is not as expected; then nothing was changed.
    """
    check_version()
    originals = {}
    for target in targets:
        original = getattr(module, target.function, None)
        if original is None:
            raise SeamError(
                f"made for {SUPPORTED}, expected {target.module}.{target.function}, not found in nnunetv2 "
                f"{nnunetv2_version() or 'of unknown version'}; {_remedy()}"
            )
        if not getattr(original, MARKER, False):
            expect_signature(original, target.parameters)
            originals[target.function] = original
    replacements = {name: functools.update_wrapper(wrap(original), original) for name, original in originals.items()}
    for name, replacement in replacements.items():
        setattr(replacement, MARKER, True)
        setattr(module, name, replacement)


def _remedy() -> str:
    return f"nnU-Net is left untouched, install {SUPPORTED} or an nnunetv2-ext made for this version"
