"""The list of benchmarks/mask_propagation.py, and what it is compared with."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # last: nothing there shadows anything

import mask_propagation as benchmark
from _sparse_baselines import interpolated_shapes, nearest_slice

from nnunet_ext.trainers.names import find_trainer


def test_one_name_one_run():
    assert len({run.name for run in benchmark.RUNS}) == len(benchmark.RUNS)
    assert {run.coarse.parts for run in benchmark.RUNS} == {"CPS"}


def test_trainers_and_settings_are_there():
    for name in {run.trainer for run in benchmark.RUNS}:
        assert find_trainer(name).__name__ == name
    trainer = find_trainer("nnUNetTrainerPropagation")
    assert all(hasattr(trainer, name) for name in (*benchmark.SETTINGS, "propagation_enlarge"))


@pytest.fixture
def references():
    lower, upper = np.zeros((12, 12), int), np.zeros((12, 12), int)
    lower[2:10, 2:8], upper[2:10, 4:10] = 3, 3
    return {1: lower, 5: upper}


def test_nearest_slices(references):
    found = nearest_slice(references, 7)
    assert [index for index in range(7) if (found[index] == references[1]).all()] == [0, 1, 2, 3]


def test_shapes_move_from_one_slice_to_the_next(references):
    found = interpolated_shapes(references, 7)
    for index, reference in ((0, 1), (1, 1), (5, 5), (6, 5)):
        np.testing.assert_array_equal(found[index], references[reference])
    columns = np.flatnonzero((found[3] == 3).any(0))
    assert (columns[0], columns[-1]) == (3, 8)  # between 2 to 7 and 4 to 9
    assert (found[2] == references[1]).mean() > (found[4] == references[1]).mean()
