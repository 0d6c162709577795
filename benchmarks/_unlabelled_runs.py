"""The list of trainings of unlabelled.py: tasks, runs, and what a step of each costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import accuracy

PLANS, FULL, SMALL = "SemiSupervisedPlans", "3d_fullres", "3d_small"
EPOCHS, ITERATIONS = 20, 250
EQUAL_COST = 47  # epochs of supervised training with as many passes as 20 of a mean teacher: 1 + 1 + 1/3 steps
COST_OF_SEMI = 33  # epochs that cost as much as 20 of Semi: 1.65 steps a step
LONG = 60
# Where the usual length is too short for a ceiling: after 5,000 steps on the labels of all phantoms no gallbladder is
# found yet, on those of four it is.
LONG_CEILINGS = {("phantoms4", "_long")}
TIMED_SECONDS = 600
# To be set by what is measured: what is trained on the other tasks and for longer, and what has cheaper variants.
TWO_BEST = ("Semi", "MeanTeacher_CutMix_Confidence")
BEST = TWO_BEST[0]
SEMI_PARTS = "MeanTeacher_CutMix_Confidence"  # of Semi, which has unlabelled patches in every second step
SEMI, SUPERVISED = "nnUNetTrainerSemi", f"nnUNetTrainer_{EPOCHS}epochs"  # trained for a time instead of steps
VARIANTS = {
    "every1": {"unlabeled_every": 1},
    "lambda1": {"unlabeled_weight": 1.0},
    "geometry": {"second_geometry": True},
}
# Self-training: who labels, whose weights the student begins with, and options of nnUNetv2_ext pseudo_label.
LABELLED_BY, BEGINS_WITH = ("supervised", "Semi"), "Semi"
# Scans that get true labels beside the few: the first of the list "annotate these first" of that self-training, or
# random ones, of which there are several draws.
ANNOTATED, DRAWS, LISTED_BY = 4, 5, "selftrain"
CONTROLS = (
    "supervised",
    "supervised_strong",
    "supervised_batch4",
    "supervised_cost_of_semi",
    "supervised_equal_cost",
)


@dataclass(frozen=True)
class UnlabelledTask(accuracy.Task):
    """What is trained on, with few labels.

    Attributes:
        few: Labelled scans.
        hidden: Scans that are used without labels.
        tests: Test cases.
        smallest: Class with the fewest voxels in the test cases.
        ceiling: Name of the dataset with the labels of all scans, None where there is none.
        ceiling_of: Task whose ceiling has the same scans and test cases, where it is not trained anew.
        seconds_a_step: Of supervised training on one core that does nothing else, roughly, until some are recorded.
        configuration: What is trained: on a GPU the plan's own.
    """

    few: int = 0
    hidden: int = 0
    tests: int = 40
    smallest: str = ""
    ceiling: str | None = None
    ceiling_of: str | None = None
    seconds_a_step: float = 0.2
    configuration: str = SMALL


_HIPPOCAMPUS = {"planner": "SemiSupervisedPlanner", "plans": PLANS, "classes": {1: "anterior", 2: "posterior"}}
TASKS = {
    "hippocampus5": UnlabelledTask(
        "Dataset954_HippocampusFive",
        **_HIPPOCAMPUS,
        tolerance_mm=1.0,
        few=5,
        hidden=155,
        smallest="posterior",
        ceiling="Dataset955_HippocampusAll",
        seconds_a_step=0.35,
    ),
    "phantoms4": UnlabelledTask(
        "Dataset956_PhantomsFour",
        "SemiSupervisedPlanner",
        PLANS,
        accuracy.ORGANS,
        tolerance_mm=5.0,
        patch=[24, 32, 32],
        mirroring=False,
        few=4,
        hidden=36,
        smallest="gallbladder",
        ceiling="Dataset957_PhantomsAll",
        seconds_a_step=0.11,
    ),
    "hippocampus10": UnlabelledTask(
        "Dataset958_HippocampusTen",
        **_HIPPOCAMPUS,
        tolerance_mm=1.0,
        few=10,
        hidden=150,
        smallest="posterior",
        ceiling_of="hippocampus5",
        seconds_a_step=0.35,
    ),
    "multiorgan4": UnlabelledTask(
        "Dataset959_AbdomenFour",
        "SemiSupervisedPlanner",
        PLANS,
        {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"},
        tolerance_mm=2.5,
        patch=[16, 80, 80],
        mirroring=False,
        few=4,
        hidden=10,
        tests=6,
        smallest="right kidney",
        seconds_a_step=0.35,
    ),
    "atrium8": UnlabelledTask(
        "Dataset960_AtriumEight",
        "SemiSupervisedPlanner",
        PLANS,
        {1: "atrium"},
        tolerance_mm=1.25,
        few=8,
        hidden=72,
        tests=20,
        smallest="atrium",
        configuration=FULL,
    ),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: Of the run and its record: task, method and seed.
        parts: Of the trainer's name, without the length.
        task: What is trained on.
        seed: Of everything that is drawn.
        epochs: Length, of 250 iterations each.
        all_labels: Train with the labels of all scans.
        batch: Labelled patches a step, None for that of the configuration.
        strong: Augment labelled patches as a student's strong views.
        attributes: Settings of the trainer that differ.
        bf16: Train in bfloat16.
        device: Where.
        seconds: Length instead of steps: as many of them as fit are trained in 20 epochs.
        trainer_name: Of the trainer, where parts do not make it.
        labelled_by: Methods of the same task and seed whose networks label the scans without labels first.
        begins_with: Method whose weights the training begins with.
        accept: Options of ``nnUNetv2_ext pseudo_label``: which of these labels are trained with.
        annotated: Which scans get true labels: ``"listed"``, or ``"random"`` with the number of the draw.
    """

    name: str
    parts: str
    task: str
    seed: int = 0
    epochs: int = EPOCHS
    all_labels: bool = False
    batch: int | None = None
    strong: bool = False
    attributes: dict = field(default_factory=dict)
    bf16: bool = True
    device: str = "cpu"
    seconds: float | None = None
    trainer_name: str = ""
    labelled_by: tuple[str, ...] = ()
    begins_with: str = ""
    accept: tuple[str, ...] = ()
    annotated: str = ""

    @property
    def trainer(self) -> str:
        """The trainer's name."""
        return self.trainer_name or f"nnUNetTrainer{self.parts}_{self.epochs}epochs_{ITERATIONS}iterations"

    @property
    def method(self) -> str:
        """What it is called among the runs of its task and seed."""
        return self.name.removeprefix(f"{self.task}_").removesuffix(f"_seed{self.seed}")

    @property
    def baseline(self) -> str:
        """The supervised training of the same length, as a method."""
        return f"supervised{self._length}"

    @property
    def ceiling(self) -> tuple[str, str] | None:
        """Task and method of the training with all labels that has the same length, None where there is none."""
        task = TASKS[self.task].ceiling_of or self.task
        known = TASKS[task].ceiling and (not self._length or (task, self._length) in LONG_CEILINGS)
        return (task, f"ceiling{self._length}") if known else None

    @property
    def _length(self) -> str:
        if self.seconds is not None:
            return f"_{self.seconds:g}s"
        return "_long" if self.epochs == LONG else ""

    @property
    def is_control(self) -> bool:
        """Whether it learns from true labels of the few scans alone."""
        return not self.parts and not self.all_labels and not self.labelled_by and not self.annotated

    @property
    def dataset(self) -> str:
        """Name of the dataset that is trained with."""
        task = TASKS[self.task]
        if self.annotated:
            number = 990 + [run.name for run in RUNS if run.annotated].index(self.name)
        elif self.labelled_by:
            number = 970 + [run.name for run in RUNS if run.labelled_by].index(self.name)
        else:
            return str(task.ceiling if self.all_labels else task.dataset)
        return f"Dataset{number}_{task.dataset.partition('_')[2]}"

    def other(self, method: str) -> Run:
        """Return the run of another method with this task and seed."""
        name = f"{self.task}_{method}_seed{self.seed}"
        return next(run for run in RUNS if run.name == name)

    def timed(self, seconds: float) -> Run:
        """Return the same training for a time instead of steps."""
        method = self.method.removesuffix(self._length)
        return replace(self, name=f"{self.task}_{method}_{seconds:g}s_seed{self.seed}", seconds=seconds)


def _methods(task: str) -> list[Run]:
    """Return what is trained on a task with one seed, named by the method alone."""
    if task in ("hippocampus10", "multiorgan4"):
        return [Run("supervised", "", task), *(Run(parts, parts, task) for parts in TWO_BEST)]
    teachers = ["MeanTeacher", "MeanTeacher_CutMix", "MeanTeacher_CutMix_Confidence"]
    if task == "phantoms4":
        teachers.append("MeanTeacher_CutMix_Confidence_ClassBalance")
    return [
        Run("supervised", "", task),
        Run("ceiling", "", task, all_labels=True),
        Run("supervised_batch4", "", task, batch=4),
        Run("supervised_strong", "", task, strong=True),
        Run("supervised_equal_cost", "", task, epochs=EQUAL_COST),
        Run("supervised_cost_of_semi", "", task, epochs=COST_OF_SEMI),
        *(Run(parts, parts, task) for parts in ("CPS", "CPS_CutMix", *teachers, "MeanTeacher_BCP", "Semi")),
        *(Run(f"{BEST}_{name}", BEST, task, attributes=changed) for name, changed in VARIANTS.items()),
        *_self_trainings(task),
    ]


def _self_trainings(task: str) -> list[Run]:
    """Return trainings with the labels that others made: one cycle, all scans in part, another student, two cycles."""
    first = Run("selftrain", "", task, labelled_by=LABELLED_BY, begins_with=BEGINS_WITH)
    return [
        first,
        replace(first, name="selftrain_partial", accept=("--partial", "--min_probability", "0.7")),
        replace(first, name="selftrain_Semi", parts="Semi"),
        replace(first, name="selftrain_twice", labelled_by=("selftrain", "Semi"), begins_with="selftrain"),
    ]


def _runs() -> list[Run]:
    on_steps = [task for task in TASKS if task != "atrium8"]
    runs = [replace(run, seed=seed) for seed in (0, 1) for task in on_steps for run in _methods(task)]
    for task in ("hippocampus5", "phantoms4"):
        runs += [Run(f"{parts or 'supervised'}_long", parts, task, epochs=LONG) for parts in ("", BEST)]
        if (task, "_long") in LONG_CEILINGS:
            runs.append(Run("ceiling_long", "", task, epochs=LONG, all_labels=True))
    for which in ("listed", *(f"random{draw}" for draw in range(DRAWS))):
        runs.append(Run(f"annotate_{which}", "", "phantoms4", annotated=which, begins_with="supervised"))
    runs = [replace(run, name=f"{run.task}_{run.name}_seed{run.seed}") for run in runs]
    for name, parts, trainer in (("supervised", "", SUPERVISED), ("semi", "Semi", SEMI)):
        run = Run(f"atrium8_{name}_seed0", parts, "atrium8", device="cuda", trainer_name=trainer)
        runs.append(run.timed(TIMED_SECONDS))
    return runs


RUNS = _runs()
_MEASURED = "measured: teacher_step.py --small --threads 1 --cpu-time"
# Of a trainer's parts: time of a step in steps of supervised training, and where that comes from.
STEP_COST = {
    "": (1.0, "itself"),
    "CPS": (4.01, _MEASURED),
    "CPS_CutMix": (4.49, _MEASURED),
    "MeanTeacher": (2.34, _MEASURED),
    "MeanTeacher_CutMix": (2.34, "as with Confidence"),
    "MeanTeacher_CutMix_Confidence": (2.34, _MEASURED),
    "MeanTeacher_CutMix_Confidence_ClassBalance": (2.34, "as without ClassBalance"),
    "Semi": (1.65, _MEASURED),
    "MeanTeacher_BCP": (2.34, "as with CutMix and Confidence: the same passes"),
}


def step_cost(run: Run) -> tuple[float, str]:
    """Return the time of a step of a run, in steps of supervised training, and where that comes from."""
    factor, source = STEP_COST.get(run.parts, (float("nan"), "not known"))
    if run.batch is not None:
        return factor * run.batch / 2, "patches counted"
    if run.attributes.get("unlabeled_every") == 1:
        return STEP_COST[SEMI_PARTS][0], "as its parts"
    return factor, source


def cost(run: Run) -> float:
    """Return the time of a run with those that it builds on, in supervised trainings of the usual length."""
    trained = {other.name: other for other in _labellers(run)}
    return sum(step_cost(one)[0] * one.epochs / EPOCHS for one in (run, *trained.values()))


def _labellers(run: Run) -> list[Run]:
    """Return all trainings that a run builds on."""
    direct = [run.other(method) for method in {*run.labelled_by, *filter(None, [run.begins_with])}]
    return direct + [earlier for other in direct for earlier in _labellers(other)]
