"""What happens to cases that are finished but no longer right, and to runs that meet each other or a full disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import blosc2
import numpy as np
import pytest
import tifffile
from data.tiny_dataset import NAME, TinyDataset, make_plans, scan

from nnunet_ext import files
from nnunet_ext.data import preprocess
from nnunet_ext.data.preprocess import Summary, preprocess_unlabeled
from nnunet_ext.data.unlabeled_store import failed_cases, finished_cases, save_case


def run(processes: int = 1) -> Summary:
    return preprocess_unlabeled(777, "nnUNetPlans", "3d_fullres", processes, show_progress_bar=False)


def test_a_corrected_spacing_of_a_tiff_is_noticed(tiny: TinyDataset):
    tiny.write_dataset_json(file_ending=".tif")
    tiny.write_plans(make_plans() | {"image_reader_writer": "Tiff3DIO"})
    folder = tiny.raw / "imagesUnlabeled"
    folder.mkdir()
    for name in ("a", "b"):
        tifffile.imwrite(folder / f"{name}_0000.tif", scan(1))
        (folder / f"{name}.json").write_text('{"spacing": [2.4, 0.9, 0.8]}')
    target = run().folder
    (folder / "a.json").write_text('{"spacing": [4.8, 0.9, 0.8]}')
    summary = run()
    assert (summary.done, summary.kept) == (["a"], ["b"])
    assert json.loads((target / "a.json").read_text())["shape"] == [1, 24, 15, 12]
    (folder / "b.json").unlink()  # what the spacing is without it, is for the reader to know
    assert run().done == ["b"]


def test_a_stale_case_stays_until_its_new_version_is_written(tiny: TinyDataset, monkeypatch):
    for seed, name in enumerate("ab"):
        tiny.add_unlabeled(name, seed)
    folder = run().folder
    tiny.write_plans(make_plans(spacing=[1.0, 1.0, 2.0]))
    seen = []

    def stop_at_the_second(target, name, *arguments):
        seen.append(finished_cases(folder))
        if len(seen) == 2:
            raise KeyboardInterrupt
        save_case(target, name, *arguments)

    monkeypatch.setattr(preprocess.store, "save_case", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert seen == [["a", "b"], ["a", "b"]]
    assert finished_cases(folder) == ["a", "b"]


def test_what_failed_is_taken_back_once_scan_and_plans_are_as_they_were(tiny: TinyDataset):
    image = tiny.add_unlabeled("a", 1)
    folder = run().folder
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    good = image.rename(tiny.root / "kept.nii.gz")
    image.write_bytes(b"this is no image")
    assert [failure.case for failure in run().failures] == ["a"]
    assert finished_cases(folder) == []
    assert list(failed_cases(folder)) == ["a"]
    assert failed_cases(folder)["a"].startswith(f"{image} cannot be read (")
    assert [failure.case for failure in run().failures] == ["a"]
    good.rename(image)
    summary = run()
    assert (summary.done, summary.kept, failed_cases(folder)) == ([], ["a"], {})
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_a_full_disk_is_not_the_fault_of_a_scan_and_ends_the_run(tiny: TinyDataset, monkeypatch):
    for seed, name in enumerate("abc"):
        tiny.add_unlabeled(name, seed)
    folder = run().folder
    before = finished_cases(folder)
    tiny.write_plans(make_plans(spacing=[1.0, 1.0, 2.0]))
    asked = []

    def no_room(*_, **__):
        asked.append(1)
        raise RuntimeError("Error while creating the NDArray")

    monkeypatch.setattr(blosc2, "asarray", no_room)
    monkeypatch.setattr(files, "_free_bytes", lambda _: 1000)
    with pytest.raises(files.DiskFullError, match=r"b2nd cannot be written \(Error while .*\): no room on its disk"):
        run()
    assert len(asked) == 1
    assert finished_cases(folder) == before
    assert not list(folder.rglob(f"{files.PREFIX}*"))


def test_what_killed_runs_left_is_swept(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    folder = run().folder
    dead = [folder / ".b.b2nd.4194305.tmp", folder / ".b.4194305.json.tmp", folder / "valid" / ".b.b2nd.4194305.tmp"]
    alive = folder / f".b.b2nd.{os.getpid()}.tmp"
    for path in (*dead, alive):
        path.write_bytes(b"")
    assert run().kept == ["a"]
    assert [path.exists() for path in dead] == [False] * 3
    assert alive.exists()


HOLD = """
import sys
from nnunet_ext.files import only_here
with only_here(sys.argv[1], "preprocessed"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_at_once_and_nothing_is_lost(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    folder = run().folder
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(files.BusyError, match=rf"{folder} is being preprocessed by process {other.pid} on "):
            preprocess_unlabeled(777, "nnUNetPlans", "3d_fullres", 1, clean=True, show_progress_bar=False)
    assert finished_cases(folder) == ["a"]
    assert run().kept == ["a"]


def test_an_array_that_is_cut_off_is_made_again(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    folder = run().folder
    expected = blosc2.open(str(folder / "a.b2nd"))[...]
    (folder / "a.b2nd").write_bytes((folder / "a.b2nd").read_bytes()[:-9])
    assert run().done == ["a"]
    np.testing.assert_array_equal(blosc2.open(str(folder / "a.b2nd"))[...], expected)


def test_the_lock_lies_beside_the_folder(tiny: TinyDataset):
    tiny.add_unlabeled("a", 1)
    folder = run().folder
    assert folder == Path(tiny.root / "preprocessed" / NAME / "nnUNetPlans_3d_fullres_unlabeled")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
