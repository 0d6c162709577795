"""nnU-Net's predictor whose windows may be run by another engine, in another precision, and not where there is air."""

from __future__ import annotations

import contextlib
import math
import time
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor
from torch._dynamo import OptimizedModule

from nnunet_ext.engines.choice import choose, precisions_of, why_only_torch
from nnunet_ext.engines.engine import AUTO, COMPILE, FLOAT32, OPENVINO, TORCH, ConversionError, Engine, EngineChoice
from nnunet_ext.engines.make import make_engine
from nnunet_ext.inference.checks import BadInputError, check_engine
from nnunet_ext.inference.empty_windows import channels_of, find_alike, is_background, why_none_is_skipped
from nnunet_ext.inference.windows import Alike, Flips, Place, Sweep, mirrored_versions, run_once, sweep
from nnunet_ext.plugin import compat
from nnunet_ext.training.checkpoints import plain_module

BATCHES = {TORCH: 4, COMPILE: 4, OPENVINO: 1}  # versions of windows at a time, on GPUs; 1 on CPUs
SIGMA, LARGEST_WEIGHT = 1 / 8, 10  # of nnU-Net's weights of a window
TIMED = 2  # windows, to choose by their time; the first one may begin slowly
WORTH_TIMING = 20  # times as many windows are to come, so that timing costs a twentieth at most


class EnginePredictor(nnUNetPredictor):
    """A predictor that says what runs its network.

    Args:
        arguments: Positional arguments of nnUNetPredictor.
        engine: ``"torch"``, ``"compile"``, ``"openvino"``, or ``"auto"`` for the fastest that is there and worth its
            start; None is nnU-Net's own way.
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``; None is nnU-Net's: float32 on CPUs, float16 on GPUs.
        skip_background: Whether windows without content are not run; see :mod:`nnunet_ext.inference.empty_windows`.
        keywords: Keyword arguments of nnUNetPredictor.

    Attributes:
        model_folder: Folder that the model was loaded from, beside which converted networks are kept; None without.
        expected_cases: How many cases are to be predicted, which decides what pays.
        skipped: Number of windows of the last case that were not run.

    Raises:
        ValueError: If there is no such engine or precision, it is not installed, or the device has no units for it.
    """

    network: Any

    def __init__(
        self,
        *arguments: Any,
        engine: str | None = None,
        precision: str | None = None,
        skip_background: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        try:
            check_engine(engine, precision, str(self.device))
        except ValueError as error:
            raise BadInputError(str(error)) from error
        self.engine, self.precision, self.skip_background = engine, precision, skip_background
        self.model_folder: Path | None = None
        self.expected_cases, self.skipped = 1, 0
        self._choice: EngineChoice | None = None
        self._engines: dict[int, Engine] = {}  # number of channels of the logits -> engine
        self._weights: dict[str, Any] | None = None  # of the fold that is predicted with
        self._windows_done = 0
        self._warming: Thread | None = None
        self._seconds: float | None = None  # of a window in torch, where that was timed
        self._is_settled = False  # another engine was tried and cannot run the network
        self._batches: dict[bool, int] = {}  # logits on the GPU or not -> windows at a time that it has room for
        self._said: set[str] = set()

    @property
    def runs_windows(self) -> bool:
        """Whether windows are run otherwise than by nnU-Net's own loop."""
        return self.engine is not None or self.precision is not None or self.skip_background

    def describe_engine(self) -> dict[str, Any]:
        """Return what was asked for, for reports."""
        return {"engine": self.engine, "precision": self.precision, "skip_background": self.skip_background}

    @property
    def engine_used(self) -> str | None:
        """What runs the network, once that is known."""
        return None if self._choice is None else self._choice.describe()

    def initialize_from_trained_model_folder(  # noqa: D102 - documented by nnU-Net
        self,
        model_training_output_dir: str,
        use_folds: tuple[int | str, ...] | None,
        checkpoint_name: str = "checkpoint_final.pth",
    ) -> None:
        self.model_folder = Path(model_training_output_dir)
        self.forget_engines()
        super().initialize_from_trained_model_folder(model_training_output_dir, use_folds, checkpoint_name)

    def manual_initialization(self, *arguments: Any, **keywords: Any) -> None:  # noqa: D102 - documented by nnU-Net
        self.forget_engines()
        super().manual_initialization(*arguments, **keywords)

    def forget_engines(self) -> None:
        """Forget what was made of a network that is replaced."""
        self._wait_until_warm()
        self._engines.clear()
        self._batches.clear()
        self._choice, self._seconds, self._is_settled, self._windows_done = None, None, False, 0

    def warm_up(self) -> None:
        """Begin to make the engine in a thread of its own, while the first case is read and prepared.

        What fails there is tried again, and said, when the engine is needed.
        """
        if self.engine == OPENVINO and self.list_of_parameters and not self._engines:
            self._wait_until_warm()
            self._warming = Thread(target=self._make_first_engine, daemon=True)
            self._warming.start()

    def _make_first_engine(self) -> None:
        with contextlib.suppress(Exception):
            choice = choose(OPENVINO, self.precision, self.device, 0)
            channels = determine_num_input_channels(self.plans_manager, self.configuration_manager, self.dataset_json)
            window = (channels, *(int(size) for size in self.configuration_manager.patch_size))
            engine = make_engine(choice, plain_module(self.network), window, self.device, self.model_folder)
            engine.load(self.list_of_parameters[0])
            for _ in engine.run([torch.zeros((1, *window))]):
                pass
            self._engines[int(self.label_manager.num_segmentation_heads)] = engine

    def _wait_until_warm(self) -> None:
        if self._warming is not None:
            self._warming.join()
            self._warming = None

    @torch.inference_mode()
    def predict_logits_from_preprocessed_data(self, data: Tensor) -> Tensor:
        """Return the logits ``(K, *S)`` of a prepared image ``(C, *S)``, mean over the folds, on the CPU."""
        if not self.runs_windows:
            plain: Tensor = super().predict_logits_from_preprocessed_data(data)
            return plain
        self._wait_until_warm()  # it reads the network, whose weights change below
        threads = torch.get_num_threads()
        torch.set_num_threads(min(default_num_processes, threads))
        try:
            total: Tensor | None = None
            for weights in self.list_of_parameters:
                self._weights = weights
                plain_module(self.network).load_state_dict(weights)
                own = self.predict_sliding_window_return_logits(data).to("cpu")
                total = own if total is None else total.add_(own)
            if total is None:
                raise RuntimeError("there is no network, expected a model; call initialize_from_trained_model_folder")
            return total if len(self.list_of_parameters) == 1 else total.div_(len(self.list_of_parameters))
        finally:
            self._weights = None
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Tensor:
        """Predict an image ``(C, *S)`` with the network as it is now."""
        if not self.runs_windows:
            plain: Tensor = super().predict_sliding_window_return_logits(input_image)
            return plain
        self.network = self.network.to(self.device)
        self.network.eval()
        padded, unpad = pad_nd_image(
            input_image, self.configuration_manager.patch_size, "constant", {"value": 0}, True, None
        )
        places = compat.sliding_window_slicers(self, tuple(padded.shape[1:]))
        flips = mirrored_versions(self.allowed_mirroring_axes if self.use_mirroring else None)
        logits = self._on_a_device_with_room(padded, places, flips)
        self._windows_done += len(places) * len(flips)
        inside = (slice(None), *unpad[1:])
        return logits[inside]

    def _on_a_device_with_room(self, image: Tensor, places: list[Place], flips: Flips) -> Tensor:
        """Predict; with less at a time, and then with the logits in main memory, where a GPU has too little."""
        on_device = self.device.type == "cuda" and self.perform_everything_on_device
        while True:
            device = self.device if on_device else torch.device("cpu")
            size = 1
            try:
                choice = self._choose(len(places) * len(flips), self._window(image))
                size = self._windows_at_a_time(choice, on_device)
                engine = self._engine_of(choice, self._window(image), size)
                empty_cache(self.device)
                return self._predict(image.to(device), places, flips, engine, size)
            except ConversionError as error:  # compilers fail with the first windows only
                self._use_torch_instead(error)
            except torch.cuda.OutOfMemoryError:
                self._engines.clear()  # what is compiled for more windows takes their room for fewer as well
                if size > 1:
                    self._batches[on_device] = size // 2
                elif on_device:
                    on_device = False
                    print("The GPU has no room for the logits; they are kept in main memory.")
                else:
                    raise

    def _window(self, image: Tensor) -> tuple[int, ...]:
        return len(image), *(int(size) for size in self.configuration_manager.patch_size)

    def _windows_at_a_time(self, choice: EngineChoice, on_device: bool) -> int:
        """Return how many windows a batch has: one where results depend on the others, or shapes are compiled for."""
        is_compiled = self.engine is None and isinstance(self.network, OptimizedModule)
        depends = any(getattr(module, "packed", False) for module in plain_module(self.network).modules())
        if self.device.type == "cpu" or is_compiled or depends:
            return 1
        return self._batches.get(on_device, BATCHES[choice.engine])

    def _predict(self, image: Tensor, places: list[Place], flips: Flips, engine: Engine, batch: int) -> Tensor:
        patch = tuple(self.configuration_manager.patch_size)
        weights = None
        if self.use_gaussian:
            weights = compute_gaussian(
                patch, sigma_scale=SIGMA, value_scaling_factor=LARGEST_WEIGHT, device=image.device
            )
        heads = self.label_manager.num_segmentation_heads
        alike = self._find_alike(image, places, flips, engine)
        self.skipped = 0 if alike is None else alike.number
        how = Sweep(places, flips, weights, heads, self.device, batch, self.allow_tqdm)
        return sweep(image, engine, how, alike)

    def _find_alike(self, image: Tensor, places: list[Place], flips: Flips, engine: Engine) -> Alike | None:
        if not self.skip_background:
            return None
        reason = why_none_is_skipped(self.configuration_manager)
        if reason is not None:
            self.say_once(f"--skip_background: {reason}; every window is run.")
            return None
        channels = channels_of(self.plans_manager, self.configuration_manager, len(image))
        labels = self.plans_manager.get_label_manager(self.dataset_json)
        # of networks that are kept apart the average comes first, and is what is written
        background = partial(is_background, heads=labels.num_segmentation_heads, regions=labels.has_regions)
        run = partial(run_once, engine=engine, flips=flips, device=self.device)
        return find_alike(image, places, channels, run, background)

    def _engine_of(self, choice: EngineChoice, window: tuple[int, ...], batch: int) -> Engine:
        """Return the engine that runs the network with the weights that it has now."""
        plain = plain_module(self.network)
        network = self.network if self.engine is None else plain  # with nnUNet_compile it is compiled already
        heads = int(self.label_manager.num_segmentation_heads)
        if heads not in self._engines:
            self._engines[heads] = make_engine(choice, network, window, self.device, self.model_folder, batch)
        self._engines[heads].load(plain.state_dict() if self._weights is None else self._weights)
        return self._engines[heads]

    def _use_torch_instead(self, error: ConversionError) -> None:
        choice = self._choice
        if choice is None or choice.engine == TORCH:
            raise error
        self.say_once(f"--engine {choice.engine}: {error}; torch is used.")
        self._choice = EngineChoice(TORCH, choice.precision, f"{choice.engine} cannot run this network")
        self._is_settled = True
        self._engines.clear()

    def _choose(self, windows: int, window: tuple[int, ...]) -> EngineChoice:
        """Choose once for all cases; an automatic choice of torch is looked at again as windows add up."""
        waits = self.engine == AUTO and self._choice is not None and self._choice.engine == TORCH
        if self._choice is None or (waits and self.expected_cases == 1 and not self._is_settled):
            folds = max(1, len(self.list_of_parameters or ()))
            expected = max(windows * folds * self.expected_cases, self._windows_done)
            seconds = self._seconds_of(window, expected) if self.engine == AUTO else None
            chosen = choose(self.engine or TORCH, self.precision, self.device, expected, seconds)
            if self._choice is None or chosen.engine != self._choice.engine:
                if self._choice is not None:
                    self._engines.clear()
                self._choice = chosen
                if self.engine == AUTO:
                    self.say_once(f"--engine auto: {chosen.describe()} ({chosen.reason}).")
        return self._choice

    def _seconds_of(self, window: tuple[int, ...], expected: int) -> float | None:
        """Return how long torch takes for a window in nnU-Net's precision; None where that is not worth finding out."""
        times = min(TIMED, expected // WORTH_TIMING)
        is_worth_it = times == TIMED or (times > 0 and self.device.type == "cpu")  # GPUs begin by far slower
        if self._seconds is not None or not is_worth_it or why_only_torch(self.device) is not None:
            return self._seconds
        own = EngineChoice(TORCH, precisions_of(self.device)[-1] if self.device.type == "cuda" else FLOAT32)
        engine = make_engine(own, plain_module(self.network), window, self.device)
        batch, seconds = torch.zeros((1, *window), device=self.device), math.inf
        for _ in range(times):
            start = time.perf_counter()
            for logits in engine.run([batch]):
                logits.flatten()[0].item()  # waits for a GPU
            seconds = min(seconds, time.perf_counter() - start)
        self._seconds = seconds
        return seconds

    def say_once(self, text: str) -> None:
        """Print a line that holds for all cases, the first time only."""
        if text not in self._said:
            self._said.add(text)
            print(text)
