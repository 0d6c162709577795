"""Work on many cases in processes of their own, where one bad case, or a worker that dies, costs nothing but itself."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm

from nnunet_ext.data.in_flight import InFlight

WORKER_DIED = "a worker process died, probably for lack of memory"
REMEDY = "run again with fewer processes (-np)"


class WorkerDiedError(RuntimeError):
    """A worker died while it was alone with one case."""


def spawned(num_processes: int) -> ProcessPoolExecutor:
    """Return spawned workers that end when this process does, however it ends."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_processes, mp_context=context, initializer=end_with_parent)


def safely(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``work`` and see to it that what it raises can be passed to another process.

    An exception that cannot be pickled would look as if the worker had died.
    """
    try:
        return work(*arguments)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        raise


def end_with_parent() -> None:
    """Watch the parent from a thread: workers of an executor do not notice when it is killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def map_isolated(
    work: Callable[..., Any],
    tasks: Mapping[str, tuple],
    num_processes: int,
    always_spawn: bool = False,
    handed_out: int | None = None,
    remedy: str = REMEDY,
    in_flight: InFlight | None = None,
) -> Generator[tuple[str, Any, Exception | None], None, None]:
    """Call ``work(*arguments)`` for every task and yield what came of it, in the order in which the calls end.

    Only a few calls are handed out at a time, so memory does not grow with their number. If a worker dies (the kernel
    kills it for lack of memory, a library crashes), the calls that were handed out are repeated one at a time, each in
    a process of its own, and the others go on in new workers. Where that helped, it is said on stderr at the end.

    Args:
        work: Function to call; it can be pickled.
        tasks: Arguments of each call, by the name of the task.
        num_processes: Number of spawned processes; 1 or less works in this one.
        always_spawn: Spawn one process even then.
        handed_out: Number of calls whose results may be there at a time; twice the number of processes if not given.
        remedy: What to do where a worker died, for the message.
        in_flight: Bounds the results that may be there at a time by their bytes as well.

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
    deaths, saved = 0, 0
    while todo:
        suspects: list[str] = []
        processes = max(1, min(num_processes, len(todo)))
        yield from _until_broken(work, tasks, todo, suspects, processes, handed_out or 2 * processes, in_flight)
        deaths += bool(suspects)
        for name in suspects:
            result = _alone(work, name, tasks[name], remedy)
            saved += result[2] is None
            yield result
    if saved:
        text = f"{deaths} time(s) {WORKER_DIED}; {saved} case(s) were repeated one at a time with success"
        tqdm.write(f"{text}. If it happens again: {remedy}.", file=sys.stderr)


def _until_broken(
    work: Callable[..., Any],
    tasks: Mapping[str, tuple],
    todo: list[str],
    suspects: list[str],
    num_processes: int,
    handed_out: int,
    in_flight: InFlight | None,
) -> Iterator[tuple[str, Any, Exception | None]]:
    """Work ``todo`` off; if a worker dies, stop and leave the names that were handed out in ``suspects``."""
    pending: dict[Future, str] = {}
    with spawned(num_processes) as pool:
        try:
            while todo or pending:
                try:
                    while todo and len(pending) < handed_out and _have_room(pending, in_flight, todo[0]):
                        pending[pool.submit(safely, work, *tasks[todo[0]])] = todo[0]
                        if in_flight is not None:
                            in_flight.begin(todo[0])
                        todo.pop(0)
                    finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                    # one, and then more is handed out before the next: workers go on while it is used
                    future = next(future for future in pending if future in finished)
                    outcome = _outcome(future, pending[future])
                except BrokenProcessPool:
                    yield from _sort_out(pending, suspects, in_flight)
                    return
                if in_flight is not None:
                    if outcome[2] is None:
                        in_flight.finished(pending[future], outcome[1])  # how large the others may be
                    in_flight.end(pending[future])
                del pending[future]
                del future, finished  # the result is the caller's now
                yield outcome
        finally:
            for left in pending:
                left.cancel()


def _have_room(pending: Mapping[Future, str], in_flight: InFlight | None, following: str) -> bool:
    if in_flight is None:
        return True
    for future, name in pending.items():
        if future.done() and future.exception() is None:
            in_flight.finished(name, future.result())
    return in_flight.has_room(name=following)


def _outcome(future: Future, name: str) -> tuple[str, Any, Exception | None]:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise error
    if error is not None and not isinstance(error, Exception):  # the worker was told to stop
        error = RuntimeError(f"stopped by {type(error).__name__}")
    return name, None if error else future.result(), error


def _sort_out(
    pending: dict[Future, str], suspects: list[str], in_flight: InFlight | None
) -> Iterator[tuple[str, Any, Exception | None]]:
    """Yield what had ended before a worker died; all others are suspects."""
    for future, name in list(pending.items()):
        del pending[future]
        if in_flight is not None:
            in_flight.end(name)
        if future.done() and not isinstance(future.exception(), BrokenProcessPool):
            yield _outcome(future, name)
        else:
            suspects.append(name)


def _alone(work: Callable[..., Any], name: str, arguments: tuple, remedy: str) -> tuple[str, Any, Exception | None]:
    with spawned(1) as pool:
        try:
            return name, pool.submit(safely, work, *arguments).result(), None
        except BrokenProcessPool:
            return name, None, WorkerDiedError(f"{WORKER_DIED}; {remedy}")
        except Exception as error:
            return name, None, error
