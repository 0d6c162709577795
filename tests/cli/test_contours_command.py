"""``nnUNetv2_ext contours``."""

import json
import re

import numpy as np
import pytest
import SimpleITK
from data.tiny_dataset import make_plans
from figures.made_up import labels_of
from PIL import Image

from nnunet_ext.cli.main import main

PICTURES = {f"case_{n}.png" for n in range(3)}


def write(path, array, spacing=(1.0, 1.0, 1.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path))


@pytest.fixture
def dataset(tmp_path):
    for case in range(3):
        write(tmp_path / f"labelsTr/case_{case}.nii.gz", labels_of(case))
        write(tmp_path / f"imagesTr/case_{case}_0000.nii.gz", labels_of(case).astype(np.float32) * 50)
    content = {"labels": {"background": 0, "liver": 1, "adrenal": 2, "ignore": 3}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def run(*arguments):
    return main(["contours", *(str(argument) for argument in arguments), "--no_pbar"])


def test_a_picture_for_each_file_and_a_table(dataset, capsys):
    assert run("-i", dataset / "labelsTr", "-o", dataset / "out") == 0
    assert sorted(path.name for path in (dataset / "out").iterdir()) == [f"case_{n}.png" for n in range(3)]
    printed = capsys.readouterr().out
    assert re.search(r"^adrenal +100% \(100%\)$", printed, re.MULTILINE)
    assert re.search(r"^liver +73% \(73%\)$", printed, re.MULTILINE)  # 240 voxels, 2 x 8 x 4 inside
    with Image.open(dataset / "out" / "case_0.png") as picture:
        shown = {tuple(pixel) for pixel in np.asarray(picture.convert("RGB")).reshape(-1, 3)}
    assert {(31, 119, 180), (255, 127, 14)} <= shown  # the contours of both labels, opaque


def test_one_bad_file_does_not_cost_the_others(dataset, capsys):
    (dataset / "labelsTr" / "case_1.nii.gz").write_bytes(b"no image")
    write(dataset / "labelsTr" / "case_2.nii.gz", np.zeros((6, 14, 12), np.uint8))
    assert run("-i", dataset / "labelsTr", "-o", dataset / "out") == 1
    assert [path.name for path in (dataset / "out").iterdir()] == ["case_0.png"]
    error = capsys.readouterr().err
    assert re.search(r"failed: .*case_1.nii.gz", error)
    assert re.search(r"failed: .*case_2.nii.gz has no foreground label", error)


def test_an_image_on_another_grid_is_named(dataset, capsys):
    write(dataset / "imagesTr" / "case_1_0000.nii.gz", np.zeros((6, 14, 11), np.float32))
    assert run("-i", dataset / "labelsTr", "-o", dataset / "out") == 1
    assert re.search(r"case_1.nii.gz has shape \(6, 14, 12\), but .*case_1_0000.nii.gz has", capsys.readouterr().err)


def plans_of(folder, spacing, transpose=(0, 1, 2)):
    content = make_plans() | {"transpose_forward": list(transpose)}
    content["configurations"]["3d_fullres"]["spacing"] = list(spacing)
    content["configurations"]["2d"]["spacing"] = list(spacing)[1:]
    (folder / "plans.json").write_text(json.dumps(content))
    return folder / "plans.json"


def test_labels_as_training_sees_them(dataset, capsys):
    fine = ("-p", plans_of(dataset, (0.5, 0.5, 0.5)))
    run("-i", dataset / "labelsTr", "-o", dataset / "fine", *fine)
    assert re.search(r"^liver +4\d% ", capsys.readouterr().out, re.MULTILINE)  # 8 x 20 x 12, 6 x 18 x 10 inside
    run("-i", dataset / "labelsTr", "-o", dataset / "mm", *fine, "--thickness_mm", 1)
    assert re.search(r"^liver +7\d% ", capsys.readouterr().out, re.MULTILINE)  # 4 x 16 x 8 of them inside
    run("-i", dataset / "labelsTr", "-o", dataset / "2d", *fine, "-c", "2d")
    assert re.search(r"^liver +2\d% ", capsys.readouterr().out, re.MULTILINE)  # 4 slices, 18 x 10 of 20 x 12 inside
    # x first, as plans put the coarsest axis; 4 mm there are no neighbours
    run("-i", dataset / "labelsTr", "-o", dataset / "turned", "-p", plans_of(dataset, (4, 1, 1), (2, 0, 1)))
    assert re.search(r"^liver +60% ", capsys.readouterr().out, re.MULTILINE)  # 10 x 4, 8 x 2 of them inside


def test_a_relative_folder_finds_names_and_images(dataset, capsys, monkeypatch):
    monkeypatch.chdir(dataset / "labelsTr")
    assert run("-i", ".", "-o", dataset / "out") == 0
    assert "adrenal" in capsys.readouterr().out


def test_many_classes_of_which_few_are_there(dataset, capsys):
    labels = {"background": 0} | {f"organ_{n}": n for n in range(1, 118)}
    (dataset / "dataset.json").write_text(json.dumps({"labels": labels}))
    many = np.zeros((6, 14, 12), np.uint8)
    many[2:4] = np.arange(1, 169).reshape(14, 12).clip(0, 40)
    write(dataset / "labelsTr" / "case_0.nii.gz", many)
    assert run("-i", dataset / "labelsTr", "-o", dataset / "out") == 0
    printed = capsys.readouterr().out
    assert "organ_40 " in printed
    assert "organ_41 " not in printed


def test_files_without_images_and_names(tmp_path, capsys):
    write(tmp_path / "any" / "a.nrrd", labels_of(0))
    assert run("-i", tmp_path / "any", "-o", tmp_path / "out", "--kernel", 1, 3, 3) == 0
    assert "label 2" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_two_dimensional_files(tmp_path):
    (tmp_path / "labelsTr").mkdir()
    Image.fromarray(labels_of(0)[3]).save(tmp_path / "labelsTr" / "a.png")
    assert run("-i", tmp_path / "labelsTr", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-i", "nowhere"], "nowhere is no folder; give the folder of the label files"),
        (["-i", "{root}"], "has no label files"),
        (["-i", "{root}/labelsTr", "-o", "{root}/imagesTr"], "is not empty; give another folder, or --overwrite"),
        (["-i", "{root}/labelsTr", "-o", "{root}/labelsTr"], "holds the label files, which pictures might replace"),
        (["-i", "{root}/labelsTr", "--kernel", "3", "3"], "--kernel takes one or three numbers, got 2"),
        (["-i", "{root}/labelsTr", "-p", "{root}/none.json"], "none.json is no file; -p takes the plans file"),
        (["-i", "{root}/labelsTr", "-p", "{root}/plans.json", "-c", "4d"], "has no configuration 4d; -c takes one of"),
    ],
)
def test_wrong_input_is_one_line(dataset, capsys, arguments, message):
    plans_of(dataset, (1, 1, 1))
    arguments = [argument.format(root=dataset) for argument in arguments]
    status = run(*arguments, *(["-o", dataset / "out"] if "-o" not in arguments else []))
    error = capsys.readouterr().err
    assert status == 1
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", 'has no usable "labels" .*expected names and numbers'),
        ('{"labels": {"0": "background"}}', 'has no usable "labels" .*expected names and numbers'),
        ("no json", r"is no JSON \(line 1, column 1: .*\); correct it"),
    ],
)
def test_a_dataset_json_without_labels_is_named(dataset, capsys, content, message):
    (dataset / "dataset.json").write_text(content)
    assert run("-i", dataset / "labelsTr", "-o", dataset / "out") == 1
    assert re.search(rf"dataset\.json {message}", capsys.readouterr().err)


def test_another_box_with_a_thickness_in_mm(dataset, capsys):
    assert run("-i", dataset / "labelsTr", "-o", dataset / "out", "--kernel", 5, "--thickness_mm", 2) == 1
    error = capsys.readouterr().err
    assert "a thickness in mm counts in boxes of 3 voxels, got a kernel of 5" in error
    assert len(error.splitlines()) == 1
    assert not (dataset / "out").exists()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "thin"])
def test_thickness_must_be_a_positive_number(dataset, capsys, value):
    with pytest.raises(SystemExit):
        run("-i", dataset / "labelsTr", "-o", dataset / "out", f"--thickness_mm={value}")
    assert f"expected a positive number, got '{value}'" in capsys.readouterr().err


def test_overwrite_deletes_nothing(dataset):
    out = dataset / "out"
    (out / "folder").mkdir(parents=True)
    for name in ("notes.txt", "other.png", "folder/case_0.png"):
        (out / name).write_text("mine")
    assert run("-i", dataset / "labelsTr", "-o", out) == 1
    assert run("-i", dataset / "labelsTr", "-o", out, "--overwrite") == 0
    assert {path.name for path in out.iterdir()} == {"notes.txt", "other.png", "folder", *PICTURES}
    assert all((out / name).read_text() == "mine" for name in ("notes.txt", "other.png", "folder/case_0.png"))


def test_labels_are_never_replaced_by_their_pictures(tmp_path, capsys):
    """Label files of two dimensions may be PNG, too."""
    write(tmp_path / "labelsTr/case_0.png", labels_of(0)[2])
    before = (tmp_path / "labelsTr/case_0.png").read_bytes()
    assert run("-i", tmp_path / "labelsTr", "-o", tmp_path / "labelsTr" / "..", "--overwrite") == 0
    assert run("-i", tmp_path / "labelsTr", "-o", tmp_path / "labelsTr", "--overwrite") == 1
    assert "holds the label files, which pictures might replace; give another folder (-o)" in capsys.readouterr().err
    assert (tmp_path / "labelsTr/case_0.png").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"plans\.json is no JSON .*; -p takes a plans file of nnU-Net"),
        ("{}", r'plans\.json has no "configurations"; -p takes a plans file of nnU-Net'),
        ("[]", r"plans\.json holds \[\], expected an object"),
    ],
)
def test_damaged_plans_are_one_line(dataset, capsys, content, message):
    (dataset / "plans.json").write_text(content)
    assert run("-i", dataset / "labelsTr", "-o", dataset / "out", "-p", dataset / "plans.json") == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (dataset / "out").exists()
