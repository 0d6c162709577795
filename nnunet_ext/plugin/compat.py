"""Everything of nnU-Net that is private or may change with its version: what the seams replace, and how they look.

A seam is installed only where nnU-Net looks exactly as it did when the seam was written. Anything else raises
``SeamError``, upon which the start-up hook leaves nnU-Net as it is.

Below the seams stand the inner workings of nnU-Net's objects that are used elsewhere, a small function for each. This
module is imported in every process that imports nnU-Net, so it imports nothing that costs time, and no room of ours.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
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
NORMALIZATION_MODULE = "nnunetv2.preprocessing.normalization"  # where it looks for normalisations


class SeamError(RuntimeError):
    """nnU-Net does not look as a seam expects; nothing was changed."""


@dataclass(frozen=True)
class Target:
    """A function of nnU-Net that a seam replaces.

    Attributes:
        module: Module that defines the function.
        function: Name of the function.
        parameters: Names of the function's parameters, in order.
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
        function: Function that nnU-Net has under the name in question.
        names: The expected parameters, in order.

    Raises:
        SeamError: If ``function`` is no function, or its parameters have other names or another order.
    """
    try:
        parameters = tuple(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        raise SeamError(f"made for {SUPPORTED}, expected a function, got {function!r}; {_remedy()}") from None
    if parameters != names:
        name = getattr(function, "__qualname__", repr(function))
        raise SeamError(
            f"made for {SUPPORTED}, expected {name}({', '.join(names)}), "
            f"found nnunetv2 {nnunetv2_version() or 'of unknown version'} with {name}({', '.join(parameters)}); "
            f"{_remedy()}"
        )


def replace(module: ModuleType, targets: Sequence[Target], wrap: Callable[[Callable[..., Any]], Any]) -> None:
    """Replace functions of a module by wrappers of them: all or, where one does not look as expected, none.

    A function that is already replaced is left alone.

    Args:
        module: The module, executed.
        targets: The functions to replace.
        wrap: Function that takes the original and returns what replaces it. Name, docstring and signature are copied.

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


BEST_EMA = "_best_ema"  # of the trainer, and the key of it in checkpoints


def best_ema(trainer: Any) -> float | None:
    """Return the best moving average of the validation Dice of a trainer so far."""
    best: float | None = trainer._best_ema
    return best


def compiles(trainer: Any) -> bool:
    """Whether a trainer compiles networks and losses."""
    return bool(trainer._do_i_compile())


def deep_supervision_scales(trainer: Any) -> list[list[float]] | None:
    """Return the size of each output of a trainer's network by that of the patch, None without deep supervision."""
    scales: list[list[float]] | None = trainer._get_deep_supervision_scales()
    return scales


def target_scales(trainer: Any) -> list[list[float]] | None:
    """Return the scales that a trainer's labels are made at: those of its outputs, unless it says otherwise."""
    own = getattr(trainer, "target_scales", None)
    return deep_supervision_scales(trainer) if own is None else own()


def set_batch_size(trainer: Any) -> None:
    """Let a trainer set its batch size and oversampling, which under DDP are shares of the plans'."""
    trainer._set_batch_size_and_oversample()


def logged_curves(logger: Any) -> dict[str, list[Any]]:
    """Return the curves that nnU-Net's logger holds, by key; changes of them are changes of the logger."""
    curves: dict[str, list[Any]] = logger.local_logger.my_fantastic_logging
    return curves


def build_network(
    trainer_class: Any,
    plans: Any,
    configuration: Any,
    input_channels: int,
    output_channels: int,
    deep_supervision: bool,
) -> Any:
    """Build the network of a class of trainers, by either signature that nnU-Net takes."""
    arguments: tuple[Any, ...] = (plans, configuration)
    if "plans_manager" not in inspect.signature(trainer_class.build_network_architecture).parameters:
        arguments = (
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
        )
    return trainer_class.build_network_architecture(*arguments, input_channels, output_channels, deep_supervision)


def dataset_of(loader: Any) -> Any:
    """Return the dataset that nnU-Net's loader draws from."""
    return loader._data


@contextlib.contextmanager
def loaders_made_by(make: Callable[..., Any]) -> Iterator[None]:
    """Let nnU-Net's trainer make its loaders by another function inside the block; one that is another already stays.

    Args:
        make: Function that takes the arguments of nnU-Net's loader.
    """
    trainer: Any = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    stock = importlib.import_module("nnunetv2.training.dataloading.data_loader").nnUNetDataLoader
    before = trainer.nnUNetDataLoader
    if before is stock:
        trainer.nnUNetDataLoader = make
    try:
        yield
    finally:
        trainer.nnUNetDataLoader = before


@contextlib.contextmanager
def validation_predicts_by(make: Callable[..., Any]) -> Iterator[None]:
    """Let the final validation of nnU-Net's trainer predict by something else than its predictor inside the block.

    Args:
        make: Makes what has the predictor's ``manual_initialization`` and ``predict_sliding_window_return_logits``.
    """
    trainer: Any = importlib.import_module("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    before = trainer.nnUNetPredictor
    trainer.nnUNetPredictor = make
    try:
        yield
    finally:
        trainer.nnUNetPredictor = before


_PROCESSES = "batchgenerators.dataloading.nondet_multi_threaded_augmenter"


def loader_process() -> Callable[..., None]:
    """Return the function that a loader process of batchgenerators runs."""
    function: Callable[..., None] = importlib.import_module(_PROCESSES).producer
    return function


@contextlib.contextmanager
def loader_processes_run(function: Callable[..., None]) -> Iterator[None]:
    """Let loader processes that are started inside the block run another function.

    Args:
        function: Function that takes the arguments of that of :func:`loader_process`.
    """
    module: Any = importlib.import_module(_PROCESSES)
    before = module.producer
    module.producer = function
    try:
        yield
    finally:
        module.producer = before


def input_and_output_lists(predictor: Any, *arguments: Any) -> tuple[list[Any], Any, list[Any]]:
    """Return images, outputs (None where nothing is written) and previous segmentations of what would be predicted."""
    images, outputs, previous = predictor._manage_input_and_output_lists(*arguments)
    return images, outputs, previous


def sliding_window_slicers(predictor: Any, shape: tuple[int, ...]) -> list[Any]:
    """Return the places of the patches with which nnU-Net's predictor covers an image."""
    slicers: list[Any] = predictor._internal_get_sliding_window_slicers(shape)
    return slicers


BUILD_LOSS = "_build_loss"


def normalized(preprocessor: Any, data: Any, mask: Any, configuration: Any, statistics: Any) -> Any:
    """Return an image normalised by nnU-Net's preprocessor of the plans; the image itself may be overwritten."""
    return preprocessor._normalize(data, mask, configuration, statistics)


def normalizes_as_nnunet(preprocessor: Any) -> bool:
    """Whether a preprocessor of the plans has no normalisation of its own."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    return type(preprocessor)._normalize is DefaultPreprocessor._normalize


def build_loss(trainer: Any) -> Any:
    """Return the loss that a trainer makes for its network."""
    return trainer._build_loss()


def class_with_loss(trainer: type) -> type | None:
    """Return the class among a trainer's bases whose loss it has."""
    return next((base for base in trainer.__mro__ if "_build_loss" in vars(base)), None)


def foreground_locations(labels: Any, classes: Sequence[Any], seed: int, most: int) -> dict[Any, Any]:
    """Return voxels of each class of a label map ``(1, *S)``, chosen as nnU-Net chooses them when it preprocesses."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    sample: Any = DefaultPreprocessor._sample_foreground_locations
    found: dict[Any, Any] = sample(labels, list(classes), seed, min_num_samples=most, min_percent_coverage=0)
    return found
