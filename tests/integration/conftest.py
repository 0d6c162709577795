"""A tiny dataset, nnU-Net's three folders around it, and nnU-Net's commands run in processes of their own."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

DATASET_ID = 905
DATASET = f"Dataset{DATASET_ID}_Blobs"
PLANS = "SemiSupervisedPlans"
TINY = "3d_tiny"
TINY_2D = "2d_tiny"
# Outside the dataset's folder, and such as nothing that a training writes may mention.
PRIVATE_NAME = "archive_of_Jane_Doe"
SHAPE = (24, 28, 24)
SPACING = (1.0, 1.0, 1.5)  # mm, SimpleITK's order: as all cases have the same, nothing is resampled

# Runs commands one after another in one interpreter, because importing nnU-Net takes longer than what is tested.
_ONE_AFTER_ANOTHER = """
import contextlib, importlib.metadata, io, json, sys, traceback

scripts = {}
for distribution in ("nnunetv2", "nnunetv2-ext"):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        points = importlib.metadata.distribution(distribution).entry_points
        scripts.update({point.name: point for point in points if point.group == "console_scripts"})
results = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status = scripts[arguments[0]].load()() or 0
        except SystemExit as stop:
            status = stop.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
    results.append((status, output.getvalue()))
print()
print("RESULTS" + json.dumps(results))
"""


@dataclass(frozen=True)
class Done:
    """What a command left behind.

    Attributes:
        status: Exit status; negative where a signal ended it.
        output: Everything it printed, stdout and stderr in the order of printing.
    """

    status: int
    output: str

    @property
    def last_line(self) -> str:
        """The last line, without which an error would not be seen."""
        return self.output.rstrip().rpartition("\n")[2]


@dataclass(frozen=True)
class Workspace:
    """nnU-Net's folders with one dataset in them, and the commands to work on it.

    Attributes:
        root: Folder of everything.
        dataset: Name of the dataset.
        variables: Environment variables on top of the usual ones.
    """

    root: Path
    dataset: str = DATASET
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        return Path(self.environment()["nnUNet_preprocessed"]) / self.dataset

    @property
    def results(self) -> Path:
        return self.root / "results" / self.dataset

    def model(self, trainer: str, configuration: str = TINY, plans: str = PLANS) -> Path:
        """Folder of a trained model."""
        return self.results / f"{trainer}__{plans}__{configuration}"

    def environment(self, **variables: str) -> dict[str, str]:
        """Variables for a command: nothing of nnU-Net from outside, few processes, no compilation."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("nnUNet_", "NNUNET_EXT_"))}
        own = {
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(self.root / "results"),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "0",
            "nnUNet_compile": "0",
            "OMP_NUM_THREADS": "1",
            "ARCHIVE": str(self.root / PRIVATE_NAME),
        }
        return kept | own | dict(self.variables) | variables

    def run(self, *command: object, status: int | None = 0, **variables: str) -> Done:
        """Run a command of this environment.

        Args:
            command: Its name and arguments.
            status: Expected exit status; ``None`` for any.
            variables: Environment variables on top of the usual ones.
        """
        return self._run([find_command(str(command[0])), *map(str, command[1:])], status, variables)

    def run_in_turn(self, *commands: Sequence[object], **variables: str) -> list[Done]:
        """Run commands one after another in one new interpreter, whatever their exit statuses."""
        arguments = json.dumps([[str(word) for word in command] for command in commands])
        done = self._run([sys.executable, "-c", _ONE_AFTER_ANOTHER, arguments], 0, variables)
        results = json.loads(done.output.rpartition("\nRESULTS")[2])
        return [Done(status, output) for status, output in results]

    def train(self, *arguments: object, trainer: str, plans: str = PLANS, **options: Any) -> Done:
        """Run ``nnUNetv2_train`` on fold 0 on the CPU; the first of ``arguments`` is the configuration."""
        return self.run(*self.train_command(*arguments, trainer=trainer, plans=plans), **options)

    def train_command(self, configuration: str, *more: object, trainer: str, plans: str = PLANS) -> list[object]:
        number = int(self.dataset[7:10])
        return ["nnUNetv2_train", number, configuration, 0, "-p", plans, "-tr", trainer, "-device", "cpu", *more]

    def _run(self, command: list[str], status: int | None, variables: Mapping[str, str]) -> Done:
        process = subprocess.run(
            command,
            env=self.environment(**variables),
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert status is None or process.returncode == status, f"{command}\n{process.stdout}"
        return Done(process.returncode, process.stdout)


def find_command(name: str) -> str:
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=beside) or shutil.which(name)
    assert found is not None, f"{name} is neither in {beside} nor on PATH"
    return found


def make_image(seed: int, black_border: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return an image in Hounsfield units and labels 0, 1 and 2: two bright balls, the second within the first or not.

    Args:
        seed: The same seed gives the same image.
        black_border: Zeros outside a box, which nnU-Net crops.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij"))
    image = rng.normal(40, 15, SHAPE)
    labels = np.zeros(SHAPE, np.uint8)
    for label, (radius, brightness) in enumerate(((6, 80), (4, 160)), start=1):
        centre = np.array(SHAPE) * rng.uniform(0.35, 0.65, 3)
        inside = ((grid - centre[:, None, None, None]) ** 2).sum(0) < radius**2
        image[inside] += brightness
        labels[inside] = label
    if black_border:
        border = np.ones(SHAPE, bool)
        border[3:-2, 2:-3, 4:-2] = False
        image[border] = 0
    return image.astype(np.float32), labels


def write_image(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    SimpleITK.WriteImage(image, str(path))


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def write_dataset(
    folder: Path,
    labels: Mapping[str, Any],
    change_labels: Callable[[np.ndarray], np.ndarray] = lambda array: array,
    modalities: Sequence[str] = ("CT",),
    unlabeled: int = 3,
    **more: Any,
) -> None:
    """Write a raw dataset of five labelled and some unlabelled cases, and two images to predict.

    Args:
        folder: The dataset's folder.
        labels: Of dataset.json.
        change_labels: Applied to the label map of each labelled case.
        modalities: One channel each; those after the first are the first with other noise.
        unlabeled: Number of cases in ``imagesUnlabeled``.
        more: Further keys of dataset.json.
    """

    def write_case(subfolder: str, name: str, seed: int) -> np.ndarray:
        image, label = make_image(seed, black_border=modalities[0] != "CT")
        for channel in range(len(modalities)):
            noise = np.random.default_rng(1000 + seed).normal(0, 5, SHAPE) * channel * (image != 0)
            write_image((image + noise).astype(np.float32), folder / subfolder / f"{name}_{channel:04d}.nii.gz")
        return label

    for number in range(5):
        label = write_case("imagesTr", f"case_{number}", number)
        write_image(change_labels(label), folder / "labelsTr" / f"case_{number}.nii.gz")
    for number in range(unlabeled):
        write_case("imagesUnlabeled", f"extra_{number}", 100 + number)
    for number in range(2):
        write_case("imagesTs", f"test_{number}", 200 + number)
    channels = {str(number): name for number, name in enumerate(modalities)}
    write_json(
        folder / "dataset.json",
        {"channel_names": channels, "labels": dict(labels), "numTraining": 5, "file_ending": ".nii.gz", **more},
    )


def add_small_configurations(plans_file: Path) -> None:
    """Add configurations to plans by hand, as a user would: the planned ones with narrow networks."""
    plans = read_json(plans_file)
    for name, parent in ((TINY, "3d_fullres"), (TINY_2D, "2d")):
        if parent not in plans["configurations"]:
            continue
        architecture = copy.deepcopy(plans["configurations"][parent]["architecture"])
        stages = len(architecture["arch_kwargs"]["features_per_stage"])
        architecture["arch_kwargs"]["features_per_stage"] = [min(4 * 2**stage, 16) for stage in range(stages)]
        plans["configurations"][name] = {"inherits_from": parent, "batch_size": 2, "architecture": architecture}
    write_json(plans_file, plans)


def plan_and_preprocess(workspace: Workspace, *more: object, **options: Any) -> Done:
    """Run ``nnUNetv2_plan_and_preprocess`` with one process each."""
    number = int(workspace.dataset[7:10])
    command = ("nnUNetv2_plan_and_preprocess", "-d", number, "-npfp", 1, "-np", 1, "--no_pbar", *more)
    return workspace.run(*command, **options)


@dataclass(frozen=True)
class Tools:
    """The functions and names of this file, for test modules: pytest does not let them import it."""

    add_small_configurations: Any = staticmethod(add_small_configurations)
    make_image: Any = staticmethod(make_image)
    plan_and_preprocess: Any = staticmethod(plan_and_preprocess)
    read_json: Any = staticmethod(read_json)
    write_dataset: Any = staticmethod(write_dataset)
    write_image: Any = staticmethod(write_image)
    write_json: Any = staticmethod(write_json)
