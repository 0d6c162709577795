import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from nnunet_ext.data.in_flight import InFlight
from nnunet_ext.data.pool import REMEDY, WORKER_DIED, WorkerDiedError, map_isolated


def square(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number**2


def die_of_zero(number: int) -> int:
    if number == 0:
        os._exit(9)
    return square(number)


def die_the_first_time(note: str) -> str:
    if not os.path.exists(note):
        os.mkdir(note)
        os._exit(9)
    return "done"


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
    assert str(results["n0"][1]) == f"{WORKER_DIED}; {REMEDY}"
    assert {name: result for name, (result, _) in results.items() if name != "n0"} == {
        name: number**2 for name, (number,) in tasks.items() if name != "n0"
    }


def test_one_process_can_be_spawned():
    assert [error for _, _, error in map_isolated(die_of_zero, {"a": (1,)}, 1, always_spawn=True)] == [None]
    ((name, result, error),) = map_isolated(die_of_zero, {"a": (0,)}, 1, always_spawn=True)
    assert (name, result) == ("a", None)
    assert isinstance(error, WorkerDiedError)


def note_and_make(folder: str, number: int, size: int) -> bytes:
    open(os.path.join(folder, str(number)), "w").close()
    return bytes(size)


@pytest.mark.parametrize(("size", "begun"), [(60, 2), (1, 4)])
def test_large_results_wait_two_at_a_time_and_small_ones_in_any_number(tmp_path, size, begun):
    tasks = {str(number): (str(tmp_path), number, size) for number in range(8)}
    bound = InFlight(100, len)
    results = map_isolated(note_and_make, tasks, 1, always_spawn=True, handed_out=4, in_flight=bound)
    taken = [next(results) for _ in range(3)]
    assert all(result == bytes(size) for _, result, _ in taken)
    wait_for_files(tmp_path, len(taken) + begun - 1)
    time.sleep(0.3)
    # one fewer than may be there: the next begins when the next result is asked for
    assert len(os.listdir(tmp_path)) <= len(taken) + begun
    assert len(taken) + len(list(results)) == len(tasks)
    assert bound.has_room(99)


def wait_for_files(folder, number):
    deadline = time.monotonic() + 20
    while len(os.listdir(folder)) < number and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(os.listdir(folder)) >= number


def test_the_next_ones_are_prepared_while_a_result_is_used(tmp_path):
    tasks = {str(number): (str(tmp_path), number, 1) for number in range(6)}
    for used, (_, result, _) in enumerate(map_isolated(note_and_make, tasks, 1, always_spawn=True, handed_out=3), 1):
        assert result == bytes(1)
        if used > 2:  # though results lay ready: more was handed out before each of them
            wait_for_files(tmp_path, min(len(tasks), used + 1))


def wait_for_others(folder: str, number: int, most: int) -> bool:
    """Note the call, and say whether all others begin while this one goes on."""
    open(os.path.join(folder, str(number)), "w").close()
    deadline = time.monotonic() + 20
    while len(os.listdir(folder)) < most and time.monotonic() < deadline:
        time.sleep(0.02)
    return len(os.listdir(folder)) == most


def test_all_processes_have_work_from_the_start(tmp_path):
    tasks = {str(number): (str(tmp_path), number, 3) for number in range(3)}
    assert [result for _, result, _ in map_isolated(wait_for_others, tasks, 3)] == [True] * 3


def slow_or_dead(folder: str, number: int) -> int:
    """Note the call; the second one dies once the first has been noted as done."""
    open(os.path.join(folder, f"{number}_{os.getpid()}"), "w").close()
    if number == 1:
        time.sleep(0.5)
        os._exit(9)
    return number


def test_what_was_done_before_a_worker_died_is_not_done_again(tmp_path):
    results = map_isolated(slow_or_dead, {str(n): (str(tmp_path), n) for n in range(3)}, 1, True, handed_out=3)
    first = next(results)
    found = [first, *results]
    assert sorted(name for name, _, error in found if error is None) == ["0", "2"]
    assert len([file for file in os.listdir(tmp_path) if file.startswith("0_")]) == 1


def test_no_task_is_no_work():
    assert list(map_isolated(square, {}, 2)) == []


def leave(number: int) -> int:
    raise SystemExit(number)


def test_leaving_is_no_success():
    ((name, result, error),) = map_isolated(leave, {"a": (3,)}, 1, always_spawn=True)
    assert (name, result) == ("a", None)
    assert "SystemExit" in str(error)


class TwoPartsError(Exception):
    """Cannot be pickled as it is: unpickling calls it with one argument."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def fail_in_two_parts(number: int) -> int:
    raise TwoPartsError("one", "two")


def test_an_exception_that_cannot_be_pickled_is_not_taken_for_a_death():
    ((_, _, error),) = map_isolated(fail_in_two_parts, {"a": (3,)}, 1, always_spawn=True)
    assert not isinstance(error, WorkerDiedError)
    assert str(error) == "TwoPartsError: one and two"


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "from nnunet_ext.data.pool import map_isolated\n"
        "def work(note):\n"
        "    pathlib.Path(note).touch()\n"
        "    time.sleep(100)\n"
        "if __name__ == '__main__':\n"
        "    list(map_isolated(work, {'a': (sys.argv[1],)}, 1, always_spawn=True))\n"
    )
    note = tmp_path / "begun"  # by a worker that watches its parent since it began
    with subprocess.Popen([sys.executable, str(script), str(note)], start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not note.exists():
            time.sleep(0.05)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert workers
    assert not alive


def test_a_worker_that_died_is_mentioned_though_its_case_was_done_after_all(tmp_path, capsys):
    tasks = {"once": (str(tmp_path / "died"),)}
    found = list(map_isolated(die_the_first_time, tasks, 1, always_spawn=True, remedy="use fewer of them (-np)"))
    assert found == [("once", "done", None)]
    said = capsys.readouterr().err
    assert "1 time(s) a worker process died, probably for lack of memory; 1 case(s) were repeated" in said
    assert "use fewer of them (-np)" in said
