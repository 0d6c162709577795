"""``nnUNetv2_ext windows``."""

import re

import numpy as np
import pytest
import SimpleITK

from nnunet_ext.cli.main import main


def write(path, array, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), spacing=(1, 1, 3)):
    image = SimpleITK.GetImageFromArray(array)
    image.SetDirection(direction)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(path))
    return str(path)


@pytest.fixture
def ct(tmp_path):
    image = np.random.default_rng(0).integers(-1000, 1500, (6, 20, 24)).astype(np.int16)
    return write(tmp_path / "case_0000.nii.gz", image)


def test_a_picture_of_the_slice_that_is_asked_for(ct, tmp_path, capsys):
    assert main(["windows", "-i", ct, "-o", str(tmp_path / "out")]) == 0
    assert f"Wrote {tmp_path / 'out' / 'case.png'}" in capsys.readouterr().out
    picture = (tmp_path / "out" / "case.png").read_bytes()
    for more, same in ((["--slice", "3"], True), (["--slice", "6"], False), (["--windows", "lung:-1000:0"], False)):
        other = tmp_path / "other.png"
        assert main(["windows", "-i", ct, "-o", str(other), *more]) == 0
        assert (other.read_bytes() == picture) is same


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.arange(0, 2400).reshape(6, 20, 20),
            "has values from 0 to 2399, which are no Hounsfield units: air is about",
        ),
        (np.linspace(-3, 3, 2400).reshape(6, 20, 20), "has values from -3 to 3, which are no Hounsfield units"),
        (np.full((6, 20, 20), -1000), "has values from -1000 to -1000, which are no Hounsfield units"),
    ],
)
def test_images_that_are_no_ct_are_refused(tmp_path, capsys, array, message):
    file = write(tmp_path / "mr_0000.nii.gz", array.astype(np.float32))
    assert main(["windows", "-i", file, "-o", str(tmp_path / "a.png")]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert ("often -1024" in error) is bool(array.min() >= 0)
    assert not (tmp_path / "a.png").exists()


def test_other_wrong_input_is_one_line(ct, tmp_path, capsys):
    for more, message in (
        (["--slice", "7"], "--slice must lie between 1 and 6, the slices of case, got 7"),
        (["--windows", "a:0:1", "a:2:3"], "--windows has a name twice"),
    ):
        assert main(["windows", "-i", ct, "-o", str(tmp_path / "a.png"), *more]) == 1
        assert message in capsys.readouterr().err
    assert main(["windows", "-i", str(tmp_path / "none.nii.gz"), "-o", str(tmp_path)]) == 1
    assert "none.nii.gz is no file; -i takes the image file of a CT" in capsys.readouterr().err
    for text in ("lung", "lung:0:-4", ":0:1", "lung:a:b", "lung:0"):
        with pytest.raises(SystemExit):
            main(["windows", "-i", ct, "-o", str(tmp_path), "--windows", text])
        assert re.search(rf"expected NAME:LOWER:UPPER .* got '{text}'", capsys.readouterr().err)


def test_names_of_cases_may_have_dots_and_dollars(tmp_path):
    image = np.random.default_rng(0).integers(-1000, 1500, (3, 20, 24)).astype(np.int16)
    for name in ("1.2.840.1_0000.nii.gz", "p.1.mha", r"$\\a$_0000.nii.gz", "UPPER.NII.GZ"):
        write(tmp_path / "a.nii.gz", image)
        file = tmp_path / name
        write(file, image) if name.endswith("mha") else (tmp_path / "a.nii.gz").rename(file)
        case = name.removesuffix(".nii.gz").removesuffix(".mha").removesuffix(".NII.GZ").removesuffix("_0000")
        assert main(["windows", "-i", str(file), "-o", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out" / f"{case}.png").is_file()


def test_outputs_that_are_no_png_and_no_folder(ct, tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    for output in ("notes.txt", "picture.jpg"):
        assert main(["windows", "-i", ct, "-o", str(tmp_path / output)]) == 1
        assert f"-o {tmp_path / output} is neither a PNG nor a folder" in capsys.readouterr().err
    assert not (tmp_path / "picture.jpg").exists()
    (tmp_path / "folder.png").mkdir()
    assert main(["windows", "-i", ct, "-o", str(tmp_path / "folder.png")]) == 0
    assert (tmp_path / "folder.png" / "case.png").is_file()


def test_a_file_of_a_format_that_nobody_reads(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    assert main(["windows", "-i", str(tmp_path / "notes.txt"), "-o", str(tmp_path)]) == 1
    assert re.search(
        r"notes\.txt ends in none of .*\.nii\.gz.*, which nnU-Net reads; convert it", capsys.readouterr().err
    )
