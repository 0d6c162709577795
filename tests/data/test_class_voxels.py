"""Voxels of each label, counted once."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from nnunet_ext.data.class_voxels import cache_file, class_voxels


class Dataset:
    """Two cases in nnU-Net's older format; notes which were read."""

    def __init__(self, folder):
        self.source_folder = str(folder)
        self.identifiers = ["a", "b"]
        self.read = []

    def load_case(self, name):
        self.read.append(name)
        return None, np.load(f"{self.source_folder}/{name}.npz")["seg"], None, {}


def save(folder, name, seg):
    np.savez_compressed(folder / f"{name}.npz", seg=np.array(seg, np.int16)[None])


@pytest.fixture
def preprocessed(tmp_path):
    folder = tmp_path / "nnUNetPlans_2d"
    folder.mkdir()
    save(folder, "a", [[-1, 0, 0], [2, 2, 0]])
    save(folder, "b", [[1, 1], [300, 1]])
    return SimpleNamespace(dataset=Dataset(folder), folder=folder, cache=cache_file(tmp_path, "nnUNetPlans_2d"))


COUNTS = {"a": {-1: 1, 0: 3, 2: 2}, "b": {1: 3, 300: 1}}


def test_counts(preprocessed):
    assert class_voxels(preprocessed.dataset, preprocessed.cache) == COUNTS
    assert preprocessed.cache.name == "class_voxels_nnUNetPlans_2d.json"
    assert preprocessed.cache.parent == preprocessed.folder.parent  # nnU-Net wants one kind of files among the cases


def test_only_what_changed_is_counted_again(preprocessed, capfd):
    class_voxels(preprocessed.dataset, preprocessed.cache, progress=False)
    preprocessed.dataset.read.clear()
    assert class_voxels(preprocessed.dataset, preprocessed.cache) == COUNTS
    assert preprocessed.dataset.read == []
    assert capfd.readouterr().err == ""
    file = preprocessed.folder / "a.npz"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1_000_000_000))
    assert class_voxels(preprocessed.dataset, preprocessed.cache, progress=False) == COUNTS
    assert preprocessed.dataset.read == ["a"]
    preprocessed.dataset.read.clear()
    save(preprocessed.folder, "b", [[0, 0, 0, 0, 0]])
    assert class_voxels(preprocessed.dataset, preprocessed.cache)["b"] == {0: 5}
    assert preprocessed.dataset.read == ["b"]
    assert "counting the voxels of each class" in capfd.readouterr().err


def test_cases_of_other_folds_stay_in_the_file(preprocessed):
    preprocessed.dataset.identifiers = ["a"]
    assert class_voxels(preprocessed.dataset, preprocessed.cache).keys() == {"a"}
    preprocessed.dataset.identifiers = ["b"]
    assert class_voxels(preprocessed.dataset, preprocessed.cache).keys() == {"b"}
    assert json.loads(preprocessed.cache.read_text()).keys() == {"a", "b"}


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3, "b": {"file": null}}'])
def test_a_damaged_file_is_made_anew(preprocessed, text):
    preprocessed.cache.write_text(text)
    assert class_voxels(preprocessed.dataset, preprocessed.cache) == COUNTS
    assert json.loads(preprocessed.cache.read_text())["a"]["voxels"] == {"-1": 1, "0": 3, "2": 2}


def test_where_nothing_can_be_written(preprocessed, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr("nnunet_ext.data.class_voxels.write_json", refuse)
    assert class_voxels(preprocessed.dataset, preprocessed.cache) == COUNTS


def test_a_damaged_case_is_named(preprocessed):
    (preprocessed.folder / "b.npz").write_bytes(b"no zip")
    with pytest.raises(RuntimeError, match="the preprocessed case b in .*nnUNetPlans_2d cannot be read .*preprocess"):
        class_voxels(preprocessed.dataset, preprocessed.cache)
    assert not preprocessed.cache.exists()
