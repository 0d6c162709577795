"""Calls in the background: a bounded number at a time, and a worker that dies costs only the calls under way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from nnunet_ext.data.in_flight import InFlight
from nnunet_ext.data.pool import safely, spawned


class Background:
    """Calls that go on while the next case is predicted.

    Args:
        workers: Number of calls at a time; 0 makes each call at once, in this process.
        threads: Whether the workers are threads instead of spawned processes, for calls that spend their time outside
            Python or on a GPU.
        done: Function called in this process with the name, the result and the exception (one of them ``None``) of
            every call that ended.
        died: Function called in this process with the name of every call that was under way when a worker process died.
        in_flight: Bounds the calls by the bytes that they hold, for :meth:`make_room`; as many calls again as there are
            workers may wait for one then.
    """

    def __init__(
        self,
        workers: int,
        threads: bool,
        done: Callable[[str, Any, Exception | None], None],
        died: Callable[[str], None],
        in_flight: InFlight | None = None,
    ) -> None:
        self.workers, self.threads = workers, threads
        self._in_flight = in_flight
        self._most = workers if in_flight is None else 2 * workers
        self._done, self._died = done, died
        self._executor: Executor | None = None
        self._pending: dict[Future, str] = {}

    def submit(self, name: str, work: Callable[..., Any], *arguments: Any) -> None:
        """Call ``work(*arguments)``; waits first while as many calls as there may be are under way."""
        if self.workers == 0:
            try:
                result = work(*arguments)
            except Exception as error:
                self._done(name, None, error)
            else:
                self._done(name, result, None)
            return
        while len(self._pending) >= self._most:
            self._collect()
        try:
            future = self._running().submit(safely, work, *arguments)
        except BrokenProcessPool:  # a worker died while it had nothing to do
            self._collect_broken()
            future = self._running().submit(safely, work, *arguments)
        self._pending[future] = name

    def make_room(self, size: int) -> None:
        """Wait until what is under way leaves room for so many bytes, or nothing is under way here.

        Args:
            size: Bytes that the next call will hold.
        """
        while self._pending and self._in_flight is not None and not self._in_flight.has_room(size):
            self._collect()

    def finish(self) -> None:
        """Wait for all calls and end the workers."""
        while self._pending:
            self._collect()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _running(self) -> Executor:
        if self._executor is None:
            if self.threads:
                self._executor = ThreadPoolExecutor(self.workers)
            else:
                self._executor = spawned(self.workers)
        return self._executor

    def _collect(self) -> None:
        finished, _ = wait(self._pending, return_when=FIRST_COMPLETED)
        for future in [future for future in self._pending if future in finished]:  # in the order of the cases
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                self._collect_broken()
                return
            name = self._pending.pop(future)
            if error is not None and not isinstance(error, Exception):
                error = RuntimeError(f"stopped by {type(error).__name__}")
            self._done(name, None if error else future.result(), error)

    def _collect_broken(self) -> None:
        """Start anew: nobody can tell which of the calls under way the dead worker had."""
        wait(self._pending)
        names = []
        for future, name in self._pending.items():
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                names.append(name)
            else:
                self._done(name, None if error else future.result(), error)  # type: ignore[arg-type]
        self._pending.clear()
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
        for name in names:
            self._died(name)
