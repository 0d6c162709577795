"""Cycles of commands: which are left to do, in which order, and what ends them; the commands are tested elsewhere."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from data.tiny_dataset import LABELS, make_plans, set_environment
from pseudo_labels.panels import make_folds

from nnunet_ext import files
from nnunet_ext.evaluation.command import CommandError
from nnunet_ext.model_sharing.folders import sha256_of
from nnunet_ext.pseudo_labels import self_training
from nnunet_ext.pseudo_labels.cycle_checks import warnings_of
from nnunet_ext.pseudo_labels.cycles import Machine, Scheme, Step
from nnunet_ext.pseudo_labels.dataset import Roots
from nnunet_ext.pseudo_labels.members import checkpoint_files
from nnunet_ext.pseudo_labels.run import NONE_ACCEPTED, Options, accepted_by
from nnunet_ext.pseudo_labels.selection import Rule
from nnunet_ext.pseudo_labels.self_training import SelfTraining

NAME, PLANS = "Dataset777_Tiny", "nnUNetPlans"
SEMI, STOCK = "nnUNetTrainerSemi_2epochs", "nnUNetTrainer_5epochs"
ACCEPTED = accepted_by(Options(rule=Rule(top=0.5)))
SCHEME = Scheme(NAME, "3d_fullres", SEMI, SEMI, PLANS, (0, 1), selection=("--top", "0.5"), accepted_by=ACCEPTED)
SPLITS = {"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}
DICE = {0: 0.5, 1: 0.6, 2: 0.55, 3: 0.5}  # by cycle


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    dataset = set_environment(monkeypatch, tmp_path)
    dataset.write_dataset_json(channel_names={"0": "CT"})
    dataset.write_plans(make_plans())
    dataset.write_splits(*SPLITS)
    for number, name in enumerate("ab"):
        dataset.add_labelled(name, number)
    dataset.add_unlabeled("scan", 9)
    return dataset


def make(tiny, scheme=SCHEME, number=2, first=None, name="self_train", machine=None):
    roots = Roots(tiny.root / "raw", tiny.root / "preprocessed")
    return SelfTraining(scheme, number, roots, tiny.results, first, machine or Machine("cpu", 1), name)


class Commands:
    """Stands for nnU-Net's commands: makes the files that tell that a step is done.

    Attributes:
        called: Words of each command that ran.
        fails: Word -> exit with this status where a command holds the word.
    """

    def __init__(self, tiny):
        self.tiny, self.called, self.fails = tiny, [], {}

    def __call__(self, words, log, environment, on_line, on_tick, on_start):
        self.called.append(words)
        on_start(os.getpid())
        on_line("Epoch 0")
        on_tick(0)
        for word, status in self.fails.items():
            if word in words:
                raise CommandError("killed", status)
        getattr(self, {"nnUNetv2_ext": words[1]}.get(words[0], words[0].removeprefix("nnUNetv2_")))(words)

    def folder(self, number, kind):
        (found,) = (self.tiny.root / kind).glob(f"Dataset{int(number):03d}_*")
        return found

    def pseudo_label(self, words):
        members = [{"sha256": sha256_of(file)} for w in words if "/" in w for file in checkpoint_files(Path(w))]
        raw = self.tiny.root / "raw" / words[words.index("-o") + 1]
        raw.mkdir()
        content = json.loads((self.tiny.raw / "dataset.json").read_text())
        images = {"images": [str(self.tiny.raw / "imagesUnlabeled" / "scan_0000.nii.gz")]}
        label = str(self.tiny.raw / "labelsTr" / "a.nii.gz")
        content |= {"dataset": {"x": images | {"label": label}}, "unlabeled": {"scan": images}}
        (raw / "dataset.json").write_text(json.dumps(content))
        record = {"cycle": 1, "labels": {"x": {}, "y": {}}, "members": members, "accepted_by": ACCEPTED}
        (raw / "pseudo_labels.json").write_text(json.dumps(record | {"source_dataset": NAME}))
        (self.tiny.root / "preprocessed" / raw.name).mkdir()

    def extract_fingerprint(self, words):
        (self.folder(words[2], "preprocessed") / "dataset_fingerprint.json").write_text('{"spacings": []}')

    def move_plans_between_datasets(self, words):
        plans = json.loads((self.tiny.preprocessed / f"{PLANS}.json").read_text())
        target = self.folder(words[4], "preprocessed")
        (target / f"{PLANS}.json").write_text(json.dumps(plans | {"dataset_name": target.name}))

    def preprocess(self, words):
        folder = self.folder(words[2], "preprocessed")
        for file in (folder / f"{PLANS}_3d_fullres" / "x.npz", folder / "gt_segmentations" / "x.nii.gz"):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"content")

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
    commands.fails[word] = 1
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
    other = make_folds(tiny.root / "other", labels=LABELS).folder
    result = run(tiny, replace(SCHEME, student=STOCK, others=(str(other),)), 1)
    assert "ext preprocess_unlabeled" not in first_words(commands.called)
    assert str(other) in commands.called[2]
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
    with pytest.raises(ValueError, match=r"not cycle 1 of this self-training: other networks labelled it than those"):
        run(tiny, number=1)


def test_plans_that_changed_before_a_cycle_is_trained(tiny, commands):
    commands.fails["778"] = 1
    with pytest.raises(CommandError):
        run(tiny, number=1)
    commands.fails.clear()
    commands.extract_fingerprint(["-", "-", "778"])
    commands.move_plans_between_datasets(["-", "-", "-", "-", "778"])
    file = commands.folder(778, "preprocessed") / f"{PLANS}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"transpose_forward": [2, 1, 0]}))
    with pytest.raises(ValueError, match=r"Dataset778_Tiny_pseudo/nnUNetPlans\.json differs from the plans of D"):
        run(tiny, number=1)


def test_plans_that_changed_after_the_first_training(tiny, commands):
    run(tiny, number=1)
    tiny.write_plans(make_plans(patch_size=[32, 16, 16]))
    with pytest.raises(
        ValueError, match=r"was trained with other plans than nnUNetPlans are now \(patch_size differs\)"
    ):
        run(tiny, number=1)


def test_splits_that_changed(tiny, commands):
    run(tiny, number=1)
    tiny.write_splits(*reversed(SPLITS))
    with pytest.raises(ValueError, match=r"fold_0.*is not of the validation cases of splits_final\.json"):
        run(tiny, number=1)


def test_preprocessed_data_that_was_removed_is_made_again_with_its_splits(tiny, commands):
    commands.fails["nnUNetv2_extract_fingerprint"] = 1
    with pytest.raises(CommandError):
        run(tiny, number=1)
    commands.fails.clear()
    raw = commands.folder(778, "raw")
    (raw / "splits_final.json").write_text(json.dumps(SPLITS))
    shutil.rmtree(commands.folder(778, "preprocessed"))
    run(tiny, number=1)
    preprocessed = commands.folder(778, "preprocessed")
    for name in ("splits_final.json", "dataset.json"):
        assert json.loads((preprocessed / name).read_text()) == json.loads((raw / name).read_text())


def test_splits_that_changed_before_a_cycle_is_trained(tiny, commands):
    commands.fails["nnUNetv2_extract_fingerprint"] = 1
    with pytest.raises(CommandError):
        run(tiny, number=1)
    commands.fails.clear()
    commands.called.clear()
    (commands.folder(778, "preprocessed") / "splits_final.json").write_text(json.dumps(SPLITS[::-1]))
    with pytest.raises(ValueError, match=r"fold 0, has other validation cases than Dataset777_Tiny"):
        run(tiny, number=1)
    assert not commands.called


def test_the_number_of_labels_outlives_data_and_a_failed_run(tiny, commands):
    run(tiny, number=1)
    shutil.rmtree(commands.folder(778, "raw"))
    summary = tiny.results / "Dataset778_Tiny_pseudo" / f"{SEMI}__{PLANS}__3d_fullres/fold_0/validation/summary.json"
    content = summary.read_text()
    summary.write_text(json.dumps({"metric_per_case": [{"prediction_file": "z.nii.gz", "metrics": {"1": {}}}]}))
    with pytest.raises(ValueError, match="is not of the validation cases"):
        run(tiny, number=1)
    summary.write_text(content)
    assert [scores.accepted for scores in run(tiny, number=1).cycles] == [0, 2]


def test_no_scan_is_accepted_in_a_later_cycle(tiny, commands):
    commands.fails["Dataset779_Tiny_pseudo"] = NONE_ACCEPTED
    result = run(tiny, patience=2)
    assert result.ended.startswith("no scan is accepted in cycle 2. killed")
    assert (result.best.cycle, result.complete) == (1, True)


def test_no_scan_is_accepted_at_all(tiny, commands):
    commands.fails["pseudo_label"] = NONE_ACCEPTED
    result = run(tiny)
    assert (result.best.cycle, result.complete) == (0, False)


def test_a_finished_cycle_needs_no_data(tiny, commands):
    run(tiny, number=1)
    commands.called.clear()
    shutil.rmtree(commands.folder(778, "preprocessed"))
    assert not make(tiny, number=1).commands()
    shutil.rmtree(commands.folder(778, "raw"))
    result = run(tiny, number=1)
    assert not commands.called
    assert result.cycles[1].accepted == 2


def test_a_killed_preprocessing_is_not_taken_for_a_finished_one(tiny, commands):
    """nnU-Net copies the label maps that its validation needs at the very end."""
    commands.fails["778"] = 1
    with pytest.raises(CommandError):
        run(tiny, number=1)
    training = make(tiny, number=1)
    commands.preprocess(["-", "-", "778"])
    assert training.cycles._is_preprocessed(1)
    (commands.folder(778, "preprocessed") / "gt_segmentations" / "x.nii.gz").write_bytes(b"")
    assert not training.cycles._is_preprocessed(1)


def test_a_rerun_with_less_patience_forgets_nothing(tiny, commands):
    DICE[3] = 0.7
    try:
        assert run(tiny, number=3, patience=2).best.cycle == 3
        assert run(tiny, number=3, patience=1).best.cycle == 3
    finally:
        DICE[3] = 0.5


def test_a_failing_rerun_keeps_the_record(tiny, commands):
    folder = run(tiny, number=1).folder
    before = json.loads((folder / "self_train.json").read_text())
    commands.fails["nnUNetv2_train"] = 1
    shutil.rmtree(tiny.results / "Dataset778_Tiny_pseudo")
    with pytest.raises(CommandError):
        run(tiny, number=1)
    assert json.loads((folder / "self_train.json").read_text())["datasets"] == before["datasets"]


def test_what_other_machines_made_of_the_printed_commands(tiny, commands):
    printed = [shlex.split(command) for _, command in make(tiny, number=1).commands()]
    for words in printed:
        commands(words, None, None, *[lambda *_: None] * 3)
    commands.called.clear()
    assert len(run(tiny, number=1).cycles) == 2
    assert not commands.called


def test_no_commands_after_a_cycle_without_a_gain(tiny, commands):
    run(tiny, number=3)
    assert not make(tiny, number=3).commands(patience=1)
    assert make(tiny, number=3).commands(patience=2)


def test_labels_that_were_accepted_otherwise(tiny, commands):
    run(tiny, number=1)
    file = commands.folder(778, "raw") / "pseudo_labels.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"accepted_by": ACCEPTED | {"top": 0.25}}))
    with pytest.raises(ValueError, match=r"its labels were accepted with top 0\.25, not 0\.5\. Remove .*--name NAME"):
        run(tiny, number=1)
    file.write_text(json.dumps(record | {"source_dataset": "Dataset001_Else"}))
    with pytest.raises(ValueError, match=r"it was made of Dataset001_Else, not of Dataset777_Tiny"):
        run(tiny, number=1)


def test_a_command_that_outlived_its_caller(tiny, commands):
    training = make(tiny)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        note = training.folder / "logs" / "cycle0_train_fold_0.running.json"
        self_training._note_running(note, child.pid)
        content = json.loads(note.read_text())
        note.write_text(json.dumps(content | {"created": content["created"] + 1}))  # the clock was set
        with pytest.raises(files.BusyError, match=rf"process {child.pid} of an earlier call .*cycle0_train_fold_0"):
            training.run()
    finally:
        child.kill()
        child.wait()
    assert training.run(progress_bar=False).cycles


def test_a_fold_that_another_self_training_trains(tiny, commands):
    fold = tiny.results / NAME / f"{SEMI}__{PLANS}__3d_fullres" / "fold_0"
    with files.only_here(fold, "made by self_train"), pytest.raises(files.BusyError, match="fold_0 is being made by"):
        run(tiny)
    assert not commands.called


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
    other = replace(SCHEME, accepted_by=ACCEPTED | {"top": None})
    with pytest.raises(ValueError, match=r"whose accepted by is .*top 0\.5.* and now .*top None.* --name NAME"):
        make(tiny, other)
    make(tiny, other, name="other")
    make(tiny, machine=Machine("cuda", 9))  # where it runs makes no difference
    make(tiny, replace(SCHEME, folds=(1, 0)))  # nor the order


def test_the_same_models_under_another_mount_point(tiny):
    first = make_folds(tiny.root / "one" / "Dataset1", labels=LABELS).folder
    second = tiny.root / "two" / "Dataset1" / "model"
    shutil.copytree(first, second)
    make(tiny, replace(SCHEME, others=(str(first),)))
    make(tiny, replace(SCHEME, others=(str(second),)))


def test_a_record_of_a_later_version(tiny):
    folder = make(tiny).folder
    record = json.loads((folder / "self_train.json").read_text())
    record["scheme"]["a key of the future"] = 3
    (folder / "self_train.json").write_text(json.dumps(record))
    make(tiny)


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
    other = str(make_folds(tiny.root / "other", labels=LABELS).folder)
    make(tiny, replace(SCHEME, folds=(0,)), name="a")
    make(tiny, replace(SCHEME, folds=(0,), trainer=STOCK, student=STOCK, others=(other,)), name="b")
    make(tiny, replace(SCHEME, folds=(0,), student=STOCK), number=1, name="c")  # which labels nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"others": ("/models/none",)}, "there is no model folder /models/none"),
        ({"accepted_by": ACCEPTED | {"partial": True}}, "all scans would get labels, .*--student nnUNetTrainer"),
        ({"accepted_by": ACCEPTED | {"top": 1.0}}, "all scans would get labels"),
        ({"warm_start": True, "student": "nnUNetTrainerANUNet"}, "whose network nnUNetTrainerANUNet does not have"),
    ],
)
def test_what_would_fail_after_the_first_training(tiny, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(tiny, replace(SCHEME, **changes))


def test_a_dataset_without_unlabelled_scans(tiny):
    shutil.rmtree(tiny.raw / "imagesUnlabeled")
    with pytest.raises(FileNotFoundError, match="has no unlabelled scan"):
        make(tiny, replace(SCHEME, trainer=STOCK, student=STOCK))


def test_a_model_of_other_labels(tiny):
    other = make_folds(tiny.root / "other", labels={"background": 0, "else": 1}).folder
    with pytest.raises(ValueError, match="differ in label 'else'"):
        make(tiny, replace(SCHEME, others=(str(other),)))


@pytest.mark.parametrize(("key", "value"), [("plans_name", "nnUNetPlans"), ("dataset_name", "Dataset001_Else")])
def test_plans_whose_names_are_not_those_of_the_files(tiny, key, value):
    """nnU-Net names the folder of the results by what the plans say."""
    plans = make_plans("Custom") | {key: value}
    (tiny.preprocessed / "Custom.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=rf"Custom\.json has {key} '{value}', expected '"):
        make(tiny, replace(SCHEME, plans="Custom"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"folds": (0,)}, ["teacher and student of one training are nearly the same network"]),
        ({"folds": (0, 1)}, []),
        ({"folds": (0,), "trainer": "nnUNetTrainerCPS", "student": "nnUNetTrainerCPS"}, []),
        ({"student": "nnUNetTrainerCPS", "warm_start": True}, ["--warm_start gives both networks of CPS the same"]),
    ],
)
def test_warnings(changes, said):
    found = warnings_of(replace(SCHEME, **changes))
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))


def test_a_cascade(tiny):
    plans = make_plans(previous_stage="2d")
    tiny.write_plans(plans)
    with pytest.raises(ValueError, match="which needs predictions of 2d; take 3d_fullres"):
        make(tiny)


def test_a_step_has_a_log_of_its_own(tiny):
    steps: list[Step] = [step for cycle in range(3) for step in make(tiny).cycles.steps(cycle)]
    assert len({step.name for step in steps}) == len(steps)
    assert steps[0].name == "cycle0_train_fold_0"
