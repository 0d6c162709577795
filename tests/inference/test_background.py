import os
import time
from threading import Event

from nnunet_ext.data.in_flight import InFlight
from nnunet_ext.inference.background import Background


def double(value):
    if value < 0:
        raise ValueError(f"got {value}")
    return 2 * value


def die_once(value, marker):
    """Kill the worker the first time."""
    if not os.path.exists(marker):
        with open(marker, "w"):
            os._exit(9)
    return value


def outcomes(workers, threads):
    found = {}
    died = []
    background = Background(workers, threads, lambda *outcome: found.update({outcome[0]: outcome[1:]}), died.append)
    return background, found, died


def test_here_in_threads_and_in_processes():
    for workers, threads in ((0, True), (2, True), (2, False)):
        background, found, died = outcomes(workers, threads)
        for value in (1, -1, 3):
            background.submit(str(value), double, value)
        background.finish()
        assert found["1"] == (2, None)
        assert found["3"] == (6, None)
        assert found["-1"][0] is None
        assert str(found["-1"][1]) == "got -1"
        assert not died


def test_no_more_are_under_way_than_there_are_workers():
    background, found, _ = outcomes(1, True)
    running = []

    def work(number):
        running.append(number)
        time.sleep(0.05)
        running.remove(number)
        return len(running)

    for number in range(4):
        background.submit(str(number), work, number)
        assert len(background._pending) <= 1
    background.finish()
    assert [found[str(n)][0] for n in range(4)] == [0, 0, 0, 0]


def test_room_is_made_for_a_large_call_and_a_small_one_does_not_wait():
    bound, release = InFlight(100, len), Event()
    ended = []

    def done(name, result, error):
        bound.end(name)
        ended.append(name)

    background = Background(2, True, done, ended.append, bound)
    for name in "ab":
        background.make_room(60)
        bound.begin(name, 60)
        background.submit(name, release.wait, 20)
    background_has_room = bound.has_room(60)
    assert not background_has_room
    assert not ended
    release.set()
    background.make_room(60)
    assert ended
    for name in "cdef":  # more than there are workers wait
        bound.begin(name, 1)
        background.submit(name, double, 1)
    background.finish()
    assert sorted(ended) == list("abcdef")


def test_a_worker_that_dies_is_replaced_and_what_it_held_is_named(tmp_path):
    background, found, died = outcomes(1, False)
    background.submit("dies", die_once, 1, str(tmp_path / "marker"))
    background.submit("lives", double, 2)
    background.finish()
    assert died == ["dies"]
    assert found == {"lives": (4, None)}
