"""``nnUNetv2_ext attention``."""

import errno
import json
import re

import pytest
import torch
from inference.tiny_model import make_model, make_nested_model, make_pair_model
from matplotlib.figure import Figure

from nnunet_ext import files
from nnunet_ext.cli.main import main


@pytest.fixture
def model(tmp_path, request):
    return make_nested_model(tmp_path, getattr(request, "param", "3d_fullres"))


@pytest.mark.parametrize("model", ["3d_fullres", "2d"], indirect=True)
def test_a_picture_and_the_coefficients(model, tmp_path, capsys):
    case = str(model.images / "a_0000.nii.gz")
    assert main(["attention", "-m", str(model.folder), "-i", case, "-o", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    gates = re.findall(r"(X\(\d,\d\) into X\(\d,\d\)): mean (\d\.\d+), (\d\.\d+) to (\d\.\d+)", printed)
    names = ["X(1,0) into X(1,1)", "X(0,0) into X(0,1)", "X(0,0) into X(0,2)", "X(0,1) into X(0,2)"]
    assert sorted(gate[0] for gate in gates) == sorted(names)
    for _, mean, low, high in gates:
        assert 0 <= float(low) <= float(mean) <= float(high) <= 1
    assert (tmp_path / "out" / "a.png").stat().st_size > 10_000
    assert main(["attention", "-m", str(model.folder), "-i", case, "-o", str(tmp_path / "b.png"), "--level", "1"]) == 0
    assert (tmp_path / "b.png").is_file()


@pytest.mark.parametrize(("make", "title"), [(make_nested_model, "fold 0"), (make_pair_model, "fold 0, network 2")])
def test_the_title_says_which_network_is_drawn(tmp_path, monkeypatch, make, title):
    model, titles = make(tmp_path / "model"), []
    model.add("a", 1)
    monkeypatch.setattr(Figure, "suptitle", lambda self, text, **_: titles.append(text))
    arguments = ("-m", str(model.folder), "-i", str(model.images / "a_0000.nii.gz"), "-o", str(tmp_path / "a.png"))
    assert main(["attention", *arguments]) == 0
    assert titles == [f"a, patch in the middle\n{model.folder.name}, {title}"]


def test_wrong_input_is_one_line(model, tmp_path, capsys):
    case = str(model.images / "a_0000.nii.gz")
    assert main(["attention", "-m", str(model.folder), "-i", case, "-o", str(tmp_path / "a.png"), "--level", "4"]) == 1
    assert "there are gates at the levels [0, 1], got 4; pass one of them" in capsys.readouterr().err
    plain = make_model(tmp_path / "plain")
    assert main(["attention", "-m", str(plain.folder), "-i", case, "-o", str(tmp_path / "a.png")]) == 1
    assert (
        "was trained by nnUNetTrainer and has no attention gates; give one trained with ANUNet"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "a.png").exists()


def test_plans_that_name_a_program_start_none(model, tmp_path, capsys):
    plans = json.loads((model.folder / "plans.json").read_text())
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    kwargs |= {"nonlin": "subprocess.Popen", "nonlin_kwargs": {"args": ["touch", str(tmp_path / "ran")]}}
    (model.folder / "plans.json").write_text(json.dumps(plans))
    case = str(model.images / "a_0000.nii.gz")
    assert main(["attention", "-m", str(model.folder), "-i", case, "-o", str(tmp_path / "out")]) == 1
    assert "the plans name 'subprocess.Popen' as nonlin, expected a network or a layer" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_and_a_missing_device_are_one_line_and_leave_nothing(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = ["-m", str(model.folder), "-i", str(model.images / "a_0000.nii.gz"), "-o", str(tmp_path / "out")]
    assert main(["attention", *arguments, "-device", "cuda"]) == 1
    assert "-device is cuda, but torch finds none here; pass one" in capsys.readouterr().err
    assert main(["attention", *arguments, "--level", "4"]) == 1
    assert not (tmp_path / "out").exists()
    left = tmp_path / "out" / f"{files.PREFIX}{files._machine()}_999999999_0_a.png"
    left.parent.mkdir()
    left.write_text("half")

    def full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    capsys.readouterr()
    assert main(["attention", *arguments]) == 1
    error = capsys.readouterr().err
    assert "a.png cannot be written ([Errno 28] No space left on device): no room on its disk" in error
    assert len(error.splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_of_another_network_are_one_line(model, tmp_path, capsys):
    file = model.folder / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    content["network_weights"].popitem()
    torch.save(content, file)
    case = str(model.images / "a_0000.nii.gz")
    assert main(["attention", "-m", str(model.folder), "-i", case, "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "network_weights are not those of the network in plans.json and dataset.json of the model" in error
    assert len(error.splitlines()) == 1
