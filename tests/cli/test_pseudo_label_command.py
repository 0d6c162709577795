"""``nnUNetv2_ext pseudo_label``: its arguments, what it prints, its exit status, and its pictures."""

import subprocess
import sys

import pytest
from PIL import Image
from pseudo_labels.panels import make_folds, make_source

from nnunet_ext.cli.main import main


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    return make_source(tmp_path, monkeypatch)


def pseudo_label(model, *arguments):
    fixed = ("-d", 777, "-m", model.folder, "-o", 914, "-device", "cpu", "-npp", 0, "--no_pbar", "-step_size", 1)
    return main(["pseudo_label", *map(str, (*fixed, *arguments))])


def test_what_is_printed(tiny, tmp_path, capsys):
    model = make_folds(tmp_path / "m", 1)
    assert pseudo_label(model, "--min_score", 1) == 3
    captured = capsys.readouterr()
    assert "0 scan(s) accepted, 3 rejected" in captured.out
    assert "would accept a tenth; see the scores first" in captured.err
    (tiny.raw / "imagesUnlabeled" / "scan_2_0000.nii.gz").write_bytes(b"no image")
    assert pseudo_label(model, "--top", 0.5, "--diverse", 2) == 1
    captured = capsys.readouterr()
    assert (
        "1 scan(s) accepted, 1 rejected, 0 without any class, 1 failed; 2 of them were predicted before."
        in captured.out
    )
    assert "Annotate these first:\n  1. scan_" in captured.out
    assert "nnUNetv2_plan_and_preprocess -d 914" in captured.out
    assert "scan_2 is left out: " in captured.err
    folder = tiny.root / "raw" / "Dataset914_Tiny_pseudo"
    for name in ("pseudo_label_scores.png", "pseudo_label_cases.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
    assert pseudo_label(model) == 1
    assert "there is a dataset of the number 914" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--min_score", "2"), "expected a number from 0 to 1, got '2'"),
        (("--top", "0"), "expected a number above 0, and 1 at most, got '0'"),
        (("-step_size", "0"), "expected a number above 0"),
        (("--score", "voxel"), "invalid choice: 'voxel'"),
        (("--diverse", "0"), "expected a positive integer"),
    ],
)
def test_wrong_values(arguments, error, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["pseudo_label", "-d", "777", "-m", "m", "-o", "914", *arguments])
    assert error in capsys.readouterr().err


def test_a_model_that_is_missing(tiny, tmp_path, capsys):
    assert main(["pseudo_label", "-d", "777", "-m", str(tmp_path / "no"), "-o", "914", "-device", "cpu"]) == 1
    assert capsys.readouterr().err.startswith("nnUNetv2_ext pseudo_label: error: there is no model folder")


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom nnunet_ext.cli.main import main\n"
        "try: main(['pseudo_label', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--min_class_score" in done.stdout
