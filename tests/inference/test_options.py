"""Our options on an entry point that looks like nnU-Net's."""

import argparse
import re
import sys

import pytest
import torch
from inference.tiny_model import REGIONS, make_model
from inference.tiny_propagation import make_propagation_model
from nnunetv2.inference import predict_from_raw_data

from nnunet_ext.inference import ForcedSpacing, MaxVoxels, PredictionFailedError, Predictor, TargetSpacing
from nnunet_ext.inference.checks import OUR_FLAGS, TRUST_FLAG, check_command
from nnunet_ext.inference.options import run
from nnunet_ext.inference.predictor import BadInputError


class Stock:
    """Stands in for nnUNetPredictor."""


@pytest.fixture
def command(monkeypatch):
    """Call an entry point with arguments; returns what it parsed and the predictor it found."""
    names = {"nnUNetPredictor": Stock}

    def command(*arguments, fails=None, enters=None):
        monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *arguments])
        found = {}

        def entry():
            parser = argparse.ArgumentParser(prog="nnUNetv2_predict")
            parser.add_argument("-i")
            parser.add_argument("-part_id", type=int, default=0)
            parser.add_argument("-num_parts", type=int, default=1)
            found["parsed"] = vars(parser.parse_args())
            found["predictor"] = names["nnUNetPredictor"]
            if enters is not None:
                enters.append(found["predictor"])
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


def test_networks_reach_the_predictor(command):
    device = torch.device("cpu")
    made = command("--network", "both", "--agreement")["predictor"](device=device)
    assert (made.chosen_network, made.agreement, made.min_agreement) == ("both", True, None)
    made = command("--min_agreement", "0.8")["predictor"](device=device)
    assert (made.chosen_network, made.agreement, made.min_agreement) == ("1", True, 0.8)
    made = command("--network", "2", "--fast_export")["predictor"](device=device)
    assert (made.chosen_network, made.agreement, made.fast_export) == ("2", False, True)


def test_engines_reach_the_predictor(command):
    device = torch.device("cpu")
    made = command("--engine", "torch", "--precision", "float32", "--skip_background")["predictor"](device=device)
    assert (made.engine, made.precision, made.skip_background) == ("torch", "float32", True)
    assert made.has_options
    made = command("--skip_background")["predictor"](device=device)
    assert (made.engine, made.precision, made.skip_background) == (None, None, True)
    assert not Predictor(device=device).has_options


def test_the_first_network_is_stocks(command):
    assert command("--network", "1")["predictor"] is Stock


def test_trust_alone_is_no_option_that_changes_the_prediction(command):
    assert command("--trust_model")["predictor"] is Stock
    made = command("--trust_model", "--fast_export")["predictor"](device=__import__("torch").device("cpu"))
    assert made.trust_model
    assert not command("--fast_export")["predictor"](device=made.device).trust_model


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"i": "{root}/nowhere"}, "-i {root}/nowhere is not there, expected a folder of images; name it"),
        ({"i": "{root}/file"}, "-i {root}/file is a file, expected a folder of images; name it"),
        ({"o": "{root}/file"}, "-o {root}/file cannot be a folder, because {root}/file is a file; name another place"),
        ({"o": "{root}/file/out"}, "-o {root}/file/out cannot be a folder, because {root}/file is a file"),
        (
            {"prev_stage_predictions": "{root}/no"},
            "-prev_stage_predictions {root}/no is not there, expected a folder of",
        ),
        ({"m": "{root}/no"}, "there is no model folder {root}/no; expected nnUNet_results/DATASET"),
        ({"f": [0, 3]}, "has no fold_3/checkpoint_final.pth; it has the folds [0]"),
        ({"f": ["first"]}, "-f must be folds, integers of 0 or more, or all, got 'first'"),
        ({"chk": "best.pth"}, "has best.pth; finish the training, or name another by -chk"),
        ({"device": "mps"}, "-device is mps, but torch finds none here; pass one that is there, e.g. -device cpu"),
        ({"device": "tpu"}, "-device must be cpu, cuda or mps, got 'tpu'"),
        ({"npp": -1}, "-npp must be a number of processes of 0 or more, got -1"),
        ({"step_size": 0.0}, "-step_size must be above 0 and at most 1, got 0.0; the default is 0.5"),
        ({"part_id": 2, "num_parts": 2}, "-part_id must lie in 0 to 1 (-num_parts - 1), got 2"),
    ],
)
def test_what_is_missing_or_makes_no_sense_is_said_before_anything_is_written(tmp_path, change, text):
    model = make_model(tmp_path)
    (tmp_path / "file").write_text("mine")
    given = {"i": str(model.images), "o": str(tmp_path / "new" / "out"), "m": str(model.folder), "f": [0]}
    given |= {"chk": "checkpoint_final.pth", "device": "cpu", "npp": 3, "nps": 3, "step_size": 0.5}
    given |= {"prev_stage_predictions": None}
    check_command(argparse.Namespace(**given))
    given |= {key: value.format(root=tmp_path) if isinstance(value, str) else value for key, value in change.items()}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError), match=re.escape(text.format(root=tmp_path))):
        check_command(argparse.Namespace(**given))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_command_is_looked_at_before_it_begins(monkeypatch, tmp_path, capsys):
    model = make_model(tmp_path)
    torch.save({"evil": print}, model.folder / "fold_0" / "checkpoint_final.pth")
    names = vars(predict_from_raw_data) | {}
    arguments = ["-i", model.images, "-o", tmp_path / "out", "-m", model.folder, "-f", "0", "-device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments), "--fast_export"])
    entry = getattr(predict_from_raw_data.predict_entry_point_modelfolder, "__wrapped__", None)
    assert run(entry or predict_from_raw_data.predict_entry_point_modelfolder, names) == 1
    error = capsys.readouterr().err
    assert "checkpoint_final.pth cannot be loaded as a checkpoint of weights and plain values" in error
    assert error.rstrip().endswith("if you trust whoever made it, pass --trust_model")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


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
        (["--network", "3"], "--network: invalid choice: '3' (choose from"),
        (["--min_agreement", "1.1"], "--min_agreement: expected a score of 0 to 1, got '1.1'"),
        (["--min_agreement", "nan"], "--min_agreement: expected a score of 0 to 1, got 'nan'"),
        (["--min_agreement", "most"], "--min_agreement: expected a score of 0 to 1, got 'most'"),
        (["--engine", "fast"], "--engine: invalid choice: 'fast' (choose from"),
        (["--precision", "int8"], "--precision: invalid choice: 'int8' (choose from"),
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


def test_a_precision_that_the_device_has_not_is_refused_before_the_output_is_made(command, capsys):
    entered = []
    found = command("--precision", "float16", enters=entered)
    assert (found["status"], entered) == (1, [])
    assert "error: this CPU has no units for float16" in capsys.readouterr().err


def test_help_shows_our_options_in_a_group_of_their_own(command, capsys):
    with pytest.raises(SystemExit):
        command("-h")
    _, _, ours = capsys.readouterr().out.partition("\nnnunet_ext:\n")
    assert sorted(OUR_FLAGS | {TRUST_FLAG}) == sorted(set(re.findall(r"^  (--\w+)", ours, re.MULTILINE)))


def test_failed_cases_and_bad_input_are_said_and_decide_the_exit_status(command, capsys):
    failed = PredictionFailedError({"b": "is broken"}, [None, None])
    assert command("--fast_export", fails=failed)["status"] == 1
    assert "1 of 2 case(s) failed" in capsys.readouterr().err
    assert command("--fast_export", fails=BadInputError("no images"))["status"] == 1
    assert capsys.readouterr().err == "error: no images\n"
    with pytest.raises(RuntimeError, match="primitive"):  # what others raise keeps its traceback
        command("--fast_export", fails=RuntimeError("could not create a primitive"))
    with pytest.raises(KeyError):
        command("--fast_export", fails=KeyError("a mistake of ours"))
    with pytest.raises(RuntimeError, match="of nnU-Net"):  # without our options everything is as it was
        command("-i", "x", fails=RuntimeError("of nnU-Net"))


def test_the_status_of_the_entry_point_is_passed_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict"])
    assert run(lambda: 3, {"nnUNetPredictor": Stock}) == 3


class TestPropagation:
    @pytest.mark.parametrize(("more", "references"), [([], "largest"), (["uniform"], "uniform"), (["3"], 3)])
    def test_it_reaches_the_predictor(self, command, more, references):
        how = ["--propagate_references", *more] if more else []
        found = command("--propagate", "folder", *how)
        made = found["predictor"](device=torch.device("cpu"))
        assert (str(made.propagate), made.propagate_references) == ("folder", references)
        assert made.has_options
        assert set(found["parsed"]) == {"i", "part_id", "num_parts"}

    def test_without_it_nothing_is_carried(self, command):
        made = command("--fast_export")["predictor"](device=torch.device("cpu"))
        assert made.propagate is None
        assert made.propagation is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--propagate_references", "2"], "says where a propagation starts; name its model by --propagate"),
            (["--propagate", "x", "--propagate_references", "all"], "expected largest, uniform or a number of slices"),
            (["--propagate", "x", "--propagate_references", "0"], "got '0'"),
        ],
    )
    def test_choices_that_make_no_sense(self, command, capsys, arguments, message):
        with pytest.raises(SystemExit, match="2"):
            command(*arguments)
        assert message in capsys.readouterr().err

    def test_the_command_is_checked_before_anything_is_written(self, tmp_path):
        model = make_model(tmp_path, "2d")
        propagate = make_propagation_model(tmp_path / "other")
        given = {"m": str(model.folder), "f": ("0",), "chk": "checkpoint_final.pth", "device": "cpu"}
        check_command(argparse.Namespace(**given), propagate=propagate)
        with pytest.raises(FileNotFoundError, match="there is no model folder"):
            check_command(argparse.Namespace(**given), propagate=tmp_path / "none")
        with pytest.raises(ValueError, match="the model of the prediction is a propagation model"):
            check_command(argparse.Namespace(**given | {"m": str(propagate)}), propagate=propagate)
        regions = make_model(tmp_path / "regions", "2d", REGIONS)
        carrier = make_propagation_model(tmp_path / "of_regions", REGIONS)
        wanted = {"m": str(regions.folder), "save_probabilities": True}
        with pytest.raises(ValueError, match="--save_probabilities does not go with --propagate where the dataset"):
            check_command(argparse.Namespace(**given | wanted), propagate=carrier)
