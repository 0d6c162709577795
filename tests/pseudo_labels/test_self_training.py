"""Cycles of commands: which are left to do, in which order, and what ends them; the commands are tested elsewhere."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from data.tiny_dataset import make_plans, set_environment

from nnunet_ext.evaluation.command import CommandError
from nnunet_ext.pseudo_labels import self_training
from nnunet_ext.pseudo_labels.cycles import Machine, Scheme, Step
from nnunet_ext.pseudo_labels.dataset import Roots
from nnunet_ext.pseudo_labels.members import sha256_of
from nnunet_ext.pseudo_labels.self_training import SelfTraining, choose_outputs

NAME, PLANS = "Dataset777_Tiny", "nnUNetPlans"
SEMI, STOCK = "nnUNetTrainerSemi_2epochs", "nnUNetTrainer_5epochs"
SCHEME = Scheme(NAME, "3d_fullres", SEMI, SEMI, PLANS, (0, 1), selection=("--top", "0.5"))
DICE = {0: 0.5, 1: 0.6, 2: 0.55, 3: 0.5}  # by cycle


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    dataset = set_environment(monkeypatch, tmp_path)
    dataset.write_dataset_json()
    dataset.write_plans(make_plans())
    dataset.write_splits({"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]})
    return dataset


def make(tiny, scheme=SCHEME, number=2, first=None, name="self_train", machine=None):
    roots = Roots(tiny.root / "raw", tiny.root / "preprocessed")
    return SelfTraining(scheme, number, roots, tiny.results, first, machine or Machine("cpu", 1), name)


class Commands:
    """Stands for nnU-Net's commands: makes the files that tell that a step is done.

    Attributes:
        called: Words of each command that ran.
        fails: Word -> exit with this message where a command holds the word.
    """

    def __init__(self, tiny):
        self.tiny, self.called, self.fails = tiny, [], {}

    def __call__(self, words, log, on_line, on_tick):
        self.called.append(words)
        on_line("Epoch 0")
        on_tick(0)
        for word, reason in self.fails.items():
            if word in words:
                raise CommandError(reason)
        getattr(self, {"nnUNetv2_ext": words[1]}.get(words[0], words[0].removeprefix("nnUNetv2_")))(words)

    def folder(self, number, kind):
        (found,) = (self.tiny.root / kind).glob(f"Dataset{int(number):03d}_*")
        return found

    def pseudo_label(self, words):
        members = [{"sha256": sha256_of(Path(w) / "checkpoint_final.pth")} for w in words if "/fold_" in w]
        raw = self.tiny.root / "raw" / words[words.index("-o") + 1]
        raw.mkdir()
        content = json.loads((self.tiny.raw / "dataset.json").read_text())
        file = self.tiny.raw / "scan_0000.nii.gz"
        file.touch()
        images = {"images": [str(file)]}
        content |= {"dataset": {"x": images | {"label": str(file)}}, "unlabeled": {"scan": images}}
        (raw / "dataset.json").write_text(json.dumps(content))
        record = {"cycle": 1, "labels": {"x": {}, "y": {}}, "members": members}
        (raw / "pseudo_labels.json").write_text(json.dumps(record))
        (self.tiny.root / "preprocessed" / raw.name).mkdir()

    def extract_fingerprint(self, words):
        (self.folder(words[2], "preprocessed") / "dataset_fingerprint.json").write_text('{"spacings": []}')

    def move_plans_between_datasets(self, words):
        plans = json.loads((self.tiny.preprocessed / f"{PLANS}.json").read_text())
        target = self.folder(words[4], "preprocessed")
        (target / f"{PLANS}.json").write_text(json.dumps(plans | {"dataset_name": target.name}))

    def preprocess(self, words):
        folder = self.folder(words[2], "preprocessed") / f"{PLANS}_3d_fullres"
        folder.mkdir()
        (folder / "x.npz").touch()

    def preprocess_unlabeled(self, words):
        folder = self.folder(words[words.index("-d") + 1], "preprocessed") / f"{PLANS}_3d_fullres_unlabeled"
        folder.mkdir()
        (folder / "scan.json").write_text("{}")

    def train(self, words):
        dataset, trainer = words[1], words[words.index("-tr") + 1]
        name = next((self.tiny.root / "raw").glob(f"Dataset{int(dataset):03d}_*")).name
        model = self.tiny.results / name / f"{trainer}__{PLANS}__3d_fullres"
        fold = model / f"fold_{words[3]}"
        (fold / "validation").mkdir(parents=True, exist_ok=True)
        (model / "plans.json").write_text((self.tiny.preprocessed / f"{PLANS}.json").read_text())
        (fold / "checkpoint_final.pth").write_text(f"{name} {fold}")
        value = DICE[max(0, int(dataset) - 777)]
        case = {"prediction_file": f"{'ab'[int(words[3])]}.nii.gz", "metrics": {"1": {"Dice": value}}}
        (fold / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": [case]}))


@pytest.fixture
def commands(tiny, monkeypatch):
    stand_in = Commands(tiny)
    monkeypatch.setattr(self_training, "run_command", stand_in)
    monkeypatch.setattr(self_training, "draw_cycles", lambda *_: None)
    return stand_in


def run(tiny, *arguments, patience=1, **keywords):
    return make(tiny, *arguments, **keywords).run(patience, progress_bar=False)


def first_words(commands):
    return [" ".join(words[: 2 if words[0] == "nnUNetv2_ext" else 1]).removeprefix("nnUNetv2_") for words in commands]


PREPARING = ["extract_fingerprint", "move_plans_between_datasets", "preprocess", "ext preprocess_unlabeled"]
CYCLE = ["ext pseudo_label", *PREPARING]


def test_all_commands_in_their_order(tiny, commands):
    result = run(tiny, patience=2)
    assert first_words(commands.called) == ["train"] * 2 + (CYCLE + ["train"] * 2) * 2
    assert [scores.dice for scores in result.cycles] == [0.5, 0.6, 0.55]
    assert (result.best.cycle, result.best.accepted) == (1, 2)
    label = commands.called[2]
    before = tiny.results / NAME / f"{SEMI}__{PLANS}__3d_fullres"
    assert label[2:8] == ["-d", "777", "-m", str(before / "fold_0"), str(before / "fold_1"), "-o"]
    assert label[8:] == ["Dataset778_Tiny_pseudo", "--top", "0.5", "-device", "cpu"]
    assert str(tiny.results / "Dataset778_Tiny_pseudo") in commands.called[9][5]  # labelled by the cycle before
    assert "all 2 cycle(s) are done" in result.ended
    record = json.loads((result.folder / "self_train.json").read_text())
    assert record["datasets"] == ["Dataset778_Tiny_pseudo", "Dataset779_Tiny_pseudo"]


def test_nothing_is_done_twice(tiny, commands):
    run(tiny)
    commands.called.clear()
    assert run(tiny).best.cycle == 1
    assert not commands.called
    assert not make(tiny).commands()


def test_no_cycle_after_one_without_a_gain(tiny, commands):
    result = run(tiny, number=3)
    assert [scores.cycle for scores in result.cycles] == [0, 1, 2]
    assert "gained nothing (--patience 1)" in result.ended
    assert [scores.cycle for scores in run(tiny, number=3, patience=2).cycles] == [0, 1, 2, 3]  # the same, gone on with


@pytest.mark.parametrize("word", ["pseudo_label", "nnUNetv2_extract_fingerprint", "nnUNetv2_preprocess", "778"])
def test_a_run_that_was_stopped_goes_on(tiny, commands, word):
    commands.fails[word] = "killed"
    with pytest.raises(CommandError, match="killed"):
        run(tiny, number=1)
    stopped = commands.called[-1]
    commands.fails.clear()
    commands.called.clear()
    assert run(tiny, number=1).best.cycle == 1
    assert commands.called[0] == stopped
    assert first_words(commands.called).count("train") == 2  # those of cycle 1 alone


def test_a_training_that_was_begun_is_continued(tiny, commands):
    fold = tiny.results / NAME / f"{SEMI}__{PLANS}__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)

    def left():
        return shlex.split(make(tiny).commands()[0][1])

    assert left()[-2:] == ["-device", "cpu"]
    (fold / "checkpoint_latest.pth").touch()
    assert left()[-1] == "--c"
    (fold / "checkpoint_final.pth").touch()
    assert left()[-1] == "--val"
    (fold / "validation").mkdir()
    (fold / "validation" / "summary.json").write_text('{"metric_per')  # of a killed validation
    assert left()[-1] == "--val"


def test_a_warm_start_is_for_trainings_that_begin(tiny, commands):
    scheme = replace(SCHEME, warm_start=True)
    run(tiny, scheme, 1)
    trainings = [words for words in commands.called if words[0] == "nnUNetv2_train"]
    assert "-pretrained_weights" not in trainings[0]
    weights = tiny.results / NAME / f"{SEMI}__{PLANS}__3d_fullres" / "fold_1" / "checkpoint_final.pth"
    assert trainings[3][-2:] == ["-pretrained_weights", str(weights)]


def test_another_student(tiny, commands):
    result = run(tiny, replace(SCHEME, student=STOCK, others=("/models/other",)), 1)
    assert "ext preprocess_unlabeled" not in first_words(commands.called)
    assert "/models/other" in commands.called[2]
    assert [scores.model.name for scores in result.cycles] == [f"{t}__{PLANS}__3d_fullres" for t in (SEMI, STOCK)]


def test_scans_that_fail_do_not_end_it(tiny, commands):
    """The exit status of pseudo_label is 1, and the dataset is there."""
    ordinary = commands.pseudo_label

    def with_failures(words):
        ordinary(words)
        raise CommandError("one scan is left out")

    commands.pseudo_label = with_failures
    assert len(run(tiny, number=1).cycles) == 2


def test_a_command_that_makes_nothing(tiny, commands):
    commands.extract_fingerprint = lambda words: None
    with pytest.raises(CommandError, match=r"nnUNetv2_extract_fingerprint -d 778 .* ended without .*fingerprint\.log"):
        run(tiny, number=1)


def test_networks_that_were_trained_anew(tiny, commands):
    run(tiny, number=1)
    model = tiny.results / NAME / f"{SEMI}__{PLANS}__3d_fullres"
    (model / "fold_1" / "checkpoint_final.pth").write_text("another one")
    with pytest.raises(ValueError, match=r"Dataset778_Tiny_pseudo was labelled by others than .*fold_1.*Remove D"):
        run(tiny, number=1)


def test_plans_that_changed(tiny, commands):
    run(tiny, number=1)
    tiny.write_plans(make_plans(batch_size=7))
    with pytest.raises(ValueError, match=r"Dataset778_Tiny_pseudo/nnUNetPlans\.json differs from the plans of D"):
        run(tiny, number=1)


def test_no_scan_is_left_for_a_semi_supervised_student(tiny, commands):
    ordinary = commands.pseudo_label

    def all_accepted(words):
        ordinary(words)
        file = commands.folder(778, "raw") / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"unlabeled": {}}))

    commands.pseudo_label = all_accepted
    with pytest.raises(ValueError, match="all scans of Dataset778_Tiny_pseudo got labels, .*--student nnUNetTrainer"):
        run(tiny, number=1)


def test_another_scheme_in_the_same_folder(tiny, commands):
    run(tiny, number=1)
    with pytest.raises(ValueError, match=r"whose selection is --top 0\.5, now it is none: .* --name NAME"):
        make(tiny, replace(SCHEME, selection=()))
    make(tiny, replace(SCHEME, selection=()), name="other")
    make(tiny, machine=Machine("cuda", 9))  # where it runs makes no difference


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plans": "No"}, r"No\.json is missing; run nnUNetv2_plan_and_preprocess -d 777"),
        ({"configuration": "4d"}, "-c is 4d, expected one of the plans nnUNetPlans: 2d, 3d_fullres"),
        ({"folds": (0, 2)}, "-f is 2, expected 0 to 1"),
        ({"trainer": "nnUNetTrainerNo"}, "no trainer nnUNetTrainerNo; see nnUNetv2_ext trainers"),
        ({"student": "nnUNetTrainerCWCD_Semi"}, "is not in canonical order"),
        ({"trainer": STOCK, "folds": (0,)}, "one network cannot agree with itself; .*-f 0 1"),
        ({"student": STOCK, "folds": (0,)}, "one network cannot agree with itself"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(tiny, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(tiny, replace(SCHEME, **changes))


def test_one_fold_is_enough_with_two_networks_or_another_model(tiny):
    make(tiny, replace(SCHEME, folds=(0,)))
    make(tiny, replace(SCHEME, folds=(0,), trainer=STOCK, student=STOCK, others=("/models/other",)))
    make(tiny, replace(SCHEME, folds=(0,), student=STOCK), number=1)  # which labels nothing


def test_a_cascade(tiny):
    plans = make_plans(previous_stage="2d")
    tiny.write_plans(plans)
    with pytest.raises(ValueError, match="which needs predictions of 2d; take 3d_fullres"):
        make(tiny)


class TestOutputs:
    def choose(self, tiny, number, first=None, before=()):
        return choose_outputs(NAME, number, first, before, Roots(tiny.root / "raw", tiny.root / "preprocessed"))

    def test_the_first_free_ones_in_a_row(self, tiny):
        (tiny.root / "raw" / "Dataset779_Other").mkdir()
        assert self.choose(tiny, 2) == ("Dataset780_Tiny_pseudo", "Dataset781_Tiny_pseudo")

    def test_a_number_of_the_users(self, tiny):
        assert self.choose(tiny, 1, 914) == ("Dataset914_Tiny_pseudo",)
        (tiny.root / "raw" / "Dataset915_Other").mkdir()
        with pytest.raises(FileExistsError, match="number 915"):
            self.choose(tiny, 2, 914)

    def test_more_cycles_than_before(self, tiny):
        (tiny.root / "raw" / "Dataset850_Tiny_pseudo").mkdir()
        before = ["Dataset850_Tiny_pseudo"]
        assert self.choose(tiny, 2, None, before) == ("Dataset850_Tiny_pseudo", "Dataset851_Tiny_pseudo")
        assert self.choose(tiny, 1, 850, before) == ("Dataset850_Tiny_pseudo",)
        with pytest.raises(ValueError, match="-o is 900, but cycle 1 of this self-training is Dataset850"):
            self.choose(tiny, 2, 900, before)

    def test_no_numbers_are_left(self, tiny):
        with pytest.raises(ValueError, match="no 3 free dataset numbers"):
            self.choose(tiny, 3, 998)


def test_a_step_has_a_log_of_its_own(tiny):
    steps: list[Step] = [step for cycle in range(3) for step in make(tiny).cycles.steps(cycle)]
    assert len({step.name for step in steps}) == len(steps)
    assert steps[0].name == "cycle0_train_fold_0"
