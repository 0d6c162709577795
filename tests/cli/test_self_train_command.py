"""``nnUNetv2_ext self_train``: its arguments, what it prints, its exit status."""

import json
import signal

import pytest
from data.tiny_dataset import make_plans, set_environment

from nnunet_ext.cli import self_train
from nnunet_ext.cli.main import main


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    dataset = set_environment(monkeypatch, tmp_path)
    dataset.write_dataset_json()
    dataset.write_plans(make_plans())
    dataset.write_splits({"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]})
    for number, name in enumerate("ab"):
        dataset.add_labelled(name, number)
    dataset.add_unlabeled("scan", 9)
    return dataset


def run(*arguments):
    return main(["self_train", "-d", "777", "-c", "3d_fullres", "-device", "cpu", *map(str, arguments)])


def test_the_commands_of_a_dry_run(tiny, capsys):
    wanted = ("--cycles", 1, "-f", 0, "--score", "slice", "--partial", "--min_score", 0.9, "--student", "nnUNetTrainer")
    assert run(*wanted, "--dry_run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("#")] == ["# cycle 0", "# cycle 1, if the cycles before it gain"]
    assert lines[1] == "nnUNetv2_train 777 3d_fullres 0 -tr nnUNetTrainerSemi -p nnUNetPlans -device cpu"
    assert " -o Dataset778_Tiny_pseudo --score slice --partial -device cpu" in lines[3]  # defaults are not repeated
    reserved = json.loads((tiny.results / "Dataset777_Tiny" / "self_train" / "self_train.json").read_text())["datasets"]
    assert reserved == ["Dataset778_Tiny_pseudo"]


def test_nothing_to_do(tiny, capsys, monkeypatch):
    monkeypatch.setattr("nnunet_ext.pseudo_labels.self_training.SelfTraining.commands", lambda *_: [])
    assert run("-f", 0, 1, "--dry_run") == 0
    assert capsys.readouterr().out == "# nothing is left to do\n"


def test_errors_are_a_sentence(tiny, capsys):
    assert run("-f", 0, 1, "-p", "NoPlans") == 1
    assert "self_train: error: " in capsys.readouterr().err
    assert run("-f", 0, "-tr", "nnUNetTrainer") == 1
    assert "one network cannot agree with itself" in capsys.readouterr().err
    assert run("-f", 0, 1, "--partial", "--top", 0.5) == 1
    assert "--partial accepts every scan in part" in capsys.readouterr().err


def test_a_folder_of_results_that_is_not_set(tiny, capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_results")
    assert run("-f", 0, 1) == 1
    assert "nnUNet_results is not set" in capsys.readouterr().err


def test_interrupted(tiny, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)

    def interrupt(*_):
        assert signal.getsignal(signal.SIGTERM) is not before
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunet_ext.pseudo_labels.self_training.SelfTraining.run", interrupt)
    assert run("-f", 0, 1) == 130
    assert "the same command goes on" in capsys.readouterr().err
    # a handler left behind would be that of every process that is forked later
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_printed_at_the_end(tiny, capsys, monkeypatch):
    from pathlib import Path

    from nnunet_ext.pseudo_labels.cycle_scores import CycleScores
    from nnunet_ext.pseudo_labels.self_training import Result

    cycles = [
        CycleScores(n, f"Dataset{777 + n}_Tiny", Path(f"model_{n}"), n, {(0, "a"): {"organ": 0.5 + n / 10}})
        for n in (0, 1)
    ]
    result = Result(cycles, tiny.results, "all 1 cycle(s) are done")
    monkeypatch.setattr("nnunet_ext.pseudo_labels.self_training.SelfTraining.run", lambda *_: result)
    assert run("-f", 0, 1, "--student", "nnUNetTrainer", "--cycles", 1) == 0
    out = capsys.readouterr().out
    assert "Best: cycle 1, model_1." in out
    assert "nnUNetv2_predict -d 778 -c 3d_fullres -tr nnUNetTrainer -p nnUNetPlans -f 0 1 -i FOLDER -o FOLDER" in out
    assert "each learned from the others' validation cases" in out


@pytest.mark.parametrize("arguments", ["--cycles 0", "--patience 0", "-f all", "--top 2", "--name ../x", "--name a__b"])
def test_wrong_values(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(*arguments.split())
    assert "expected" in capsys.readouterr().err


def test_every_option_of_the_selection_is_passed_on():
    import argparse

    parser = argparse.ArgumentParser()
    self_train.add_arguments(parser)
    words = ["--score", "slice", "--min_score", "0.5", "--min_class_score", "0.25", "--top", "0.75", "--uncertain"]
    words += ["ignore", "--partial", "--min_probability", "0.125", "-step_size", "1.0", "--disable_tta"]
    parsed = parser.parse_args(["-d", "1", "-c", "2d", *words])
    assert self_train.selection_words(parsed) == words
    assert self_train.selection_words(parser.parse_args(["-d", "1", "-c", "2d"])) == []
