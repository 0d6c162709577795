"""Parts of a profile: settings, measures, cases and tables, without a prediction."""

import json
import re
from pathlib import Path

import pytest

from nnunet_ext.evaluation.inputs import list_cases
from nnunet_ext.evaluation.profile import measures, read_stages
from nnunet_ext.evaluation.settings import SETTINGS, Setting, choose_settings, describe_settings, parse_setting
from nnunet_ext.evaluation.table import align, format_profile
from nnunet_ext.evaluation.usage import Curve, Usage


def test_default_settings_and_those_with_values():
    names = [setting.name for setting in choose_settings()]
    assert names == [
        *("stock", "no_mirroring", "step_0.7", "fast_export", "fast"),
        *("engine", "engine_bf16", "skip_background", "fastest", "forced_paper"),
    ]
    assert [some.name for some in choose_settings(target_spacing=(1, 1, 2.5), max_voxels=7)[len(names) :]] == [
        "target",
        "max_voxels",
    ]
    target, voxels = choose_settings(["target", "max_voxels"], (), (1.0, 1.25, -1.0), 10**7)
    assert target.flags == ("--target_spacing", "1", "1.25", "-1", "--fast_export")
    assert voxels.flags == ("--max_voxels", "10000000", "--fast_export")
    flags = {setting.name: " ".join(setting.flags) for setting in SETTINGS.values()}
    assert flags["stock"] == ""
    assert flags["no_mirroring"] == "--disable_tta"
    assert flags["step_0.7"] == "-step_size 0.7"
    assert flags["fast"] == "--fast_export --disable_tta -step_size 0.7"
    assert flags["forced_paper"] == "--forced_spacing --fast_export"
    assert flags["forced_code"] == "--forced_spacing 1 1 1.5 --fast_export"
    assert flags["engine"] == "--fast_export --engine auto"
    assert flags["engine_bf16"] == "--fast_export --engine auto --precision bfloat16"
    assert flags["skip_background"] == "--fast_export --skip_background"
    together = "--fast_export --disable_tta -step_size 0.7 --engine auto --precision bfloat16 --skip_background"
    assert flags["fastest"] == together
    for setting in SETTINGS.values():
        assert re.search(rf"^  {re.escape(setting.name)} .*{re.escape(setting.summary)}$", describe_settings(), re.M)


def test_own_settings():
    own = parse_setting('my.own="--x=3" -step_size 0.9')
    assert own.flags == ("--x=3", "-step_size", "0.9")
    assert [some.name for some in choose_settings(["my.own", "stock"], [own])] == ["my.own", "stock"]
    assert [some.name for some in choose_settings(["stock"], [own])] == ["stock", "my.own"]
    assert choose_settings(None, [own])[-1] == own
    assert parse_setting("plain=").flags == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("--disable_tta=x", "letters, digits .* got '--disable_tta'"),
        ("coarse", r"expected NAME=FLAGS, got 'coarse'; write e\.g\. --setting"),
        ("a/b=--disable_tta", r"letters, digits and _ \. \+ -, not ending in .*, got 'a/b'"),
        ("a.log=--disable_tta", "got 'a.log'"),
        ("a=disable_tta", "flags of setting 'a' must begin with a flag, got 'disable_tta'"),
        ("a='", "flags of setting 'a' cannot be split into words"),
        ("a=--x -o elsewhere", "setting 'a' has -o, which is the profile's to give; .* so remove -o"),
    ],
)
def test_wrong_own_settings(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_setting(text)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            {"names": ["stok"]},
            "there is no setting 'stok', expected some of: stock, no_mirroring, .*; correct the name",
        ),
        ({"names": ["stock", "stock"]}, "setting 'stock' is named twice"),
        ({"names": ["target"]}, "setting 'target' needs a value, got none; pass --target_spacing SX SY SZ"),
        ({"names": ["max_voxels"]}, "setting 'max_voxels' needs a value, got none; pass --max_voxels N"),
        ({"user_settings": [Setting("stock")]}, "there are two settings named 'stock'.*give yours another name"),
        ({"user_settings": [Setting("target")]}, "there are two settings named 'target'"),
        ({"user_settings": [Setting("a"), Setting("a")]}, "there are two settings named 'a'"),
    ],
)
def test_wrong_choices(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        choose_settings(**arguments)


def test_measures():
    # memory of 0, 4, 0 MB at 0, 1, 3 s: an area of 2 + 4
    usage = Usage(cpu_seconds=3.0, peak_memory_mb=70.0, gpu_memory_mb=Curve([0.0, 1.0, 3.0], [0.0, 4.0, 0.0]))
    found = measures(10.0, usage, 4, {"network": 1.0})
    assert found == {
        "seconds": 10,
        "seconds_per_case": 2.5,
        "stages": {"network": 1},
        "peak_memory_mb": 70,
        "peak_gpu_memory_mb": 4,
        "gpu_memory_area_mb_s": 6,
        "gpu_memory_area_mb_s_per_case": 1.5,
        "cpu_area_percent_s": 300,
        "cpu_area_percent_s_per_case": 75,
    }
    without = measures(10.0, Usage(), 4)
    assert [key for key, value in without.items() if value is None] == [
        "stages",
        "peak_gpu_memory_mb",
        "gpu_memory_area_mb_s",
        "gpu_memory_area_mb_s_per_case",
    ]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"cases": {}}', '{"cases": {"a": {}}}', '{"cases": {"a": {"seconds": {}}}}']
)
def test_reports_without_stages(tmp_path: Path, text):
    report = tmp_path / "spacing_report.json"
    assert read_stages(report) is None
    report.write_text(text)
    assert read_stages(report) is None


def test_stages_that_every_case_has_count(tmp_path: Path):
    report = tmp_path / "spacing_report.json"
    cases = {"a": {"seconds": {"network": 1, "writing": 2, "else": 9}}, "b": {"seconds": {"reading": 1, "network": 4}}}
    report.write_text(json.dumps({"cases": cases}))
    assert read_stages(report) == {"network": 2.5}


def test_cases_and_channels(tmp_path: Path):
    for name in ("a_b_0000", "a_b_0001", "c_0000"):
        (tmp_path / f"{name}.nrrd").touch()
    with pytest.raises(FileNotFoundError, match=r"c_0001\.nrrd is missing, expected 2 channel\(s\) a case"):
        list_cases(tmp_path, ".nrrd", 2)
    (tmp_path / "c_0001.nrrd").touch()
    cases = list_cases(tmp_path, ".nrrd", 2)
    assert {name: [image.name for image in images] for name, images in cases.items()} == {
        "a_b": ["a_b_0000.nrrd", "a_b_0001.nrrd"],
        "c": ["c_0000.nrrd", "c_0001.nrrd"],
    }
    (tmp_path / "d.nrrd").touch()
    with pytest.raises(FileNotFoundError, match=r"d\.nrrd has no channel number, expected CASE_0000\.nrrd"):
        list_cases(tmp_path, ".nrrd", 2)


def test_tables():
    assert align([["a", "b"], ["long", "1"]]) == "a     b\nlong  1"
    measured = measures(3.0, Usage(cpu_seconds=1.0, peak_memory_mb=2.4), 2, {"reading": 0.25, "network": 0.5})
    quality = {"tolerance_mm": 2.0, "mean": {"dsc": 0.5, "nsd": None}, "classes": {"organ": {"dsc": 0.5, "nsd": None}}}
    entries = {
        "fast": {"flags": ["-step_size", "0.7"], "measured": measured, "quality": quality},
        "stock": {"flags": [], "measured": measured | {"stages": None}},
    }
    assert format_profile({"settings": entries}).splitlines() == [
        "setting  s/case  RAM MB  GPU MB  GPU MB s/case  CPU % s/case     DSC  NSD 2 mm  flags",
        "fast       1.50       2       -              -            50  0.5000         -  -step_size 0.7",
        "stock      1.50       2       -              -            50       -         -  (no flag)",
        "",
        "Seconds a case of each stage; stages of different cases run at the same time:",
        "",
        "setting  reading  network",
        "fast       0.250    0.500",
        "",
        "DSC / NSD (2 mm) of each class, mean over the cases that have it:",
        "",
        "class       fast",
        "organ  0.500 / -",
    ]
