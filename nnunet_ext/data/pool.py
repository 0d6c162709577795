"""Work on many cases in processes of their own, where one bad case, or a worker that dies, costs nothing but itself."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

WORKER_DIED = "a worker process died, probably for lack of memory; run again with fewer processes (-np)"


class WorkerDiedError(RuntimeError):
    """A worker died while it was alone with one case."""


def map_isolated(
    work: Callable[..., Any],
    tasks: Mapping[str, tuple],
    num_processes: int,
    always_spawn: bool = False,
    handed_out: int | None = None,
) -> Iterator[tuple[str, Any, Exception | None]]:
    """Call ``work(*arguments)`` for every task and yield what came of it, in the order in which the calls end.

    Only a few calls are handed out at a time, so memory does not grow with their number. If a worker dies (the kernel
    kills it for lack of memory, a library crashes), the calls that were handed out are repeated one at a time, each in
    a process of its own, and the others go on in new workers.

    Args:
        work: A function that can be pickled.
        tasks: Its arguments by name.
        num_processes: Spawned processes; 1 or less works in this one.
        always_spawn: Spawn one process even then.
        handed_out: Calls whose results may be there at a time; twice the number of processes if not given.

    Yields:
        Name, result, and the exception that the call raised (the result is None then).
    """
    if num_processes <= 1 and not always_spawn:
        for name, arguments in tasks.items():
            try:
                yield name, work(*arguments), None
            except Exception as error:
                yield name, None, error
        return
    todo = list(tasks)
    while todo:
        suspects: list[str] = []
        processes = max(1, min(num_processes, len(todo)))
        yield from _until_broken(work, tasks, todo, suspects, processes, handed_out or 2 * processes)
        for name in suspects:
            yield _alone(work, name, tasks[name])


def _until_broken(
    work: Callable[..., Any],
    tasks: Mapping[str, tuple],
    todo: list[str],
    suspects: list[str],
    num_processes: int,
    handed_out: int,
) -> Iterator[tuple[str, Any, Exception | None]]:
    """Work ``todo`` off; if a worker dies, stop and leave the names that were handed out in ``suspects``."""
    pending: dict[Future, str] = {}
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        while todo or pending:
            try:
                while todo and len(pending) < handed_out:
                    pending[pool.submit(work, *tasks[todo[0]])] = todo[0]
                    todo.pop(0)
            except BrokenProcessPool:
                suspects += pending.values()
                return
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    suspects += pending.values()
                    return
                name = pending.pop(future)
                if error is not None and not isinstance(error, Exception):  # the worker was told to stop
                    error = RuntimeError(f"stopped by {type(error).__name__}")
                yield name, None if error else future.result(), error


def _alone(work: Callable[..., Any], name: str, arguments: tuple) -> tuple[str, Any, Exception | None]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return name, pool.submit(work, *arguments).result(), None
        except BrokenProcessPool:
            return name, None, WorkerDiedError(WORKER_DIED)
        except Exception as error:
            return name, None, error
