"""A stock command run as a user would: its output goes to a log and, line by line, to the caller."""

from __future__ import annotations

import os
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

_TICK_SECONDS = 0.5
_LAST_LINES = 12


class CommandError(RuntimeError):
    """A command is missing or failed; the message names it, and the log with its end.

    Attributes:
        status: Exit status of the command, None where it did not run.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def find_command(name: str) -> str:
    """Find a command of this environment: beside the interpreter, else on PATH.

    Args:
        name: Name of the command, e.g. ``nnUNetv2_train``.

    Returns:
        Path of the command.

    Raises:
        CommandError: If there is none.
    """
    beside = Path(sys.executable).parent
    path = shutil.which(name, path=str(beside)) or shutil.which(name)
    if path is None:
        raise CommandError(f"{name} is neither in {beside} nor on PATH; install nnunetv2 into this environment")
    return path


def run_command(
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda _: None,
    on_tick: Callable[[int], None] = lambda _: None,
    on_start: Callable[[int], None] = lambda _: None,
) -> float:
    """Run a command to its end.

    Args:
        arguments: Name of the command and its arguments.
        log: Log file that all output of the command is appended to.
        environment: Environment variables set on top of this process's own.
        on_line: Function called with each line that the command prints.
        on_tick: Function called about twice a second with the number of the process.
        on_start: Function called with the number of the process once it runs.

    Returns:
        Seconds that the command took.

    Raises:
        CommandError: If the command is missing or fails; names the command and its log.
    """
    command = [find_command(arguments[0]), *arguments[1:]]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as sink:
        sink.write(f"$ {shlex.join(arguments)}\n")
        sink.flush()
        clock = time.monotonic()
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            on_start(process.pid)
            _follow(process, sink, on_line, on_tick)
            process.wait()
            seconds = time.monotonic() - clock
        finally:
            _stop(process)
    if process.returncode:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-_LAST_LINES:])
        failed = f"{shlex.join(arguments)} ended with exit status {process.returncode}"
        raise CommandError(f"{failed}. Its output is in {log}, the end of it:\n{end}", process.returncode)
    return seconds


def _follow(
    process: subprocess.Popen[str], sink: TextIO, on_line: Callable[[str], None], on_tick: Callable[[int], None]
) -> None:
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    ticked = time.monotonic() - _TICK_SECONDS
    line: str | None = ""
    while line is not None:
        try:
            line = lines.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            # a worker that outlives the command keeps the pipe open: then its end is the command's end
            line = "" if process.poll() is None else None
        if line:
            sink.write(line)
            sink.flush()
            on_line(line.rstrip("\n"))
        now = time.monotonic()
        if now - ticked >= _TICK_SECONDS:
            ticked = now
            on_tick(process.pid)


def _read(stream: TextIO, lines: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:  # a carriage return ends a line too, so progress bars of the command come through
            lines.put(line)
    lines.put(None)


def _stop(process: subprocess.Popen[str]) -> None:
    """End the command where its caller was interrupted."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
