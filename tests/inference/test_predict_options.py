"""Our options on an entry point that looks like nnU-Net's."""

import argparse
import sys

import pytest

from nnunet_ext.inference import ForcedSpacing, MaxVoxels, PredictionFailedError, Predictor, TargetSpacing
from nnunet_ext.inference.predict_options import run
from nnunet_ext.inference.predictor import BadInputError


class Stock:
    """Stands in for nnUNetPredictor."""


@pytest.fixture
def command(monkeypatch):
    """Call an entry point with arguments; returns what it parsed and the predictor it found."""
    names = {"nnUNetPredictor": Stock}

    def command(*arguments, fails=None):
        monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *arguments])
        found = {}

        def entry():
            parser = argparse.ArgumentParser(prog="nnUNetv2_predict")
            parser.add_argument("-i")
            parser.add_argument("-part_id", type=int, default=0)
            parser.add_argument("-num_parts", type=int, default=1)
            found["parsed"] = vars(parser.parse_args())
            found["predictor"] = names["nnUNetPredictor"]
            other = argparse.ArgumentParser()  # a parser that is not the command's
            found["other"] = vars(other.parse_args([]))
            if fails is not None:
                raise fails

        before = argparse.ArgumentParser.parse_args
        try:
            found["status"] = run(entry, names)
        finally:
            assert argparse.ArgumentParser.parse_args is before
            assert names["nnUNetPredictor"] is Stock
        return found

    return command


def options_of(predictor):
    made = predictor(device=__import__("torch").device("cpu"))
    assert isinstance(made, Predictor)
    return made.spacing, made.fast_export, made.part


def test_without_our_options_the_predictor_is_stock(command):
    found = command("-i", "x")
    assert found["predictor"] is Stock
    assert found["parsed"] == {"i": "x", "part_id": 0, "num_parts": 1}
    assert found["other"] == {}


@pytest.mark.parametrize(
    ("arguments", "spacing", "fast"),
    [
        (["--forced_spacing"], ForcedSpacing(0.75, 0.75, 0.5), False),
        (["--forced_spacing", "1", "1", "1.5", "--fast_export"], ForcedSpacing(1, 1, 1.5), True),
        (["--forced_spacing", "-i", "x"], ForcedSpacing(), False),
        (["--target_spacing", "-1", "2", "3"], TargetSpacing(-1, 2, 3), False),
        (["--max_voxels", "1000"], MaxVoxels(1000), False),
        (["--fast_export"], None, True),
    ],
)
def test_options_reach_the_predictor_and_not_the_entry_point(command, arguments, spacing, fast):
    found = command(*arguments)
    assert options_of(found["predictor"]) == (spacing, fast, (0, 1))
    assert set(found["parsed"]) == {"i", "part_id", "num_parts"}


def test_the_depth_reaches_the_predictor(command):
    made = command("--prune_depth", "2")["predictor"](device=__import__("torch").device("cpu"))
    assert isinstance(made, Predictor)
    assert made.prune_depth == 2
    assert made.has_options
    assert Predictor(device=made.device).prune_depth is None


def test_parts_reach_the_predictor(command):
    found = command("--fast_export", "-part_id", "1", "-num_parts", "3")
    assert options_of(found["predictor"])[2] == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--forced_spacing", "1", "1"], "--forced_spacing: forced spacing must be 3 values in mm (x y z), got 1 1"),
        (["--forced_spacing", "0", "1", "1"], "forced spacing must be 3 positive values in mm, got 0.0 1.0 1.0; pass"),
        (["--forced_spacing", "1", "-1", "1"], "forced spacing must be 3 positive values in mm, got 1.0 -1.0 1.0"),
        (["--forced_spacing", "nan", "1", "1"], "forced spacing must be 3 positive values in mm, got nan"),
        (["--target_spacing", "1", "1"], "--target_spacing: target spacing must be 3 values in mm (x y z), got 1 1"),
        (["--target_spacing", "1", "1", "x"], "target spacing must be 3 values in mm, got 1 1 x"),
        (["--target_spacing", "-2", "1", "1"], "or -1 to keep the plans' value, got -2.0 1.0 1.0"),
        (["--target_spacing"], "--target_spacing: expected at least one argument"),
        (["--max_voxels", "0"], "--max_voxels: expected a positive integer, got '0'"),
        (["--prune_depth", "0"], "--prune_depth: expected a depth of 1 or more, got '0'"),
        (["--prune_depth", "deep"], "--prune_depth: expected a depth of 1 or more, got 'deep'"),
        (["--max_voxels", "many"], "--max_voxels: expected a positive integer, got 'many'"),
        (["--max_voxels", "9", "--forced_spacing"], "--forced_spacing: not allowed with argument --max_voxels"),
        (["--target_spacing", "1", "1", "1", "--forced_spacing"], "not allowed with argument --target_spacing"),
    ],
)
def test_bad_values_are_one_clear_error(command, arguments, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err.splitlines()[-1]


def test_help_shows_our_options_in_a_group_of_their_own(command, capsys):
    with pytest.raises(SystemExit):
        command("-h")
    _, _, ours = capsys.readouterr().out.partition("\nnnunet_ext:\n")
    for name in ("--forced_spacing", "--target_spacing", "--max_voxels", "--fast_export", "--prune_depth"):
        assert name in ours


def test_failed_cases_and_bad_input_are_said_and_decide_the_exit_status(command, capsys):
    failed = PredictionFailedError({"b": "is broken"}, [None, None])
    assert command("--fast_export", fails=failed)["status"] == 1
    assert "1 of 2 case(s) failed" in capsys.readouterr().err
    assert command("--fast_export", fails=BadInputError("no images"))["status"] == 1
    assert capsys.readouterr().err == "error: no images\n"
    with pytest.raises(KeyError):
        command("--fast_export", fails=KeyError("a mistake of ours"))


def test_the_status_of_the_entry_point_is_passed_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict"])
    assert run(lambda: 3, {"nnUNetPredictor": Stock}) == 3
