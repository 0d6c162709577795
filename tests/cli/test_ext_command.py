import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from data.tiny_dataset import LABELS, TinyDataset, make_plans

from nnunet_ext import __version__, discovery_folder
from nnunet_ext.cli.main import COMMANDS, main
from nnunet_ext.cli.values import natural, positive_int
from nnunet_ext.trainers.names import COMMON, PARTS, RECOMMENDED
from nnunet_ext.training.architecture import build

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture) -> Command:
    """Run the command line in this process; return exit status, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def assert_one_line(error: str, name: str) -> None:
    assert error.startswith(f"nnUNetv2_ext {name}: error: ")
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error


def test_help_names_every_command(command: Command):
    status, out, _ = command("--help")
    assert status == 0
    assert [name for name in COMMANDS if re.search(rf"^ +{name}\s", out, re.MULTILINE)] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(command: Command, name):
    status, out, _ = command(name, "--help")
    assert status == 0
    assert out.startswith(f"usage: nnUNetv2_ext {name}")


def test_help_and_the_list_of_trainers_import_nothing_heavy():
    code = """
import contextlib, io, sys
from nnunet_ext.cli.main import COMMANDS, main

heavy = {}
for arguments in (["-h"], *([name, "-h"] for name in COMMANDS), ["trainers"], ["trainers", "--json"]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(arguments)
    found = [name for name in ("torch", "nnunetv2", "scipy", "matplotlib", "SimpleITK") if name in sys.modules]
    if found:
        heavy[" ".join(arguments)] = found
print(heavy)
print([name for name in COMMANDS if f"nnunet_ext.cli.{name}" in sys.modules] == list(COMMANDS))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["{}", "True"], done.stderr


def test_a_command_imports_no_other_command():
    code = """
import sys
from nnunet_ext.cli.main import main

main(["trainers"])
print([name for name in sys.modules if name.startswith("nnunet_ext.cli.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "['nnunet_ext.cli.main', 'nnunet_ext.cli.trainers']", done.stderr


def test_version(command: Command):
    assert command("--version")[:2] == (0, f"nnunetv2-ext {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "required: COMMAND"),
        (["unknown"], "invalid choice: 'unknown'"),
        (["trainers", "--jsn"], "unrecognized arguments: --jsn"),
        (["preprocess_unlabeled"], "required: -d"),
        (["preprocess_unlabeled", "-d", "1", "-np", "0"], "expected a positive integer, got '0'"),
        (["export", "-m", "m"], "required: -o"),
        (["export", "-m", "m", "-o", "o", "--network", "3"], "invalid choice: '3'"),
        (["export", "-m", "m", "-o", "o", "-f", "first"], "expected an integer of 0 or more, got 'first'"),
    ],
)
def test_wrong_arguments_show_the_usage(command: Command, arguments, complaint):
    status, out, error = command(*arguments)
    assert status == 2
    assert out == ""
    assert error.startswith("usage: nnUNetv2_ext")
    assert complaint in error


def test_values():
    assert (positive_int("3"), natural("0")) == (3, 0)
    for text in ("-1", "1.5", "", "x"):
        for kind in (positive_int, natural):
            with pytest.raises(Exception, match=f"got {text!r}"):
                kind(text)


def test_trainers(command: Command):
    status, out, error = command("trainers")
    assert (status, error) == (0, "")
    first = [line.split()[0] for line in out.splitlines()[1 : 1 + len(RECOMMENDED)]]
    assert first == [name for name, _ in RECOMMENDED]
    for part in PARTS:
        assert re.search(rf"^{part.kind}\n(  .*\n)*  {re.escape(part.name)} +\S", out, re.MULTILINE)
    assert f"There are {len(COMMON)} combinations" in out
    assert len(out.splitlines()) < 37


def test_every_trainer(command: Command):
    status, out, error = command("trainers", "--all")
    assert (status, error) == (0, "")
    for name in (*COMMON, *(part.name for part in PARTS)):
        assert re.search(rf"^  {re.escape(name)} +\S", out, re.MULTILINE)


def test_trainers_as_json(command: Command):
    status, out, _ = command("trainers", "--json")
    listing = json.loads(out)
    assert status == 0
    assert [row["name"] for row in listing["trainers"]] == list(COMMON)
    assert [row["name"] for row in listing["parts"]] == [part.name for part in PARTS]
    assert all(row["summary"] for rows in listing.values() for row in rows)


def test_info(command: Command, tiny: TinyDataset, monkeypatch):
    monkeypatch.delenv("nnUNet_raw")
    monkeypatch.setenv("nnUNet_results", str(tiny.root / "nowhere"))
    status, out, _ = command("info", "--json")
    found = json.loads(out)
    assert status == 0
    assert found["packages"]["torch"] == metadata.version("torch")
    assert found["discovery_folder"] == discovery_folder()
    assert found["environment"]["nnUNet_raw"] is None
    assert found["environment"]["nnUNet_preprocessed"] == str(tiny.preprocessed.parent)
    assert found["seams"]
    assert found["active"] == all(seam["state"] == "active" for seam in found["seams"])
    status, out, _ = command("info")
    assert status == 0
    assert discovery_folder() in out
    assert re.search(r"nnUNet_raw +not set", out)
    assert re.search(r"nnUNet_results .*nowhere \[no such folder\]", out)
    assert not re.search(r"nnUNet_preprocessed .*\[no such folder\]", out)


PREPROCESS = ("preprocess_unlabeled", "-d", "777", "-np", "1", "--no_pbar")


def test_preprocess_unlabeled(command: Command, tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    status, out, error = command(*PREPROCESS)
    folder = tiny.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    assert (status, error) == (0, "")
    assert out == f"3d_fullres: 1 preprocessed, 0 up to date, 0 removed, 0 failed, in {folder}\n"
    status, out, _ = command(*PREPROCESS, "-c", "2d", "3d_fullres")
    assert status == 0
    assert [line.partition(", in")[0] for line in out.splitlines()] == [
        "2d: 1 preprocessed, 0 up to date, 0 removed, 0 failed",
        "3d_fullres: 0 preprocessed, 1 up to date, 0 removed, 0 failed",
    ]
    assert "1 preprocessed" in command(*PREPROCESS, "--clean")[1]
    assert "1 up to date" in command(*PREPROCESS[:2], "Dataset777_Tiny", *PREPROCESS[3:])[1]


def test_preprocess_unlabeled_reports_failures_and_exits_with_1(command: Command, tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    bad = tiny.raw / "imagesUnlabeled" / "b_0000.nii.gz"
    bad.write_bytes(b"this is no image")
    status, out, error = command(*PREPROCESS, "-c", "2d", "3d_fullres")
    assert status == 1
    assert out.count("1 preprocessed, 0 up to date, 0 removed, 1 failed") == 2
    assert error.startswith("1 case(s) failed; everything else is done and kept.")
    assert f"  b [2d, 3d_fullres]: {bad} cannot be read" in error
    assert "Traceback" not in error
    bad.unlink()
    assert command(*PREPROCESS)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-p", "OtherPlans"], "there are no plans "),
        (["-c", "3d_lowres"], "has no configuration '3d_lowres'; it has 2d, 3d_fullres"),
        ([], "Dataset777_Tiny has no unlabelled case. Looked in "),
    ],
)
def test_what_is_missing_is_said_in_one_line(command: Command, tiny: TinyDataset, arguments, complaint):
    status, out, error = command(*PREPROCESS, *arguments)
    assert (status, out) == (1, "")
    assert_one_line(error, "preprocess_unlabeled")
    assert complaint in error


def test_a_broken_dataset_json_is_said_in_one_line(command: Command, tiny: TinyDataset):
    (tiny.raw / "dataset.json").write_text("{")
    status, _, error = command(*PREPROCESS)
    assert status == 1
    assert_one_line(error, "preprocess_unlabeled")
    shutil.rmtree(tiny.raw)
    status, _, error = command(*PREPROCESS)
    assert status == 1
    assert_one_line(error, "preprocess_unlabeled")


@pytest.mark.parametrize("configurations", [["2d", "3d_lowres"], ["3d_lowres", "2d"]])
def test_an_unknown_configuration_does_not_swallow_failures(command: Command, tiny: TinyDataset, configurations):
    tiny.add_unlabeled("a", 1)
    (tiny.raw / "imagesUnlabeled" / "b_0000.nii.gz").write_bytes(b"this is no image")
    status, _, error = command(*PREPROCESS, "-c", *configurations)
    assert status == 1
    assert "has no configuration '3d_lowres'" in error
    assert ("b_0000.nii.gz cannot be read" in error) == (configurations[0] == "2d")


def write_model(tiny: TinyDataset) -> Path:
    folder = tiny.results / "Dataset777_Tiny" / "nnUNetTrainerCPS__nnUNetPlans__3d_fullres"
    plain = make_plans()["configurations"]["3d_fullres"]["architecture"]
    weights = build(plain, 1, 2, False).state_dict()
    for fold in ("0", "all"):
        (folder / f"fold_{fold}").mkdir(parents=True)
        torch.save(
            {
                "network_weights": weights,
                "trainer_name": "nnUNetTrainerCPS",
                "init_args": {"configuration": "3d_fullres"},
                "nnunet_ext_cps": {"network_weights": {name: torch.ones_like(w) for name, w in weights.items()}},
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    (folder / "plans.json").write_text(json.dumps(make_plans()))
    (folder / "dataset.json").write_text(
        json.dumps({"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    )
    return folder


def test_export_to_a_folder(command: Command, tiny: TinyDataset, tmp_path):
    model, output = write_model(tiny), tmp_path / "out"
    status, out, error = command("export", "-m", model, "-o", output, "--network", "both", "-f", "all", "--stock")
    assert (status, error) == (0, "")
    assert f"Wrote {output} with fold(s) 0 1." in out
    assert f"nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTIONS -m {output} -f 0 1" in out
    saved = torch.load(output / "fold_1" / "checkpoint_final.pth", weights_only=True)
    assert all((weight == 1).all() for weight in saved["network_weights"].values())
    status, _, error = command("export", "-m", model, "-o", output)
    assert status == 1
    assert_one_line(error, "export")
    assert "pass --overwrite" in error
    assert command("export", "-m", model, "-o", output, "-f", "0", "--overwrite")[0] == 0


def test_export_to_an_archive(command: Command, tiny: TinyDataset, tmp_path):
    status, out, _ = command("export", "-m", write_model(tiny), "-o", tmp_path / "m.zip", "-f", "0")
    assert status == 0
    assert f"nnUNetv2_install_pretrained_model_from_zip {tmp_path / 'm.zip'}" in out


def test_export_of_nothing_is_said_in_one_line(command: Command, tmp_path):
    status, out, error = command("export", "-m", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert (status, out) == (1, "")
    assert_one_line(error, "export")


def test_arguments_of_the_process(command: Command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_ext", "trainers", "--json"])
    capsys.readouterr()
    assert main() == 0
    assert json.loads(capsys.readouterr().out)["trainers"]
