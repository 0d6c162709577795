"""``nnUNetv2_ext profile``: its arguments, what it prints, its exit status."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data.tiny_dataset import LABELS, TinyDataset, make_plans, scan, write_image

from nnunet_ext.cli.main import main

# Calls everything foreground, where an image is; --break breaks it.
COMMAND = f"""#!{sys.executable} -S
import pathlib, shutil, sys

output = pathlib.Path(sys.argv[sys.argv.index("-o") + 1])
output.mkdir()
if "--break" in sys.argv:
    sys.exit("broken")
for label in (pathlib.Path(__file__).parent / "answers").iterdir():
    shutil.copy(label, output)
    print("done with", label.name.split(".")[0])
"""


@pytest.fixture
def model(tiny: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that was never trained, an image with its label, and a stand-in for the stock command."""
    folder = tiny.results / "Dataset777_Tiny" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    (folder / "fold_all").mkdir(parents=True)
    content = {"network_weights": {}, "trainer_name": "x", "init_args": {"configuration": "3d_fullres"}}
    torch.save(content, folder / "fold_all" / "checkpoint_final.pth")
    content = {"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "plans.json").write_text(json.dumps(make_plans()))
    write_image(tiny.root / "images" / "a_0000.nii.gz", scan(0))
    for name in ("labels", "answers"):
        write_image(tiny.root / name / "a.nii.gz", (scan(0) > 100).astype(np.uint8))
    command = tiny.root / "predict"
    command.write_text(COMMAND)
    command.chmod(0o755)
    monkeypatch.setattr("nnunet_ext.evaluation.command.find_command", lambda _: str(command))
    monkeypatch.setattr("nnunet_ext.evaluation.profile.draw_profile", lambda *_: None)
    return folder


def call(model: Path, *more: str, output: str = "out") -> int:
    root = model.parents[2]
    places = ("-i", root / "images", "-o", root / output, "-device", "cpu", "--no_pbar")
    return main(["profile", *map(str, places), *more])


def test_tables_and_the_model_named_in_either_way(model: Path, capsys):
    labels = ("--labels", str(model.parents[2] / "labels"), "--tolerance_mm", "1")
    assert call(model, "-m", str(model), *labels, "--settings", "stock", "--setting", "mine=--x 1") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0].split()[:2] == ["setting", "s/case"]
    assert lines[0].endswith("DSC  NSD 1 mm  flags")
    assert lines[1].startswith("stock ")
    assert lines[1].endswith("1.0000    1.0000  (no flag)")
    assert lines[2].startswith("mine ")
    assert lines[2].endswith("--x 1")
    assert "Wrote " in lines[-1]
    assert "profile.json and " in lines[-1]
    assert call(model, "-d", "777", "-c", "3d_fullres", "--settings", "stock", "--json", output="other") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["options"]["model"] == str(model)
    assert document["options"]["folds"] == ["all"]
    assert list(document["settings"]) == ["stock"]


def test_a_progress_bar_counts_the_cases(model: Path, capsys):
    root = model.parents[2]
    arguments = ["-i", str(root / "images"), "-o", str(root / "out"), "-device", "cpu", "-m", str(model)]
    assert main(["profile", *arguments, "--settings", "stock", "no_mirroring"]) == 0
    assert "no_mirroring: 100%" in capsys.readouterr().err


def test_a_failed_setting_is_named_and_the_status_is_1(model: Path, capsys):
    assert call(model, "-m", str(model), "--settings", "stock", "--setting", "bad=--break") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("Setting bad failed: ")
    assert f"Its output is in {model.parents[2] / 'out' / 'bad.log'}, the end of it:\n" in printed.err
    assert printed.err.endswith("broken\n")
    assert "(no flag)" in printed.out


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["-m", "MODEL", "-d", "777"], "-m names a model and so does -d, expected one of them; pass -m, or -d and -c"),
        ([], "-d and -c missing, expected -m MODEL, or -d DATASET and -c CONF"),
        (["-d", "777"], "-c missing"),
        (["-d", "777", "-c", "2d"], "there is no model folder "),
        (["-m", "MODEL", "-f", "3"], "has no fold_3/checkpoint_final.pth"),
        (["-m", "MODEL", "-chk", "best.pth"], "has best.pth"),
        (["-m", "MODEL", "--settings", "stok"], "there is no setting 'stok', expected some of: stock, "),
        (["-m", "MODEL", "--labels", "nowhere"], "there is no folder of labels nowhere"),
        (["-m", "MODEL", "-i", "nowhere"], "there is no folder of images nowhere"),
        (["-m", "MODEL", "-o", "ROOT"], "holds what is read"),
        (
            ["-m", "MODEL", "--settings", "stock", "--budget", "0.01"],
            "which takes label maps of the images; pass --labels",
        ),
    ],
)
def test_wrong_input_is_one_line(model: Path, capsys, more, complaint):
    places = {"MODEL": str(model), "ROOT": str(model.parents[2])}
    assert call(model, *(places.get(word, word) for word in more)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("nnUNetv2_ext profile: error: ")
    assert len(printed.err.splitlines()) == 1
    assert complaint in printed.err


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--setting", "a"], "argument --setting: expected NAME=FLAGS, got 'a'"),
        (["--target_spacing", "1", "1", "0"], "expected a positive spacing in mm, or -1 for the plans' one, got '0'"),
        (["--target_spacing", "1", "x", "1"], "expected a number of mm, got 'x'"),
        (["--target_spacing", "1", "1"], "expected 3 arguments"),
        (["--max_voxels", "0"], "expected a positive integer, got '0'"),
        (["--tolerance_mm", "-1"], "expected a tolerance of 0 or more in mm, got '-1'"),
        (["--tolerance_mm", "nan"], "expected a number of mm, got 'nan'"),
        (["-device", "tpu"], "invalid choice: 'tpu'"),
        (["--budget", "-0.1"], "expected a loss of mean DSC from 0 to 1, e.g. 0.005, got '-0.1'"),
        (["--budget", "nan"], "got 'nan'"),
        (["--budget", "1"], "got '1'"),
        (["-f", "first"], "expected an integer of 0 or more, got 'first'"),
    ],
)
def test_wrong_values_show_the_usage(model: Path, capsys, more, complaint):
    with pytest.raises(SystemExit, match="2"):
        call(model, "-m", str(model), *more)
    assert complaint in capsys.readouterr().err


def test_values_make_settings(model: Path, capsys):
    values = ("--target_spacing", "-1", "1.5", "-1", "--max_voxels", "1000")
    assert call(model, "-m", str(model), *values, "--settings", "target", "max_voxels") == 0
    printed = capsys.readouterr().out
    assert "--target_spacing -1 1.5 -1 --fast_export" in printed
    assert "--max_voxels 1000 --fast_export" in printed


def test_help_lists_the_settings(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["profile", "--help"])
    printed = capsys.readouterr().out
    assert "\nsettings:\n  stock " in printed
    assert "-step_size 0.7" in printed


def test_a_model_with_code_is_refused_unless_it_is_trusted(model: Path, capsys):
    file = model / "fold_all" / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "trainer_name": print, "init_args": {}}, file)
    assert call(model, "-m", str(model), "--settings", "stock") == 1
    error = capsys.readouterr().err
    assert f"{file} cannot be loaded as a checkpoint of weights and plain values" in error
    assert error.rstrip().endswith("if you trust whoever made it, pass --trust_model")
    assert len(error.splitlines()) == 1
    assert call(model, "-m", str(model), "--settings", "stock", "fast_export", "--trust_model", "--json") == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert "--trust_model" in settings["fast_export"]["command"]
    assert "--trust_model" not in settings["stock"]["command"]


def test_a_budget_names_the_best_trade_and_its_command(model: Path, capsys):
    labels = ("--labels", str(model.parents[2] / "labels"), "--budget", "0.005")
    assert call(model, "-m", str(model), *labels, "--settings", "stock", "--setting", "mine=--x 1") == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"\nFastest within 0\.005 of the mean DSC of stock: (mine|stock), .* s a case.* DSC 1\.0000", printed
    )
    command = f"-i IN -o OUT -m {model} -f all -chk checkpoint_final.pth -device cpu -npp 3 -nps 3"
    assert f"\n  nnUNetv2_predict_from_modelfolder {command}" in printed
    document = json.loads((model.parents[2] / "out" / "profile.json").read_text())
    assert document["trade"]["reference"] == "stock"
    assert document["trade"]["setting"] in ("mine", "stock")
    assert call(model, "-m", str(model), *labels, "--setting", "bad=--break", "--settings", "bad", output="x") == 1
    assert "No trade within a budget of 0.005: no setting was measured" in capsys.readouterr().out


def test_settings_that_cannot_be_run_are_left_out_with_a_line(model: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nnunet_ext.engines.choice.available", lambda _: False)
    assert call(model, "-m", str(model), "--settings", "stock", "engine") == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("Setting engine is left out: OpenVINO is not installed, ")
    assert len(printed.err.splitlines()) == 1
    assert "\nstock " in printed.out
    assert "\nengine " not in printed.out
