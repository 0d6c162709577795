"""Profiles from end to end: inputs, resuming, failures, with a stand-in for the stock command."""

import json
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.tiny_dataset import LABELS, make_plans, scan, write_image

from nnunet_ext import files
from nnunet_ext.evaluation import profile as profiling
from nnunet_ext.evaluation.inputs import ProfileInputs, find_inputs
from nnunet_ext.evaluation.profile import ProfileOptions, failed, predict_command, profile
from nnunet_ext.evaluation.record import versions
from nnunet_ext.evaluation.settings import SETTINGS, Setting
from nnunet_ext.evaluation.table import format_profile
from nnunet_ext.figures.profile import draw_profile

# Copies what lies in the folder "answers" beside it, and keeps its arguments.
COMMAND = """
import json, pathlib, shutil, sys, time

arguments, here = sys.argv[1:], pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
if "--fail" in arguments:
    sys.exit("no such flag: --fail")
output = pathlib.Path(arguments[arguments.index("-o") + 1])
output.mkdir(parents=True)
for answer in sorted((here / "answers").iterdir()):
    if "--lazy" not in arguments or "a" not in answer.name.split(".")[0]:
        shutil.copy(answer, output)
    print("done with", answer.name.split(".")[0])
    time.sleep(0.02)
if "--fast_export" in arguments:
    seconds = [{"reading": 1, "preprocessing": 2, "network": 3}, {"reading": 2, "preprocessing": 2, "network": 5}]
    cases = {str(number): {"seconds": some} for number, some in enumerate(seconds)}
    (output / "spacing_report.json").write_text(json.dumps({"cases": cases}))
"""
FAST, STOCK = SETTINGS["fast_export"], SETTINGS["stock"]
OWN = {name: Setting(name, (f"--{name}",)) for name in ("fail", "lazy")}

CHECKPOINT = {
    "network_weights": {},
    "trainer_name": "nnUNetTrainer",
    "init_args": {"configuration": "3d_fullres"},
}


@dataclass(frozen=True)
class Place:
    """A model that was never trained, two images with labels, and the stand-in for the stock command."""

    root: Path

    @property
    def inputs(self) -> ProfileInputs:
        return find_inputs(self.root / "model", self.root / "images", self.root / "labels")

    @property
    def options(self) -> ProfileOptions:
        command = (sys.executable, "-S", str(self.root / "predict.py"))
        return ProfileOptions(self.root / "out", device="cpu", command=command, progress_bar=False)

    @property
    def written(self) -> dict[str, Any]:
        return json.loads((self.root / "out" / "profile.json").read_text())

    def calls(self) -> list[list[str]]:
        """Return the flags of each call, from the progress bar's on."""
        file = self.root / "calls"
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return [line[line.index("--disable_progress_bar") + 1 :] for line in lines]


@pytest.fixture(autouse=True)
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Drawing takes longer than everything else; one test draws."""
    drawn: list[Path] = []
    monkeypatch.setattr(profiling, "draw_profile", lambda path, _: drawn.append(path))
    return drawn


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "predict.py").write_text(COMMAND)
    model = tmp_path / "model"
    for fold in (0, 1):
        (model / f"fold_{fold}").mkdir(parents=True)
        torch.save(CHECKPOINT, model / f"fold_{fold}" / "checkpoint_final.pth")
    content = {"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (model / "dataset.json").write_text(json.dumps(content))
    (model / "plans.json").write_text(json.dumps(make_plans()))
    for number, case in enumerate("ab"):
        image = scan(number)
        write_image(tmp_path / "images" / f"{case}_0000.nii.gz", image)
        for folder, threshold in (("labels", 100), ("answers", 100 + number)):  # of the first case all is right
            write_image(tmp_path / folder / f"{case}.nii.gz", (image > threshold).astype(np.uint8))
    return Place(tmp_path)


def test_the_command_is_what_a_user_would_type(place: Place):
    options = replace(place.options, command=("nnUNetv2_predict_from_modelfolder",), npp=1, nps=2)
    assert predict_command(place.inputs, FAST, options) == [
        *("nnUNetv2_predict_from_modelfolder", "-i", str(place.root / "images")),
        *("-o", str(place.root / "out" / "fast_export"), "-m", str(place.root / "model"), "-f", "0", "1"),
        *("-chk", "checkpoint_final.pth", "-device", "cpu", "-npp", "1", "-nps", "2", "--disable_progress_bar"),
        "--fast_export",
    ]


def test_a_profile_from_end_to_end(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(profiling, "draw_profile", draw_profile)
    document = profile(place.inputs, [STOCK, FAST], place.options)
    assert document == place.written
    assert failed(document, [STOCK, FAST]) == {}
    assert place.calls() == [[], ["--fast_export"]]
    stock, fast = (document["settings"][name] for name in ("stock", "fast_export"))
    assert stock["measured"]["stages"] is None
    assert fast["measured"]["stages"] == {"reading": 1.5, "preprocessing": 2, "network": 4}
    assert stock["measured"]["seconds_per_case"] == pytest.approx(stock["measured"]["seconds"] / 2, abs=1e-3)
    assert stock["measured"]["peak_memory_mb"] > 0
    assert stock["measured"]["peak_gpu_memory_mb"] is None
    assert len(stock["curves"]["cpu_percent"]["values"]) == len(stock["curves"]["cpu_percent"]["seconds"]) > 0
    assert stock["quality"]["tolerance_mm"] == 2
    assert stock["quality"]["cases"]["a"] == {"organ": {"dsc": 1, "nsd": 1}}
    assert 0.5 < stock["quality"]["cases"]["b"]["organ"]["dsc"] < 1
    assert stock["quality"]["mean"]["dsc"] == pytest.approx((1 + stock["quality"]["cases"]["b"]["organ"]["dsc"]) / 2)
    assert document["cases"] == ["a", "b"]
    assert document["options"]["folds"] == [0, 1]
    assert document["device"]["gpu"] is None
    assert set(document["versions"]) >= {"nnunetv2", "torch", "monai", "nnunetv2-ext"}
    log = (place.root / "out" / "stock.log").read_text()
    assert log.splitlines()[1:] == ["done with a", "done with b"]
    assert (place.root / "out" / "profile.png").stat().st_size > 10_000


def test_what_is_complete_is_not_run_again(place: Place, drawings: list[Path]):
    profile(place.inputs, [STOCK, FAST], place.options)
    before = place.written["settings"]
    place.calls()
    again = profile(place.inputs, [FAST, STOCK], place.options)
    assert place.calls() == []
    assert again["settings"] == before
    assert list(again["settings"]) == ["fast_export", "stock"]  # the order asked for
    more = profile(place.inputs, [Setting("more", ("--x",))], place.options)
    assert place.calls() == [["--x"]]
    assert list(more["settings"]) == ["more", "fast_export", "stock"]
    profile(place.inputs, [Setting("more", ("--y",))], place.options)  # another command of that name
    assert place.calls() == [["--y"]]
    overwritten = profile(place.inputs, [STOCK], replace(place.options, overwrite=True))
    assert place.calls() == [[]]
    assert list(overwritten["settings"]) == ["stock"]
    assert sorted(file.name for file in (place.root / "out").iterdir()) == [
        "profile.json",
        "stock",
        "stock.log",
    ]
    assert drawings == [place.root / "out" / "profile.png"] * 5


def test_an_interrupted_profile_keeps_what_is_done(place: Place, monkeypatch: pytest.MonkeyPatch):
    run = profiling.run_command

    def interrupted(command, *arguments, **more):
        if "--fast_export" in command:
            raise KeyboardInterrupt
        return run(command, *arguments, **more)

    monkeypatch.setattr(profiling, "run_command", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile(place.inputs, [STOCK, FAST], place.options)
    assert ["measured" in entry for entry in place.written["settings"].values()] == [True, False]
    monkeypatch.undo()
    place.calls()
    assert failed(profile(place.inputs, [STOCK, FAST], place.options), [STOCK, FAST]) == {}
    assert place.calls() == [["--fast_export"]]


def test_an_interrupted_comparison_keeps_the_prediction(place: Place, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(profiling, "_quality", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile(place.inputs, [STOCK], place.options)
    monkeypatch.undo()
    place.calls()
    assert "quality" in profile(place.inputs, [STOCK], place.options)["settings"]["stock"]
    assert place.calls() == []


def test_a_class_that_is_nowhere_has_no_value(place: Place):
    file = place.root / "model" / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"labels": {**LABELS, "absent": 2}}))
    document = profile(place.inputs, [STOCK], place.options)
    assert document == place.written
    quality = document["settings"]["stock"]["quality"]
    assert quality["classes"]["absent"] == quality["cases"]["a"]["absent"] == {"dsc": None, "nsd": None}
    assert quality["mean"] == quality["classes"]["organ"]
    assert re.search(r"^absent +- / -$", format_profile(document), re.M)


def test_labels_and_tolerance_need_no_new_prediction(place: Place):
    unlabelled = profile(replace(place.inputs, labels=None), [STOCK], place.options)
    assert "quality" not in unlabelled["settings"]["stock"]
    place.calls()
    loose = profile(place.inputs, [STOCK], place.options)["settings"]["stock"]["quality"]
    strict = profile(place.inputs, [STOCK], replace(place.options, tolerance_mm=0.0))["settings"]["stock"]["quality"]
    assert strict["mean"]["nsd"] < loose["mean"]["nsd"]
    assert place.calls() == []
    write_image(place.root / "labels" / "a.nii.gz", np.zeros((3, 3, 3), np.uint8))
    document = profile(place.inputs, [STOCK], place.options)
    assert "a.nii.gz has shape (3, 3, 3), expected (12, 16, 14)" in failed(document, [STOCK])["stock"]
    assert document["settings"]["stock"]["measured"] == unlabelled["settings"]["stock"]["measured"]
    assert place.calls() == []
    (place.root / "out" / "stock" / "a.nii.gz").unlink()
    write_image(place.root / "labels" / "a.nii.gz", np.zeros((12, 16, 14), np.uint8))
    assert failed(profile(place.inputs, [STOCK], place.options), [STOCK]) == {}
    assert place.calls() == [[]]  # a prediction was missing


def test_the_best_trade_is_of_settings_that_were_compared_with_the_same_labels(place: Place):
    profile(place.inputs, [FAST, STOCK], place.options)
    file = place.root / "out" / "profile.json"
    document = json.loads(file.read_text())
    document["settings"]["fast_export"]["measured"]["seconds_per_case"] = 0.0
    file.write_text(json.dumps(document))
    write_image(place.root / "labels" / "a.nii.gz", np.ones((12, 16, 14), np.uint8))
    options = replace(place.options, budget=0.5)
    assert profile(place.inputs, [STOCK], options)["trade"]["setting"] == "stock"
    assert profile(place.inputs, [STOCK, FAST], options)["trade"]["setting"] == "fast_export"


def test_a_setting_that_fails_does_not_stop_the_others(place: Place):
    settings = [OWN["fail"], OWN["lazy"], STOCK]
    document = profile(place.inputs, settings, place.options)
    reasons = failed(document, settings)
    assert list(reasons) == ["fail", "lazy"]
    log = place.root / "out" / "fail.log"
    assert re.search(rf"exit status 1\. Its output is in {log}, the end of it:\n(.*\n)*no such flag", reasons["fail"])
    assert reasons["lazy"].startswith(f"{place.root / 'out' / 'lazy' / 'a.nii.gz'} is missing although")
    assert "quality" in document["settings"]["stock"]
    assert re.search(r"^fail +- +- .*FAILED --fail$", format_profile(document), re.M)
    place.calls()
    profile(place.inputs, settings, place.options)
    assert place.calls() == [["--fail"], ["--lazy"]]  # failed ones are tried again


def test_a_folder_with_something_else_is_refused(place: Place):
    out = place.root / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match=r"out is not empty and has no profile\.json.*or pass --overwrite"):
        profile(place.inputs, [STOCK], place.options)
    profile(place.inputs, [STOCK], replace(place.options, overwrite=True))
    assert (out / "thesis.txt").read_text() == "all of it"
    (out / "profile.json").write_text("{")
    with pytest.raises(FileExistsError, match=r"profile\.json is no JSON \(.*\); pass --overwrite"):
        profile(place.inputs, [STOCK], place.options)
    (out / "stock" / "notes.txt").write_text("mine")  # nothing says any more that the folder is the profile's
    with pytest.raises(FileExistsError, match="stock is there and is none of this profile, expected it to be free"):
        profile(place.inputs, [STOCK], replace(place.options, overwrite=True))
    assert (out / "stock" / "notes.txt").read_text() == "mine"
    for folder in (place.root, place.root / "images"):
        with pytest.raises(ValueError, match="holds what is read .* pass another -o"):
            profile(place.inputs, [STOCK], replace(place.options, output=folder, overwrite=True))
    (place.root / "file").touch()
    with pytest.raises(FileExistsError, match="file is a file, expected a folder"):
        profile(place.inputs, [STOCK], replace(place.options, output=place.root / "file"))


def test_profiles_that_do_not_compare_are_refused(place: Place):
    profile(place.inputs, [STOCK], place.options)
    with pytest.raises(
        FileExistsError, match=r"folds differs \(\[0, 1\], now \[0\]\), and model; name another .* --overwrite"
    ):
        profile(replace(place.inputs, folds=[0]), [STOCK], place.options)
    with pytest.raises(FileExistsError, match=r"npp differs \(3, now 1\), and nps; "):
        profile(place.inputs, [STOCK], replace(place.options, npp=1, nps=1))
    os.utime(place.root / "images" / "a_0000.nii.gz", ns=(1, 1))
    with pytest.raises(FileExistsError, match=r"images differs \(the files changed\)"):
        profile(place.inputs, [STOCK], place.options)
    profile(place.inputs, [STOCK], replace(place.options, overwrite=True))


def test_a_device_that_is_not_there(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"-device is cuda, but torch finds none here; .* -device cpu"):
        profile(place.inputs, [STOCK], replace(place.options, device="cuda"))
    assert not (place.root / "out").exists()


def test_missing_inputs_are_named(place: Place):
    model, images, labels = (place.root / name for name in ("model", "images", "labels"))
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        find_inputs(place.root / "nowhere", images)
    with pytest.raises(FileNotFoundError, match=r"no fold_7/checkpoint_final\.pth; it has the folds \[0, 1\]"):
        find_inputs(model, images, folds=[7])
    with pytest.raises(FileNotFoundError, match=r"no fold of .* has best\.pth"):
        find_inputs(model, images, checkpoint="best.pth")
    with pytest.raises(FileNotFoundError, match=r"there is no folder of images .*nowhere; expected .*, pass -i"):
        find_inputs(model, place.root / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"labels has no image CASE_0000\.nii\.gz.*it has e\.g\. a\.nii\.gz"):
        find_inputs(model, labels)
    with pytest.raises(FileNotFoundError, match="there is no folder of labels .*nowhere; expected .* or no --labels"):
        find_inputs(model, images, place.root / "nowhere")
    (labels / "b.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/b\.nii\.gz is missing, expected a label map for each image"):
        find_inputs(model, images, labels)
    (labels / "a.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.nii\.gz, .*b\.nii\.gz are missing"):
        find_inputs(model, images, labels)
    (model / "plans.json").write_text("{")
    with pytest.raises(ValueError, match=r"plans\.json is no JSON"):
        find_inputs(model, images)


class RunsCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_no_command_is_started_on_a_model_that_holds_code(place: Place):
    file = place.root / "model" / "fold_1" / "checkpoint_final.pth"
    torch.save(CHECKPOINT | {"logging": RunsCode(place.root / "ran")}, file)
    with pytest.raises(ValueError, match=r"fold_1/checkpoint_final\.pth cannot be loaded .*, pass --trust_model$"):
        profile(place.inputs, [STOCK], place.options)
    assert not (place.root / "ran").exists()
    assert not (place.root / "out").exists()
    trusting = replace(place.options, trust_model=True)
    assert "measured" in profile(place.inputs, [STOCK], trusting)["settings"]["stock"]
    assert "--trust_model" in predict_command(place.inputs, FAST, trusting)
    assert "--trust_model" not in predict_command(place.inputs, FAST, place.options)


def test_no_command_is_started_on_plans_that_name_a_program(place: Place):
    plans = make_plans()
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["nonlin"] = "subprocess.Popen"
    (place.root / "model" / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="the plans name 'subprocess.Popen' as nonlin.*pass --trust_model$"):
        profile(place.inputs, [STOCK], place.options)
    assert not (place.root / "out").exists()


@pytest.mark.parametrize(
    "content",
    [{"settings": {"scans": {}}}, {"settings": {"scans": {"flags": []}}}, {"settings": ["scans"]}, {"version": 3}],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_profile_of_another_program_clears_nothing(place: Place, content, overwrite):
    (place.root / "out" / "scans").mkdir(parents=True)
    (place.root / "out" / "scans" / "a.nii.gz").write_bytes(b"irreplaceable")
    (place.root / "out" / "profile.json").write_text(json.dumps(content))
    with pytest.raises(
        FileExistsError, match=r"profile\.json was not written by nnUNetv2_ext profile; name another pl"
    ):
        profile(place.inputs, [STOCK], replace(place.options, overwrite=overwrite))
    assert (place.root / "out" / "scans" / "a.nii.gz").is_file()
    assert json.loads((place.root / "out" / "profile.json").read_text()) == content


def test_what_a_killed_profile_left_is_swept(place: Place):
    left = place.root / "out" / f"{files.PREFIX}{files._machine()}_999999999_0_profile.json"
    left.parent.mkdir()
    left.write_text("half")
    profile(place.inputs, [STOCK], replace(place.options, overwrite=True))
    assert not left.exists()


def test_packages_without_metadata_have_no_version(monkeypatch: pytest.MonkeyPatch):
    from importlib import metadata

    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert versions()["monai"] == "unknown"
    assert "openvino" not in versions()


def test_predictions_that_are_not_whole_are_no_measure(place: Place):
    label = place.root / "answers" / "b.nii.gz"
    whole = label.read_bytes()
    label.write_bytes(whole[: len(whole) // 2])
    document = profile(place.inputs, [STOCK], place.options)
    assert re.search(r"stock/b\.nii\.gz is cut off .* is the disk full\?", document["settings"]["stock"]["error"])
    assert "measured" not in document["settings"]["stock"]
    label.write_bytes(whole)
    assert "measured" in profile(place.inputs, [STOCK], place.options)["settings"]["stock"]
