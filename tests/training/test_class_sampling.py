"""Where classes lie in unlabelled cases: kept as nnU-Net keeps it, found in turns, drawn by the loader."""

import numpy as np
import pytest

from nnunet_ext.data.class_locations import read_class_locations, save_class_locations
from nnunet_ext.training.class_sampling import cases_of_turn


def test_voxels_of_each_class_are_kept(tmp_path):
    labels = np.zeros((4, 5, 6), int)
    labels[1, 2, 3] = 1
    labels[2:, :, 1] = 2
    save_class_locations(tmp_path / "places", "case", labels, [1, 2, 3], seed=0)
    found = read_class_locations(tmp_path / "places", "case", labels.shape)
    assert found[0].tolist() == [[0, 1, 2, 3]]
    assert {tuple(place) for place in found[1]} == {(0, *place) for place in np.argwhere(labels == 2).tolist()}
    assert len(found[2]) == 0


def test_regions_share_voxels(tmp_path):
    labels = np.zeros((4, 5, 6), int)
    labels[1, 2, 3], labels[1, 2, 4] = 1, 2
    save_class_locations(tmp_path, "case", labels, [(1, 2), (2,)], seed=0)
    assert [len(places) for places in read_class_locations(tmp_path, "case", labels.shape).values()] == [2, 1]


def test_of_many_voxels_ten_thousand_are_kept(tmp_path):
    save_class_locations(tmp_path, "case", np.ones((40, 40, 40), int), [1], seed=0)
    first = read_class_locations(tmp_path, "case", (40, 40, 40))[0]
    assert first.shape == (10_000, 4)
    save_class_locations(tmp_path, "case", np.ones((40, 40, 40), int), [1], seed=1)
    assert not np.array_equal(read_class_locations(tmp_path, "case", (40, 40, 40))[0], first)


@pytest.mark.parametrize("content", [None, b"", b"nothing"])
def test_what_is_missing_or_damaged_is_nothing(tmp_path, content):
    if content is not None:
        (tmp_path / "case.npz").write_bytes(content)
    assert read_class_locations(tmp_path, "case", (4, 5, 6)) == {}


def test_places_in_a_scan_that_was_replaced_are_none(tmp_path):
    save_class_locations(tmp_path, "case", np.ones((4, 5, 6), int), [1], seed=0)
    assert read_class_locations(tmp_path, "case", (4, 5, 6)) != {}
    assert read_class_locations(tmp_path, "case", (4, 5, 5)) == {}


def test_every_case_has_its_turn():
    names = [f"case_{number}" for number in range(7)]
    turns = [cases_of_turn(names, turn, 3, seed=5) for turn in range(7)]
    assert all(len(set(turn)) == 3 for turn in turns)
    counts = [sum(turn.count(name) for turn in turns) for name in names]
    assert counts == [3] * 7
    assert cases_of_turn(reversed(names), 2, 3, seed=5) == turns[2]
    assert sorted(cases_of_turn(names, 0, 50, seed=5)) == names
