"""The pure parts of benchmarks/unlabelled.py: its list, its tables, its order, and what it reads and refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunet_ext.files import only_here

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: nothing there shadows anything

import _atrium
import _unlabelled_data as data
import _unlabelled_report as tables
import _unlabelled_runs as listed
import accuracy
import unlabelled

BENCHMARKS = Path(accuracy.__file__).parent
BY_NAME = {run.name: run for run in listed.RUNS}
NETWORKS = ("network 1", "mean weights")
TEACHER = listed.BEST


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty folder of results, without the published records."""
    monkeypatch.setattr(accuracy, "WORK", tmp_path)
    monkeypatch.setattr(accuracy, "HERE", tmp_path)
    return tmp_path


def record(work, name, dice, nsd=None, **other):
    """Write a record: scores by network, ``(cases, classes)``; numbers fill 4 cases."""
    classes = len(listed.TASKS[BY_NAME[name].task].classes)
    content = {"run": {"name": name}, "steps": 5000, "device": "CPU", "seconds_last_part": 1.0} | other
    for measure, scores in (("dsc", dice), ("nsd", dice if nsd is None else nsd)):
        content[measure] = {}
        for network, values in (scores if isinstance(scores, dict) else {"network 1": scores}).items():
            filled = np.broadcast_to(np.asarray(values, float), (4, classes))
            content[measure][network] = {f"case_{i}": list(row) for i, row in enumerate(filled)}
    file = work / "done" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def cells(lines, first, *others):
    """Return the cells of the one row that begins like this."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = [row for row in rows if row[: 1 + len(others)] == [first, *others]]
    assert len(found) == 1, rows
    return found[0]


class TestList:
    @pytest.mark.parametrize(
        ("name", "trainer"),
        [
            ("hippocampus5_supervised_seed0", "nnUNetTrainer_20epochs_250iterations"),
            ("hippocampus5_supervised_equal_cost_seed1", "nnUNetTrainer_47epochs_250iterations"),
            ("phantoms4_CPS_CutMix_seed0", "nnUNetTrainerCPS_CutMix_20epochs_250iterations"),
            (
                "phantoms4_MeanTeacher_CutMix_Confidence_ClassBalance_seed0",
                "nnUNetTrainerMeanTeacher_CutMix_Confidence_ClassBalance_20epochs_250iterations",
            ),
            (f"multiorgan4_{TEACHER}_seed1", f"nnUNetTrainer{TEACHER}_20epochs_250iterations"),
            ("hippocampus10_supervised_seed0", "nnUNetTrainer_20epochs_250iterations"),
            ("hippocampus5_supervised_long_seed0", "nnUNetTrainer_60epochs_250iterations"),
            (f"hippocampus5_{TEACHER}_long_seed0", f"nnUNetTrainer{TEACHER}_60epochs_250iterations"),
            ("phantoms4_MeanTeacher_BCP_seed1", "nnUNetTrainerMeanTeacher_BCP_20epochs_250iterations"),
            ("atrium8_semi_600s_seed0", "nnUNetTrainerSemi"),
        ],
    )
    def test_names(self, name, trainer):
        assert BY_NAME[name].trainer == trainer

    def test_one_name_one_run(self):
        assert len(BY_NAME) == len(listed.RUNS)

    @pytest.mark.parametrize(
        ("variant", "attributes"),
        [
            ("every1", {"unlabeled_every": 1}),
            ("lambda1", {"unlabeled_weight": 1.0}),
            ("geometry", {"second_geometry": True}),
        ],
    )
    @pytest.mark.parametrize("task", ["hippocampus5", "phantoms4"])
    def test_variants_are_attributes(self, task, variant, attributes):
        assert BY_NAME[f"{task}_{TEACHER}_{variant}_seed0"].attributes == attributes

    @pytest.mark.parametrize(
        ("name", "baseline", "ceiling"),
        [
            (f"phantoms4_{TEACHER}_seed0", "supervised", ("phantoms4", "ceiling")),
            ("hippocampus10_supervised_seed1", "supervised", ("hippocampus5", "ceiling")),
            (f"multiorgan4_{TEACHER}_seed0", "supervised", None),
            (f"phantoms4_{TEACHER}_long_seed0", "supervised_long", ("phantoms4", "ceiling_long")),
            ("atrium8_semi_600s_seed0", "supervised_600s", None),
        ],
    )
    def test_what_a_run_is_compared_with(self, name, baseline, ceiling):
        assert (BY_NAME[name].baseline, BY_NAME[name].ceiling) == (baseline, ceiling)

    def test_time_instead_of_steps_has_another_name(self):
        run = BY_NAME["atrium8_semi_600s_seed0"].timed(60)
        assert (run.name, run.baseline, run.seconds) == ("atrium8_semi_60s_seed0", "supervised_60s", 60)
        assert run.timed(5).name == "atrium8_semi_5s_seed0"

    def test_costs(self):
        assert listed.cost(BY_NAME["phantoms4_supervised_equal_cost_seed0"]) == pytest.approx(2.35)
        semi = listed.cost(BY_NAME["phantoms4_Semi_seed0"])
        assert listed.cost(BY_NAME["phantoms4_supervised_cost_of_semi_seed0"]) == pytest.approx(semi)
        assert listed.cost(BY_NAME["phantoms4_supervised_batch4_seed0"]) == 2
        assert listed.cost(BY_NAME[f"phantoms4_{TEACHER}_every1_seed0"]) == pytest.approx(2.34)
        assert not any(np.isnan(listed.cost(run)) for run in listed.RUNS if run.task != "atrium8")

    def test_self_training_costs_what_it_builds_on(self):
        once, twice = (listed.cost(BY_NAME[f"phantoms4_selftrain{more}_seed0"]) for more in ("", "_twice"))
        assert once == pytest.approx(1 + 1.65 + 1)
        assert twice == pytest.approx(once + 1)  # Semi labels twice, and is trained once
        assert listed.cost(BY_NAME["phantoms4_selftrain_Semi_seed0"]) == pytest.approx(1 + 2 * 1.65)

    def test_self_training_is_no_control_and_has_data_of_its_own(self):
        runs = [run for run in listed.RUNS if run.labelled_by]
        assert not any(run.is_control for run in runs)
        assert len({run.dataset for run in runs}) == len(runs) < 30  # numbers 970 to 999
        assert BY_NAME["phantoms4_selftrain_seed1"].other("Semi") is BY_NAME["phantoms4_Semi_seed1"]
        assert BY_NAME["phantoms4_ceiling_seed0"].dataset == "Dataset957_PhantomsAll"
        assert listed.cost(BY_NAME["phantoms4_annotate_listed_seed0"]) == 2  # it goes on from the supervised training

    def test_published_records_are_read(self):
        run = BY_NAME["phantoms4_supervised_seed0"]
        table = tables.table_of(run, "dsc", "mean weights")
        assert table.values.shape == (40, 6)
        assert tables.table_of(run, "dsc", "network 2") is None


@pytest.mark.parametrize(("which", "expected"), [("listed", ["c", "a"]), ("random0", None)])
def test_scans_that_are_annotated(work, monkeypatch, which, expected):
    """True labels of the chosen scans join the few, and of no other."""
    monkeypatch.setattr(data, "ANNOTATED", 2)
    run = BY_NAME[f"phantoms4_annotate_{which}_seed0"]
    task = listed.TASKS["phantoms4"]
    plans = {"configurations": {listed.FULL: {"data_identifier": "cases"}}}
    for dataset, names in ((task.dataset, "z"), (task.ceiling, "abcdz")):
        folder = work / "preprocessed" / dataset
        for name in names:
            for file in (folder / "cases" / f"{name}.b2nd", folder / "cases" / f"{name}_seg.b2nd"):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            (folder / "gt_segmentations").mkdir(exist_ok=True)
            (folder / "gt_segmentations" / f"{name}.nii.gz").touch()
        (folder / f"{listed.PLANS}.json").write_text(json.dumps(plans))
    order = work / "raw" / run.other(listed.LISTED_BY).dataset / "annotate_first.csv"
    order.parent.mkdir(parents=True)
    order.write_text("rank,case\n1,c\n2,a\n3,d\n4,b\n")
    data.annotate_scans(run)
    folder = work / "preprocessed" / run.dataset
    chosen = json.loads((folder / "annotated.json").read_text())
    assert chosen == expected or (expected is None and set(chosen) < set("abcd"))
    found = {file.name.partition(".")[0].removesuffix("_seg") for file in (folder / "cases").iterdir()}
    assert found == {*chosen, "z"}
    assert not run.is_control


def test_a_long_training_is_a_control_of_what_costs_as_much(work):
    record(work, "phantoms4_supervised_seed0", 0.6, 0.5)
    record(work, "phantoms4_supervised_long_seed0", 0.9, 0.8)
    results = tables.Results(listed.RUNS)
    assert tables.best_control(results, "phantoms4", (0,), 1.65)[0] == "supervised"
    assert tables.best_control(results, "phantoms4", (0,), 3.65)[0] == "supervised_long"


def test_the_difference_of_two_runs(work):
    record(work, "phantoms4_supervised_seed0", 0.6, 0.5)
    record(work, "phantoms4_supervised_long_seed0", 0.9, 0.75)
    line = tables.difference(BY_NAME["phantoms4_supervised_long_seed0"], BY_NAME["phantoms4_supervised_seed0"])
    assert "Dice +0.300 [+0.300, +0.300]; worst case 0.600 to 0.900; liver +0.300" in line
    assert line.endswith("NSD +0.250 [+0.250, +0.250]")


class TestScores:
    @pytest.fixture
    def results(self, work):
        record(
            work, "phantoms4_supervised_seed0", {"network 1": 0.6, "mean weights": 0.61}, dict.fromkeys(NETWORKS, 0.5)
        )
        record(work, "phantoms4_ceiling_seed0", 0.8, 0.7)
        dice = np.full((4, 6), 0.7)
        dice[0], dice[:, 5] = 0.5, 0.55  # a bad case, and the smallest class
        record(work, f"phantoms4_{TEACHER}_seed0", dice, 0.6)
        return tables.Results(listed.RUNS)

    def test_row(self, results):
        row = cells(tables.scores_table(results, "phantoms4"), TEACHER)
        mean = (3 * (5 * 0.7 + 0.55) / 6 + (5 * 0.5 + 0.55) / 6) / 4
        assert row[1:4] == ["network 1", "0", "5000"]
        assert row[4].startswith(f"{mean:.3f} [")
        assert row[5:7] == [f"{(5 * 0.5 + 0.55) / 6:.3f}", "0.550"]
        assert row[7] == "0.600 [0.600, 0.600]"
        assert row[8].startswith(f"{mean - 0.6:+.3f} [")
        assert row[9] == "+0.100 [+0.100, +0.100]"
        assert row[10:] == [f"{(mean - 0.6) / 0.2:+.2f} of 0.200", "+0.50 of 0.200"]

    def test_running_mean_is_beside_supervised(self, results):
        lines = list(tables.scores_table(results, "phantoms4"))
        assert cells(lines, "supervised", "mean weights")[8] == "+0.010 [+0.010, +0.010]"
        assert cells(lines, "supervised", "network 1")[8:] == [""] * 4

    def test_differences_are_paired_by_case(self, work):
        easy_and_hard = np.array([0.9, 0.3, 0.8, 0.2])[:, None]
        record(work, "hippocampus5_supervised_seed0", easy_and_hard)
        record(work, "hippocampus5_CPS_seed0", easy_and_hard + 0.05)
        row = cells(tables.scores_table(tables.Results(listed.RUNS), "hippocampus5"), "CPS")
        assert row[8] == "+0.050 [+0.050, +0.050]"

    def test_seeds_are_pooled_where_all_are_done(self, work, results):
        assert len([line for line in tables.scores_table(results, "phantoms4") if TEACHER in line]) == 1
        record(work, f"phantoms4_{TEACHER}_seed1", 0.9)
        lines = list(tables.scores_table(results, "phantoms4"))
        assert cells(lines, TEACHER, "network 1", "1")[8:] == [""] * 4, "supervised is not done with this seed"
        assert cells(lines, TEACHER, "network 1", "0 and 1, pooled")[8] == ""
        record(work, "phantoms4_supervised_seed1", {"network 1": 0.8, "mean weights": 0.8})
        pooled = cells(tables.scores_table(results, "phantoms4"), TEACHER, "network 1", "0 and 1, pooled")
        assert pooled[7] == "0.750 [0.750, 0.750]"
        assert pooled[9] == "+0.100 [+0.100, +0.100]"

    def test_longer_trainings_have_a_ceiling_of_their_own(self, work, results):
        record(work, "phantoms4_supervised_long_seed0", 0.7)
        record(work, f"phantoms4_{TEACHER}_long_seed0", 0.8)
        row = cells(tables.scores_table(results, "phantoms4"), f"{TEACHER}_long")
        assert row[8:11] == ["+0.100 [+0.100, +0.100]", "+0.100 [+0.100, +0.100]", ""]
        record(work, "phantoms4_ceiling_long_seed0", 0.9)
        assert cells(tables.scores_table(results, "phantoms4"), f"{TEACHER}_long")[10] == "+0.50 of 0.200"

    def test_classes_that_were_never_learned_are_named(self, work, results):
        assert list(tables.never_learned(results, "phantoms4")) == []
        record(work, "phantoms4_ceiling_seed0", [0.9, 0.9, 0.9, 0.9, 0.05, 0])
        assert list(tables.never_learned(results, "phantoms4")) == [
            "Never learned (Dice below 0.1): pancreas and gallbladder by ceiling with seed 0."
        ]

    def test_other_cases_are_no_pairs(self):
        first, second = (tables.Table((case,), np.ones((1, 2))) for case in "ab")
        with pytest.raises(ValueError, match="differ, so that they are no pairs"):
            first.minus(second)

    def test_class_in_neither_map(self):
        table = tables.Table(("a",), np.array([[0.5, np.nan]]))
        assert table.of_cases.tolist() == [0.5]

    @pytest.mark.parametrize(
        ("gap", "text"),
        [(0.1, "+0.50 of 0.100"), (0.0099, "headroom +0.010, too little"), (-0.02, "headroom -0.020, too little")],
    )
    def test_gap(self, gap, text):
        assert tables.gap_closed(0.05 if gap == 0.1 else 0.004, gap) == text

    def test_ceiling_of_another_task_with_the_same_scans(self, work):
        record(work, "hippocampus5_ceiling_seed0", 0.9)
        record(work, "hippocampus10_supervised_seed0", 0.8)
        record(work, f"hippocampus10_{TEACHER}_seed0", 0.85)
        row = cells(tables.scores_table(tables.Results(listed.RUNS), "hippocampus10"), TEACHER)
        assert row[10] == "+0.50 of 0.100"


class TestAgainstControls:
    def controls(self, work, seed=0):
        record(work, f"hippocampus5_supervised_seed{seed}", {"network 1": 0.70, "mean weights": 0.74})
        record(work, f"hippocampus5_supervised_strong_seed{seed}", {"network 1": 0.72, "mean weights": 0.72})
        record(work, f"hippocampus5_supervised_batch4_seed{seed}", {"network 1": 0.71, "mean weights": 0.71})
        record(work, f"hippocampus5_supervised_equal_cost_seed{seed}", {"network 1": 0.73, "mean weights": 0.73})
        record(work, f"hippocampus5_supervised_cost_of_semi_seed{seed}", {"network 1": 0.72, "mean weights": 0.72})
        record(work, f"hippocampus5_ceiling_seed{seed}", {"network 1": 0.95, "mean weights": 0.95})

    def row(self, method, *seeds):
        return cells(tables.equal_cost_table(tables.Results(listed.RUNS), "hippocampus5"), method, *seeds)

    def test_best_control_counts_and_never_the_ceiling(self, work):
        self.controls(work)
        record(work, f"hippocampus5_{TEACHER}_seed0", 0.76)
        row = self.row(TEACHER)
        assert row[2].startswith("1.65 (measured")
        assert row[3] == "1.65"
        assert row[4] == "supervised, mean weights, 1.00; best of 10"
        assert row[5] == "+0.020 [+0.020, +0.020]"
        assert row[7] == "no; one seed"

    def test_kept(self, work):
        for seed in (0, 1):
            self.controls(work, seed)
            record(work, f"hippocampus5_{TEACHER}_seed{seed}", 0.76)
        assert self.row(TEACHER, "0 and 1, pooled")[7] == "yes"

    def test_missing_controls_are_said(self, work):
        record(work, "hippocampus5_supervised_seed0", {"network 1": 0.7, "mean weights": 0.7})
        record(work, f"hippocampus5_{TEACHER}_seed0", 0.695)
        assert self.row(TEACHER)[7] == "no; one seed; gain; 2 of 10 controls"

    @pytest.mark.parametrize(
        ("values", "reasons"),
        [
            ([0.8, 0.8], []),
            ([0.704, 0.704], ["gain"]),
            ([0.98, 0.68], ["class posterior"]),
            ([[0.9, 0.9], [0.9, 0.9], [0.9, 0.9], [0.67, 0.67]], ["worst case"]),
        ],
    )
    def test_rules(self, values, reasons):
        names = ("a", "b", "c", "d")
        control = tables.Table(names, np.full((4, 2), 0.7))
        method = tables.Table(names, np.broadcast_to(np.array(values), (4, 2)))
        gain = method.minus(control).of_cases
        assert tables.broken_rules(gain, method, control, ["anterior", "posterior"], 2) == reasons

    def test_classes(self, work):
        self.controls(work)
        record(work, "hippocampus5_CPS_seed0", [0.8, 0.689])
        lines = list(tables.classes_table(tables.Results(listed.RUNS), "hippocampus5"))
        assert cells(lines, "CPS")[1:] == ["0", "+0.100", "-0.011", "no: posterior"]
        assert cells(lines, "supervised_strong")[4] == "yes"
        assert not [line for line in lines if line.startswith(("| ceiling", "| supervised |"))]


class TestCases:
    def test_every_case_where_there_are_few(self, work):
        record(work, "multiorgan4_supervised_seed0", np.array([0.9, 0.3, 0.8, 0.2])[:, None])
        lines = list(tables.cases_table(tables.Results(listed.RUNS), "multiorgan4"))
        assert cells(lines, "multiorgan4, Dice of every case", "seed")[2:] == [f"case_{i}" for i in range(4)]
        assert cells(lines, "supervised")[1:] == ["0", "0.900", "0.300", "0.800", "0.200"]

    def test_not_where_there_are_many(self, work):
        record(work, "phantoms4_supervised_seed0", 0.5)
        assert list(tables.cases_table(tables.Results(listed.RUNS), "phantoms4")) == []


class TestOwed:
    def test_commands_and_times(self, work, monkeypatch):
        monkeypatch.setenv("NNUNET_EXT_BENCH", "/some where")
        record(work, "phantoms4_supervised_seed0", 0.5, seconds=600.0)
        runs = [
            BY_NAME[name]
            for name in (
                "phantoms4_supervised_seed0",
                f"phantoms4_{TEACHER}_seed0",
                "hippocampus5_supervised_long_seed0",
                "atrium8_semi_600s_seed0",
            )
        ]
        head, _, *lines = tables.owed(runs)
        assert head == "Owed: 3 of 4 runs."
        assert lines[0].endswith(
            f"python benchmarks/unlabelled.py run --only phantoms4_{TEACHER}_seed0`: about 16 min of one core (from "
            "those done)"
        )
        assert lines[0].startswith("- `NNUNET_EXT_BENCH='/some where' ")
        assert lines[1].endswith("about 87 min of one core (a rough figure)")
        assert "--only atrium8_semi_600s_seed0 --atrium $NNUNET_EXT_ATRIUM --seconds 600`: 10 min of a GPU" in lines[2]

    def test_nothing(self, work):
        record(work, "phantoms4_supervised_seed0", 0.5)
        assert list(tables.owed([BY_NAME["phantoms4_supervised_seed0"]])) == ["Owed: nothing."]

    def test_seconds_of_all_parts(self, work):
        run = BY_NAME["phantoms4_supervised_seed0"]
        assert tables.training_seconds(run) is None
        record(work, run.name, 0.5)
        assert tables.training_seconds(run) is None, "of the last part alone"
        folder = work / "runs" / run.name / "fold_all"
        folder.mkdir(parents=True)
        for day, epochs in ((1, (0, 1)), (2, (1, 2))):  # epoch 1 was trained again
            text = "".join(f"x: Epoch {epoch} \nx: Epoch time: {10 * day}.5 s \n" for epoch in epochs)
            (folder / f"training_log_2026_11_0{day}_01_00_00.txt").write_text(text)
        assert tables.training_seconds(run) == 10.5 + 20.5 + 20.5
        record(work, run.name, 0.5, seconds=7.0)
        assert tables.training_seconds(run) == 7.0

    def test_report(self, work, capsys):
        record(work, "phantoms4_supervised_seed0", {"network 1": 0.5, "mean weights": 0.5})
        tables.report(listed.RUNS)
        out = capsys.readouterr().out
        assert "**phantoms4: 4 labelled and 36 unlabelled scans, 40 test cases**" in out
        assert "hippocampus10:" not in out, "a task of which nothing is done has no table"
        assert f"Owed: {len(listed.RUNS) - 1} of {len(listed.RUNS)} runs." in out


class FakeLogger:
    def __init__(self, **logged):
        self.logged = logged

    def get_value(self, key, step):
        return self.logged[key]


class TestTraining:
    def test_attribute_that_the_trainer_does_not_have(self):
        class Trainer:
            unlabeled_weight = 0.5

        trainer = Trainer()
        unlabelled.set_attributes(trainer, BY_NAME[f"phantoms4_{TEACHER}_lambda1_seed0"])
        assert trainer.unlabeled_weight == 1
        run = listed.Run("a_run", "", "phantoms4", attributes={"unlabeled_weight": 2, "unlabeled_evry": 2})
        with pytest.raises(SystemExit, match="a_run sets unlabeled_evry, which Trainer does not have"):
            unlabelled.set_attributes(trainer, run)
        assert trainer.unlabeled_weight == 1, "nothing is set unless all can be"

    @pytest.mark.parametrize(
        ("parts", "trainer_name", "message"),
        [
            ("MeanTeacher_Nonsense", "", "a_run: .*unknown part 'Nonsense'"),
            ("", "nnUNetTrainerOfNobody", "a_run needs the trainer nnUNetTrainerOfNobody, which there is not"),
        ],
    )
    def test_trainer_that_there_is_not(self, parts, trainer_name, message):
        with pytest.raises(SystemExit, match=message):
            unlabelled.trainer_class_of(listed.Run("a_run", parts, "phantoms4", trainer_name=trainer_name))

    def test_seconds_go_on_with_the_checkpoint(self):
        class Trainer:
            logger = FakeLogger(epoch_start_timestamps=[10, 50, 99], epoch_end_timestamps=[12, 53])

        assert unlabelled.epoch_seconds(Trainer) == 5


class FakeProcess:
    """Ends, with its record written, when it has been looked at twice."""

    def __init__(self, run, events, fails):
        self.run, self.events, self.fails, self.looks = run, events, fails, 0
        events.append(f"begin {run.name}")

    def poll(self):
        self.looks += 1
        if self.looks < 2:
            return None
        if self.looks == 2:
            self.events.append(f"end {self.run.name}")
            if not self.fails:
                unlabelled.done_file(self.run).parent.mkdir(exist_ok=True)
                unlabelled.done_file(self.run).write_text("{}")
        return int(self.fails)

    def terminate(self):
        self.events.append(f"terminated {self.run.name}")

    def wait(self):
        return 1


class TestOrder:
    RUNS = tuple(listed.Run(name, "", "phantoms4") for name in "cab")

    @pytest.fixture
    def begin(self, work, monkeypatch):
        monkeypatch.setattr(unlabelled, "prepare", lambda task: None)
        monkeypatch.setattr(unlabelled.time, "sleep", lambda seconds: None)
        self.events = []
        return lambda run: FakeProcess(run, self.events, run.name == "fails")

    def test_one_at_a_time_in_the_order_that_is_given(self, begin):
        assert unlabelled.run_all(self.RUNS, 1, begin) == []
        assert self.events == ["begin c", "end c", "begin a", "end a", "begin b", "end b"]

    def test_two_at_a_time(self, begin):
        assert unlabelled.run_all(self.RUNS, 2, begin) == []
        assert self.events[:2] == ["begin c", "begin a"]
        assert self.events.index("begin b") > 2

    def test_what_is_done_is_left_out(self, begin, work):
        unlabelled.done_file(self.RUNS[0]).parent.mkdir()
        unlabelled.done_file(self.RUNS[0]).write_text("{}")
        assert unlabelled.run_all(self.RUNS, 1, begin) == []
        assert "begin c" not in self.events

    def test_data_that_is_missing_is_told_before_anything_is_trained(self, begin, monkeypatch):
        def prepare(task):
            if task == "multiorgan4":
                raise SystemExit("the dataset is missing")

        monkeypatch.setattr(unlabelled, "prepare", prepare)
        with pytest.raises(SystemExit, match="the dataset is missing"):
            unlabelled.run_all([*self.RUNS, listed.Run("d", "", "multiorgan4")], 2, begin)
        assert self.events == []

    def test_others_go_on_where_one_fails(self, begin):
        runs = [listed.Run("fails", "", "phantoms4"), *self.RUNS]
        assert [run.name for run in unlabelled.run_all(runs, 2, begin)] == ["fails"]
        assert "end b" in self.events

    def test_processes_end_with_the_command(self, begin, monkeypatch):
        def interrupt(seconds):
            raise KeyboardInterrupt

        monkeypatch.setattr(unlabelled.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            unlabelled.run_all(self.RUNS, 2, begin)
        assert self.events[-2:] == ["terminated c", "terminated a"]

    def test_what_another_process_trains_is_left_to_it(self, work, monkeypatch, capsys):
        trained = []
        monkeypatch.setattr(unlabelled, "train_and_evaluate", trained.append)
        run = self.RUNS[0]
        with only_here(work / "runs" / run.name, "trained"):
            assert unlabelled.one(run) == unlabelled.BUSY
        assert "is being trained by process" in capsys.readouterr().out
        assert trained == []
        assert unlabelled.one(run) == 0
        assert trained == [run]

    def test_what_another_process_has_trained_meanwhile(self, work, monkeypatch):
        monkeypatch.setattr(unlabelled, "train_and_evaluate", lambda run: pytest.fail("trained again"))
        (work / "done").mkdir()
        unlabelled.done_file(self.RUNS[0]).write_text("{}")
        assert unlabelled.one(self.RUNS[0]) == 0

    def test_preparation_waits_for_another_one(self, work, monkeypatch):
        lock = only_here(work / "raw", "prepared")
        lock.__enter__()
        monkeypatch.setattr(data.time, "sleep", lambda seconds: lock.__exit__(None, None, None))
        with data.waiting(work / "raw", "prepared"):
            pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--only", "nothing"], "unknown run 'nothing'"),
        (["run", "--jobs", "0"], "--jobs must be 1 or more, got 0"),
        (["run", "--seconds", "-1"], "--seconds must be more than 0, got -1"),
    ],
)
def test_arguments(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["unlabelled.py", *arguments])
    with pytest.raises(SystemExit):
        unlabelled.main()
    assert message in capsys.readouterr().err


def test_a_gpu_is_asked_for_before_anything_is_written(work, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="atrium8_semi_600s_seed0 needs a GPU, and there is none here"):
        unlabelled.refuse_without_gpu([BY_NAME["atrium8_semi_600s_seed0"]])
    assert list(work.iterdir()) == []


class TestData:
    def test_hidden_labels_go_to_the_ceiling_alone(self, work, monkeypatch):
        source = work / "data" / "Dataset904_HippocampusSSL"
        for folder, names in (("Tr", "abcdefg"), ("Unlabeled", "uv"), ("Ts", "t")):
            for name in names:
                for kind, end in (("images", "_0000"), ("labels", "")):
                    file = source / f"{kind}{folder}" / f"{name}{end}.nii.gz"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
        (source / "dataset.json").write_text('{"numTraining": 7}')
        monkeypatch.setattr(accuracy, "DATA", work / "data")
        data._write_raw("hippocampus5")
        raw = work / "raw" / "Dataset954_HippocampusFive"
        found = {folder.name: sorted(file.name[0] for file in folder.iterdir()) for folder in raw.glob("*s*/")}
        assert found == {
            "imagesTr": list("abcde"),
            "labelsTr": list("abcde"),
            "imagesUnlabeled": list("fguv"),
            "imagesTs": ["t"],
            "labelsTs": ["t"],
        }
        ceiling = work / "raw" / "Dataset955_HippocampusAll"
        assert len(list((ceiling / "labelsTr").iterdir())) == 9
        assert json.loads((ceiling / "dataset.json").read_text())["numTraining"] == 9
        assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 5

    def test_folder_of_atria_is_not_named(self, monkeypatch):
        monkeypatch.delenv(data.ATRIUM, raising=False)
        with pytest.raises(SystemExit, match="--atrium FOLDER or NNUNET_EXT_ATRIUM"):
            data.atrium_folder()

    def test_atria(self, work, monkeypatch):
        for name in ("FEW", "HIDDEN", "TESTS"):
            monkeypatch.setattr(_atrium, name, 1)
        monkeypatch.setenv(data.ATRIUM, str(work / "atria"))
        for name in "abc":
            nifti(work / "atria" / name / "image.nii.gz", np.ones((4, 6, 8), np.float32))
            nifti(work / "atria" / name / "label.nii.gz", np.ones((4, 6, 8), np.uint8))
        data._write_raw("atrium8")
        raw = work / "raw" / "Dataset960_AtriumEight"
        files = sorted(str(file.relative_to(raw)) for file in raw.rglob("*.nii.gz"))
        assert files == [
            "imagesTr/a_0000.nii.gz",
            "imagesTs/c_0000.nii.gz",
            "imagesUnlabeled/b_0000.nii.gz",
            "labelsTr/a.nii.gz",
            "labelsTs/c.nii.gz",
        ]
        image = SimpleITK.ReadImage(str(raw / files[0]))
        assert image.GetSize() == (4, 3, 2)
        assert image.GetSpacing() == (2, 2, 2)
        assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 1


def nifti(file, array, spacing=(1, 1, 1)):
    file.parent.mkdir(parents=True, exist_ok=True)
    volume = SimpleITK.GetImageFromArray(array)
    volume.SetSpacing(spacing)
    SimpleITK.WriteImage(volume, str(file))


class TestAtrium:
    @pytest.mark.parametrize(
        "files",
        [
            ("{}/image.nii.gz", "{}/label.nii.gz"),
            ("{}_image.nii.gz", "{}_label.nii.gz"),
            ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"),
            ("deeper/{}/image.nii", "deeper/{}/label.nii"),
        ],
    )
    def test_pairs(self, tmp_path, files):
        for name in ("two", "one"):
            for file in files:
                nifti(tmp_path / file.format(name), np.zeros((2, 2, 2), np.uint8))
        cases = _atrium.find_cases(tmp_path)
        assert [case.name for case in cases] == ["one", "two"]
        assert cases[0].label == tmp_path / files[1].format("one")

    @pytest.mark.parametrize("file", ["{}/mri_norm2.h5", "{}.h5", "deeper/{}.h5"])
    def test_h5_files(self, tmp_path, file):
        for name in ("two", "one"):
            (tmp_path / file.format(name)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.format(name)).touch()
        assert [case.name for case in _atrium.find_cases(tmp_path)] == ["one", "two"]

    def test_half_resolution(self, tmp_path):
        image = np.arange(5 * 4 * 2, dtype=np.int16).reshape(5, 4, 2)
        label = np.zeros((5, 4, 2), np.uint8)
        label[:2, :2, 0] = 255  # half of the first block
        label[0, 2, 0] = 255
        nifti(tmp_path / "a_image.nii.gz", image, (0.5, 0.6, 0.7))
        nifti(tmp_path / "a_label.nii.gz", label, (0.5, 0.6, 0.7))
        (case,) = _atrium.find_cases(tmp_path)
        found, atrium, spacing = _atrium.read_case(case)
        assert found.shape == atrium.shape == (2, 2, 1), "the odd plane is left out"
        assert found[0, 0, 0] == image[:2, :2].mean()
        assert atrium.dtype == np.uint8
        assert atrium.ravel().tolist() == [1, 0, 0, 0]
        assert spacing == pytest.approx((1.4, 1.2, 1.0))

    def test_h5(self, tmp_path):
        h5py = pytest.importorskip("h5py", reason="h5 files need h5py, which the project does not depend on")
        image = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["image"], file["label"] = image, (image > 31).astype(np.uint8)
        found, atrium, spacing = _atrium.read_case(_atrium.find_cases(tmp_path)[0])
        assert found[1, 1, 1] == image[2:, 2:, 2:].mean()
        assert atrium.ravel().tolist() == [0] * 4 + [1] * 4
        assert spacing == (1.25, 1.25, 1.25)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["image"] = image
        with pytest.raises(ValueError, match=r"a\.h5 has no dataset 'label'; expected 'image' and 'label'"):
            _atrium.read_case(_atrium.find_cases(tmp_path)[0])
        (tmp_path / "a.h5").write_bytes(b"no h5")
        with pytest.raises(ValueError, match=r"a\.h5 is no whole h5 file"):
            _atrium.read_case(_atrium.find_cases(tmp_path)[0])

    def test_without_h5py(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "h5py", None)
        (tmp_path / "a.h5").touch()
        with pytest.raises(ValueError, match=r"a\.h5 needs h5py, which is not installed; run: pip install h5py"):
            _atrium.read_case(_atrium.find_cases(tmp_path)[0])

    def test_other_shapes(self, tmp_path):
        nifti(tmp_path / "a_image.nii.gz", np.zeros((2, 2, 2), np.uint8))
        nifti(tmp_path / "a_label.nii.gz", np.zeros((2, 2, 3), np.uint8))
        with pytest.raises(ValueError, match="expected one 3D shape"):
            _atrium.read_case(_atrium.find_cases(tmp_path)[0])

    def test_damaged_file(self, tmp_path):
        nifti(tmp_path / "a_label.nii.gz", np.zeros((2, 2, 2), np.uint8))
        (tmp_path / "a_image.nii.gz").write_bytes(b"none")
        with pytest.raises(ValueError, match=r"a_image\.nii\.gz cannot be read as NIfTI"):
            _atrium.read_case(_atrium.find_cases(tmp_path)[0])

    def test_wrong_folders(self, tmp_path):
        with pytest.raises(ValueError, match="missing is no folder"):
            _atrium.find_cases(tmp_path / "missing")
        with pytest.raises(ValueError, match="neither h5 files nor NIfTI pairs"):
            _atrium.find_cases(tmp_path)
        nifti(tmp_path / "a_image.nii.gz", np.zeros((2, 2, 2), np.uint8))
        with pytest.raises(ValueError, match=r"has no label; expected .*a_label\.nii\.gz"):
            _atrium.find_cases(tmp_path)
        nifti(tmp_path / "a_label.nii.gz", np.zeros((2, 2, 2), np.uint8))
        for part in ("image", "label"):
            nifti(tmp_path / "a" / f"{part}.nii.gz", np.zeros((2, 2, 2), np.uint8))
        with pytest.raises(ValueError, match="are both the case 'a'"):
            _atrium.find_cases(tmp_path)

    def test_division_is_by_name(self):
        cases = [_atrium.AtriumCase(f"{i:03d}", Path(), Path()) for i in range(100)]
        few, hidden, tests = _atrium.divide(cases)
        assert [len(few), len(hidden), len(tests)] == [8, 72, 20]
        assert (few[0].name, hidden[0].name, tests[0].name) == ("000", "008", "080")
        with pytest.raises(ValueError, match="99 cases of left atria were found, expected 100"):
            _atrium.divide(cases[1:])


def test_help():
    found = subprocess.run(
        [sys.executable, str(BENCHMARKS / "unlabelled.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "--atrium" in found.stdout
