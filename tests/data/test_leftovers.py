import os
import time
from pathlib import Path

import psutil
import pytest

from nnunet_ext.data.leftovers import sweep_all

DEAD = 4194305  # above the largest number that Linux gives


@pytest.mark.parametrize(
    "name", [".a.b2nd.{}.tmp", ".a.{}.json.tmp", ".a.npz.{}.tmp", ".dataset_fingerprint.json.{}.tmp"]
)
def test_files_of_dead_processes_are_removed_and_those_of_living_ones_stay(tmp_path, name):
    dead, alive = tmp_path / name.format(DEAD), tmp_path / name.format(os.getpid())
    for path in (dead, alive, tmp_path / "a.b2nd", tmp_path / ".other.tmp"):
        path.write_bytes(b"")
    assert sweep_all(tmp_path) == [dead]
    assert alive.exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_number_that_was_given_again_does_not_protect(tmp_path, monkeypatch):
    path = tmp_path / f".a.b2nd.{os.getpid()}.tmp"
    path.write_bytes(b"")
    later = type("Process", (), {"create_time": lambda _: path.stat().st_ctime + 2 * 24 * 3600})
    monkeypatch.setattr("psutil.Process", lambda _: later())
    assert sweep_all(tmp_path) == [path]


def test_a_file_that_is_renamed_meanwhile_is_no_error(tmp_path, monkeypatch):
    path = tmp_path / ".a.b2nd.1.tmp"
    path.write_bytes(b"")

    class Process:
        def __init__(self, number: int):
            path.unlink()

        def create_time(self) -> float:
            return time.time()

    monkeypatch.setattr(psutil, "Process", Process)
    assert sweep_all(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path: Path):
    assert sweep_all(tmp_path / "none") == []
