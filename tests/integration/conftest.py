"""A tiny dataset, nnU-Net's three folders around it, and nnU-Net's commands run in processes of their own."""

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from groups import group_of

from nnunet_ext.evaluation.command import find_command

PLANS = "SemiSupervisedPlans"
GLOBAL = ("-fpe", "GlobalIntensityFingerprintExtractor")
TINY = "3d_tiny"
TINY_2D = "2d_tiny"
TRAINER = "nnUNetTrainerCPS_2epochs_2iterations"
PRIVATE = "archive_of_Jane_Doe"  # folder of an unlabelled scan; nothing that is passed on may mention it
SHAPE = (24, 28, 24)
SITE = Path(__file__).parent / "site"  # sitecustomize.py and matplotlibrc, for every command
SPACING = (0.9, 0.9, 2.5)  # mm, SimpleITK's order: as all cases have the same, nothing is resampled
TILT = math.radians(5)  # of the scans, about two axes: as real ones, they are oblique
DIRECTION = (
    *(math.cos(TILT), -math.sin(TILT) * math.cos(TILT), math.sin(TILT) ** 2),
    *(math.sin(TILT), math.cos(TILT) ** 2, -math.cos(TILT) * math.sin(TILT)),
    *(0.0, math.sin(TILT), math.cos(TILT)),
)
MODALITIES = ("T2", "ADC")
_GROUP = pytest.StashKey[str]()

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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note the group of the test for which fixtures are made."""
    item.session.stash[_GROUP] = group_of(item.nodeid)


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
    dataset: str = "Dataset905_Blobs"
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return int(self.dataset[7:10])

    @property
    def raw(self) -> Path:
        return Path(self.environment()["nnUNet_raw"]) / self.dataset

    @property
    def preprocessed(self) -> Path:
        return Path(self.environment()["nnUNet_preprocessed"]) / self.dataset

    def model(self, trainer: str = TRAINER, configuration: str = TINY, plans: str = PLANS) -> Path:
        """Folder of a trained model."""
        return Path(self.environment()["nnUNet_results"]) / self.dataset / f"{trainer}__{plans}__{configuration}"

    def environment(self, real_spawn: bool = False, **variables: str) -> dict[str, str]:
        """Variables for a command: nothing of nnU-Net from outside, few processes, no compilation.

        Args:
            real_spawn: Workers are new interpreters, as in real use; otherwise they are forked, which takes less time.
            variables: On top of the usual ones.
        """
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("nnUNet_", "NNUNET_EXT_"))}
        own = {
            "nnUNet_raw": str(self.root / "raw"),
            "nnUNet_preprocessed": str(self.root / "preprocessed"),
            "nnUNet_results": str(self.root / "results"),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "0",
            "nnUNet_compile": "0",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",  # nnU-Net starts a thread a core all the same; on a busy machine they spin
            "ARCHIVE": str(self.root / PRIVATE),
            "MATPLOTLIBRC": str(SITE),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(SITE), kept.get("PYTHONPATH")])),
            "TESTS_FORK_INSTEAD_OF_SPAWN": "0" if real_spawn else "1",
        }
        return kept | own | dict(self.variables) | variables

    def run(self, *command: object, status: int = 0, real_spawn: bool = False, **variables: str) -> Done:
        """Run a command of this environment.

        Args:
            command: Its name and arguments.
            status: Expected exit status.
            real_spawn: As in :meth:`environment`.
            variables: Environment variables on top of the usual ones.
        """
        program = find_command(str(command[0]))
        return self.call(program, *command[1:], status=status, real_spawn=real_spawn, **variables)

    def run_in_turn(self, *commands: Sequence[object], real_spawn: bool = False, **variables: str) -> list[Done]:
        """Run commands one after another in one new interpreter, whatever their exit statuses."""
        arguments = json.dumps([[str(word) for word in command] for command in commands])
        done = self.call(sys.executable, "-c", _ONE_AFTER_ANOTHER, arguments, real_spawn=real_spawn, **variables)
        return [Done(*result) for result in json.loads(done.output.rpartition("\nRESULTS")[2])]

    def call(self, *command: object, status: int = 0, real_spawn: bool = False, **variables: str) -> Done:
        """Run any program, as :meth:`run` does."""
        process = subprocess.run(
            [str(word) for word in command],
            env=self.environment(real_spawn, **variables),
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert process.returncode == status, f"{command}\n{process.stdout}"
        return Done(process.returncode, process.stdout)

    def plan_and_preprocess(
        self,
        planner: str,
        configurations: Sequence[str] = ("3d_fullres",),
        status: int = 0,
        more: Sequence[object] = (),
        real_spawn: bool = False,
        **variables: str,
    ) -> Done:
        """Plan and preprocess with as few processes as possible."""
        processes = ("-npfp", 1, "-np", 1, "--no_pbar", *more)
        fixed = ("nnUNetv2_plan_and_preprocess", "-d", self.number, "-c", *configurations, *processes)
        variables = {"nnUNet_n_proc_DA": "1", **variables}  # stock planning takes it for a number of threads, not 0
        return self.run(*fixed, "-pl", planner, status=status, real_spawn=real_spawn, **variables)

    def train(self, configuration: str, *more: object, trainer: str = TRAINER, plans: str = PLANS) -> list[object]:
        """Return the command that trains fold 0 on the CPU."""
        return ["nnUNetv2_train", self.number, configuration, 0, "-p", plans, "-tr", trainer, "-device", "cpu", *more]

    def predict(self, output: Path, *more: object, model: Path | None = None) -> list[object]:
        """Return the command that predicts the test images, without mirroring and with probabilities.

        Args:
            output: Folder for the predictions.
            more: Further arguments.
            model: Model folder; without one, ``more`` says what to predict with.
        """
        which = ["nnUNetv2_predict"] if model is None else ["nnUNetv2_predict_from_modelfolder", "-m", model]
        fixed = ("--disable_tta", "--save_probabilities", "--disable_progress_bar", "-device", "cpu")
        return [*which, "-i", self.raw / "imagesTs", "-o", output, *fixed, *more]

    def write_dataset(
        self,
        labels: Mapping[str, Any],
        change_labels: Callable[[np.ndarray], np.ndarray] = lambda array: array,
        modalities: Sequence[str] = MODALITIES,
        extra: int = 3,
        **more: Any,
    ) -> None:
        """Write five labelled and some unlabelled cases, and two images to predict.

        Args:
            labels: Of dataset.json.
            change_labels: Applied to the label map of each labelled case.
            modalities: One channel each. Images of other modalities than CT have a black border, which nnU-Net crops.
            extra: Number of cases in ``imagesUnlabeled``.
            more: Further keys of dataset.json.
        """
        groups = (("imagesTr", "case", 5), ("imagesUnlabeled", "extra", extra), ("imagesTs", "test", 2))
        for first_seed, (folder, name, count) in zip((0, 100, 200), groups, strict=True):
            for number in range(count):
                image, label = make_image(first_seed + number, len(modalities), modalities[0] != "CT")
                write_case(image, self.raw / folder / f"{name}_{number}")
                if folder == "imagesTr":
                    write_image(change_labels(label), self.raw / "labelsTr" / f"{name}_{number}.nii.gz")
        channels = {str(number): name for number, name in enumerate(modalities)}
        fixed = {"channel_names": channels, "labels": dict(labels), "numTraining": 5, "file_ending": ".nii.gz"}
        (self.raw / "dataset.json").write_text(json.dumps(fixed | more))

    def write_test_labels(self, folder: Path) -> Path:
        """Write the true label maps of the images to predict, and return their folder."""
        for number in range(2):
            write_image(make_image(200 + number)[1], folder / f"test_{number}.nii.gz")
        return folder

    def add_small_configurations(self, plans: str = PLANS) -> None:
        """Add configurations to plans by hand, as a user would: the planned ones with narrow networks."""
        file = self.preprocessed / f"{plans}.json"
        content = json.loads(file.read_text())
        for name, parent in ((TINY, "3d_fullres"), (TINY_2D, "2d")):
            if parent in content["configurations"]:
                architecture = copy.deepcopy(content["configurations"][parent]["architecture"])
                stages = len(architecture["arch_kwargs"]["features_per_stage"])
                architecture["arch_kwargs"]["features_per_stage"] = [min(4 * 2**stage, 16) for stage in range(stages)]
                small = {"inherits_from": parent, "batch_size": 2, "architecture": architecture}
                content["configurations"][name] = small
        file.write_text(json.dumps(content))


def make_image(seed: int, channels: int = 1, black_border: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return images ``(C, *S)`` in Hounsfield units, and labels: 1 a large ball, 2 a small bright one.

    Args:
        seed: The same seed gives the same image.
        channels: The same balls, other noise.
        black_border: Zeros outside a box.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij"))
    image = rng.normal(40, 15, (channels, *SHAPE))
    labels = np.zeros(SHAPE, np.uint8)
    for label, (radius, brightness) in enumerate(((6, 80), (4, 160)), start=1):
        centre = np.array(SHAPE) * rng.uniform(0.35, 0.65, 3)
        inside = ((grid - centre[:, None, None, None]) ** 2).sum(0) < radius**2
        image[:, inside] += brightness
        labels[inside] = label
    if black_border:
        border = np.ones(SHAPE, bool)
        border[3:-2, 2:-3, 4:-2] = False
        image[:, border] = 0
    return image.astype(np.float32), labels


def write_image(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin((-12.0, 30.5, 7.25))
    image.SetDirection(DIRECTION)
    SimpleITK.WriteImage(image, str(path))


def write_case(image: np.ndarray, path: Path) -> list[Path]:
    """Write the channels of ``(C, *S)`` as ``path_0000.nii.gz`` and so on, and return these files."""
    files = [path.with_name(f"{path.name}_{channel:04d}.nii.gz") for channel in range(len(image))]
    for array, file in zip(image, files, strict=True):
        write_image(array, file)
    return files


@pytest.fixture(scope="session")
def new_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Workspace]:
    """Make a workspace in a folder of its own."""

    def new_workspace(dataset: str) -> Workspace:
        root = tmp_path_factory.mktemp("workspace")
        for name in ("raw", "preprocessed", "results"):
            (root / name).mkdir()
        return Workspace(root, dataset)

    return new_workspace


@pytest.fixture(scope="session")
def blobs(new_workspace: Callable[..., Workspace]) -> Workspace:
    """An MR dataset of two channels, 5 labelled and 4 unlabelled cases, one of these in an archive; not planned."""
    workspace = new_workspace("Dataset905_Blobs")
    files = write_case(make_image(109, len(MODALITIES), True)[0], workspace.root / PRIVATE / "extra_9")
    archived = {"extra_9": {"images": [f"${{ARCHIVE}}/{file.name}" for file in files]}}
    workspace.write_dataset({"background": 0, "large": 1, "small": 2}, unlabeled=archived)
    return workspace


@dataclass(frozen=True)
class Prepared:
    """What preparing the dataset printed, with two broken unlabelled scans and once they were mended."""

    broken: Done
    finished: dict[str, int]
    mended: Done


@pytest.fixture(scope="session")
def prepared(blobs: Workspace, request: pytest.FixtureRequest) -> Prepared:
    """The dataset planned and preprocessed for 3D and 2D, and the plans with small configurations.

    With spawned workers, except where a worker of xdist makes it once more for tests of what was trained
    (tests/groups.py), which need what fork makes just as well.
    """
    once_more = "PYTEST_XDIST_WORKER" in os.environ and request.session.stash[_GROUP] != "prepared"
    real_spawn = not once_more
    scans = [blobs.raw / "imagesUnlabeled" / f"extra_{number}_0000.nii.gz" for number in (1, 2)]
    sound = [scan.read_bytes() for scan in scans]
    scans[0].write_bytes(b"no image")
    hole = make_image(102, len(MODALITIES), True)[0][0]
    hole[8, 9, 10] = np.nan
    write_image(hole, scans[1])
    configurations = ("3d_fullres", "2d")
    broken = blobs.plan_and_preprocess("SemiSupervisedPlanner", configurations, 1, GLOBAL, real_spawn)
    cases = blobs.preprocessed / f"{PLANS}_3d_fullres_unlabeled"
    finished = {path.name: path.stat().st_mtime_ns for path in cases.glob("*.b2nd")}
    for scan, content in zip(scans, sound, strict=True):
        scan.write_bytes(content)
    again = ("preprocess_unlabeled", "-d", blobs.number, "-p", PLANS, "-c", *configurations, "-np", 1)
    mended = blobs.run("nnUNetv2_ext", *again)
    blobs.add_small_configurations()
    return Prepared(broken, finished, mended)


@dataclass(frozen=True)
class Trained:
    """A training that has finished: where it lies, and what it printed."""

    workspace: Workspace
    model: Path
    done: Done


@pytest.fixture(scope="session")
def trained(blobs: Workspace, prepared: Prepared) -> Trained:
    """A short CPS training in 3D, with spawned workers; tests must leave its files as they are."""
    return Trained(blobs, blobs.model(), blobs.run(*blobs.train(TINY), real_spawn=True))


@pytest.fixture(scope="session")
def predicted(trained: Trained) -> Path:
    """The test images predicted by ``nnUNetv2_predict`` with the CPS model, through spawned workers."""
    output = trained.workspace.root / "predicted"
    model = ("-d", trained.workspace.number, "-c", TINY, "-p", PLANS, "-tr", TRAINER, "-f", 0)
    trained.workspace.run(*trained.workspace.predict(output, *model, "-npp", 1, "-nps", 1), real_spawn=True)
    return output
