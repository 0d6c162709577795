import json
import os

import numpy as np
import pytest
from data.tiny_dataset import TinyDataset, scan, tiny, write_image
from PIL import Image

from nnunet_ext import files
from nnunet_ext.cli.main import main
from nnunet_ext.files import only_here

__all__ = ["tiny"]


@pytest.fixture
def dataset(tiny: TinyDataset) -> TinyDataset:
    listed = {}
    for seed, name in enumerate("lmn"):
        image, label = tiny.raw / f"{name}_0000.nii.gz", tiny.raw / f"{name}.nii.gz"
        write_image(image, scan(seed))
        write_image(label, (scan(seed) > 110).astype(np.uint8))
        listed[name] = {"images": [str(image)], "label": str(label)}
        tiny.add_unlabeled(f"u{name}", 10 + seed)
    tiny.write_dataset_json(dataset=listed)
    return tiny


def command(*more: str) -> int:
    return main(["fingerprint", "-d", "777", "-np", "1", "--no_pbar", *more])


def test_it_draws_prints_windows_and_reads_nothing_twice(dataset: TinyDataset, capsys, monkeypatch):
    assert command() == 0
    printed = capsys.readouterr().out
    for group in ("labelled", "unlabelled", "foreground"):
        assert f"{group:<11} channel channel0: clipping window " in printed
    assert "No scan is unlike the others." in printed
    target = dataset.preprocessed / "fingerprint.png"
    with Image.open(target) as image:
        pixels = np.asarray(image.convert("RGB"))
    for colour in ((0, 114, 178), (230, 159, 0), (0, 158, 115)):  # one curve a group
        assert (pixels == colour).all(-1).sum() > 50
    assert not (dataset.preprocessed / "dataset_fingerprint.json").exists()
    monkeypatch.setattr("nnunet_ext.fingerprints.case_statistics.read_checked", lambda *_: pytest.fail("read again"))
    left = dataset.root / "new" / f"{files.PREFIX}{files._machine()}_999999999_0_x.png"
    left.parent.mkdir()
    left.touch()  # of a killed run
    assert command("-o", str(dataset.root / "new" / "x.png")) == 0
    assert not left.exists()
    assert (dataset.root / "new" / "x.png").stat().st_size > 10000


def test_outliers_are_named(dataset: TinyDataset, capsys):
    write_image(dataset.raw / "imagesUnlabeled" / "odd_0000.nii.gz", 40 * scan(5), spacing=(1, 1, 5))
    assert command() == 0
    printed = capsys.readouterr().out
    assert "WARNING: intensities unlike the others (1 case(s)):\n  odd: channel channel0" in printed
    assert "WARNING: spacing unlike the others (1 case(s)):\n  odd: 1 x 1 x 5 mm" in printed


def test_labels_that_dataset_json_does_not_name_are_told(dataset: TinyDataset, capsys):
    label = dataset.raw / "m.nii.gz"
    write_image(label, np.where(scan(1) > 110, 9, 1).astype(np.uint8))
    assert command() == 0
    printed = capsys.readouterr().out
    assert f"label values that dataset.json does not have (1 case(s)):\n  m: {label} has 9; named are 0, 1" in printed


def test_a_bad_scan_is_listed_and_the_status_is_1(dataset: TinyDataset, capsys):
    (dataset.raw / "imagesUnlabeled" / "bad_0000.nii.gz").write_bytes(b"no image")
    assert command() == 1
    captured = capsys.readouterr()
    assert "Wrote " in captured.out
    assert "bad_0000.nii.gz cannot be read" in captured.err


def test_several_channels_and_no_label(tiny: TinyDataset):
    tiny.write_dataset_json(channels=2, numTraining=0)
    for seed in range(3):
        for channel in range(2):
            tiny.add_unlabeled(f"u{seed}", seed + 5 * channel, channel)
    from nnunet_ext.data.unlabeled_only import unlabelled_only
    from nnunet_ext.fingerprints.cases import case_table, read_cases

    table = case_table(tiny.raw.name, unlabelled_only(tiny.raw))
    assert read_cases(table, 1, show_progress_bar=False) == 3
    assert command() == 0


def test_unknown_dataset_is_one_clear_error(tiny: TinyDataset, capsys):
    assert main(["fingerprint", "-d", "123", "-np", "1"]) == 1
    assert "error: " in capsys.readouterr().err
    content = json.loads((tiny.raw / "dataset.json").read_text())
    assert content["numTraining"] == 2


def test_pipes_wrong_json_and_a_second_command_are_clear_errors(dataset: TinyDataset, capsys):
    pipe = dataset.raw / "imagesUnlabeled" / "pipe_0000.nii.gz"
    os.mkfifo(pipe)
    left = dataset.preprocessed / ".fingerprint.png.4194305.tmp"
    left.write_bytes(b"")
    assert command() == 1
    assert f"{pipe} is no regular file but a pipe" in capsys.readouterr().err
    assert not left.exists()
    with only_here(dataset.preprocessed / "fingerprint_cases", "fingerprinted"):
        assert command() == 1
    assert f"error: {dataset.preprocessed}/fingerprint_cases is being fingerprinted by" in capsys.readouterr().err
    (dataset.raw / "dataset.json").write_text("{")
    assert command() == 1
    assert f"error: {dataset.raw}/dataset.json is no JSON (line 1, column 2: " in capsys.readouterr().err


def test_parts_of_the_cases_and_no_picture(dataset: TinyDataset, capsys):
    bad = dataset.raw / "imagesUnlabeled" / "zz_0000.nii.gz"  # the last of seven cases
    bad.write_bytes(b"no image")
    folder = dataset.preprocessed / "fingerprint_cases"
    assert command("--only_cases", "-num_parts", "2", "-part_id", "1") == 0
    printed = capsys.readouterr().out
    assert printed == f"{dataset.raw.name}, part 1 of 2: 3 case(s) read, 0 failed, in {folder}\n"
    assert command("--only_cases", "-num_parts", "2", "-part_id", "0") == 1
    captured = capsys.readouterr()
    assert "part 0 of 2: 4 case(s) read, 1 failed" in captured.out
    assert "zz_0000.nii.gz cannot be read" in captured.err
    assert not (dataset.preprocessed / "fingerprint.png").exists()
    bad.unlink()
    assert command("--only_cases") == 0
    assert f"{dataset.raw.name}, all: 0 case(s) read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (("-num_parts", "2"), "a picture needs all; add --only_cases"),
        (("-part_id", "1"), "a picture needs all; add --only_cases"),
        (("--only_cases", "-o", "x.png"), "-o names a picture (x.png), but --only_cases draws none"),
        (("--only_cases", "-num_parts", "2", "-part_id", "5"), "-part_id is 5, expected 0 to 1"),
    ],
)
def test_options_of_parts_that_do_not_fit(dataset: TinyDataset, capsys, more, complaint):
    assert command(*more) == 1
    assert complaint in capsys.readouterr().err
    assert not (dataset.preprocessed / "fingerprint_cases").exists()
