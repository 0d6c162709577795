import os

import pytest

from nnunet_ext.data.pool import WORKER_DIED, WorkerDiedError, map_isolated


def square(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number**2


def die_of_zero(number: int) -> int:
    if number == 0:
        os._exit(9)
    return square(number)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_an_exception_is_that_cases_own(num_processes):
    results = {
        name: (result, error) for name, result, error in map_isolated(square, {"a": (2,), "b": (-1,)}, num_processes)
    }
    assert results["a"] == (4, None)
    assert results["b"][0] is None
    assert str(results["b"][1]) == "-1 is negative"


def test_a_worker_that_dies_costs_its_own_case_only():
    tasks = {f"n{i}": (i,) for i in [3, 0, 1, 2, 4, 5, 6, 7, 8]}
    results = {name: (result, error) for name, result, error in map_isolated(die_of_zero, tasks, 2)}
    assert set(results) == set(tasks)
    assert isinstance(results["n0"][1], WorkerDiedError)
    assert str(results["n0"][1]) == WORKER_DIED
    assert {name: result for name, (result, _) in results.items() if name != "n0"} == {
        name: number**2 for name, (number,) in tasks.items() if name != "n0"
    }


def test_one_process_can_be_spawned():
    assert [error for _, _, error in map_isolated(die_of_zero, {"a": (1,)}, 1, always_spawn=True)] == [None]
    ((name, result, error),) = map_isolated(die_of_zero, {"a": (0,)}, 1, always_spawn=True)
    assert (name, result) == ("a", None)
    assert isinstance(error, WorkerDiedError)


def test_no_task_is_no_work():
    assert list(map_isolated(square, {}, 2)) == []


def leave(number: int) -> int:
    raise SystemExit(number)


def test_leaving_is_no_success():
    ((name, result, error),) = map_isolated(leave, {"a": (3,)}, 1, always_spawn=True)
    assert (name, result) == ("a", None)
    assert "SystemExit" in str(error)
