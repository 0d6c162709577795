"""Run one stock command: its output goes to a log, its progress to the terminal, its time and memory into a record."""

import json
import os
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from nnunet_ext.demo.dataset import write_atomically

_TICK_SECONDS = 0.5
_MEMORY_SECONDS = 4  # adding up shared pages walks through the page tables of the training, which slows it


class DemoError(RuntimeError):
    """The demo cannot go on; the message says why and what to do."""


@dataclass
class Usage:
    """What a stage took.

    Attributes:
        seconds: Wall-clock time, summed over the runs of a stage that was interrupted and continued.
        peak_memory_mb: Largest host memory seen, in 10^6 bytes: the proportional set sizes of the command and all its
            descendants added up (shared pages count once), sampled every four seconds, or the kernel's high-water mark
            of one of these processes where that is larger. Memory of a GPU is not in it. 0 where there is no ``/proc``.
    """

    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def save(self, path: Path, **more: object) -> None:
        """Write the record, with ``more`` beside it."""
        write_atomically(path, json.dumps({**asdict(self), **more}, indent=2))


def find_command(name: str) -> str:
    """Find a command of this environment: beside the interpreter, else on PATH.

    Args:
        name: Of the command, e.g. ``nnUNetv2_train``.

    Returns:
        Its path.

    Raises:
        DemoError: If there is none.
    """
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=str(beside)) or shutil.which(name)
    if found is None:
        raise DemoError(f"{name} is neither in {beside} nor on PATH; install nnunetv2 into this environment")
    return found


def run_command(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    usage: Usage,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None],
) -> None:
    """Run a command to its end.

    Args:
        arguments: Name of the command and its arguments.
        environment: Variables set on top of this process's own.
        log: File that everything the command prints is appended to.
        usage: Is updated while the command runs.
        on_line: Called with each line that the command prints.
        on_tick: Called about twice a second.

    Raises:
        DemoError: If the command is missing or fails; names the command and its log.
    """
    command = [find_command(arguments[0]), *arguments[1:]]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as sink:
        sink.write(f"$ {shlex.join(arguments)}\n")
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            _follow(process, sink, usage, on_line, on_tick)
        finally:
            _stop(process)
    if process.returncode:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-12:])
        failed = f"{shlex.join(arguments)} ended with exit status {process.returncode}"
        raise DemoError(f"{failed}. Its output is in {log}, the end of it:\n{end}")


def tree_memory_mb(pid: int) -> float:
    """Host memory of a process and its descendants, as ``Usage.peak_memory_mb`` defines it; 0 without ``/proc``."""
    together = largest = 0.0
    for member in _descendants(pid):
        together += _proc_kb(f"/proc/{member}/smaps_rollup", "Pss:")
        largest = max(largest, _proc_kb(f"/proc/{member}/status", "VmHWM:"))
    return max(together, largest) * 1024 / 1e6


def _follow(
    process: subprocess.Popen[str],
    sink: TextIO,
    usage: Usage,
    on_line: Callable[[str], None],
    on_tick: Callable[[], None],
) -> None:
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    clock, before = time.monotonic(), usage.seconds
    ticked, sampled = clock - _TICK_SECONDS, clock - _MEMORY_SECONDS
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
        if now - sampled >= _MEMORY_SECONDS:
            sampled = now
            usage.peak_memory_mb = max(usage.peak_memory_mb, tree_memory_mb(process.pid))
        if now - ticked >= _TICK_SECONDS:
            ticked = now
            usage.seconds = before + now - clock
            on_tick()
    process.wait()
    usage.seconds = before + time.monotonic() - clock


def _read(stream: TextIO, lines: "queue.Queue[str | None]") -> None:
    with stream:
        for line in stream:  # a carriage return ends a line too, so progress bars of the command come through
            lines.put(line)
    lines.put(None)


def _stop(process: subprocess.Popen[str]) -> None:
    """End the command where the demo itself was interrupted; its workers end with it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # the name of the command stands in brackets and may hold blanks; the parent is the second field after it
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue  # it ended meanwhile
        children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found.extend(children.get(member, []))
    return found


def _proc_kb(path: str, key: str) -> float:
    try:
        with open(path, encoding="utf-8") as lines:
            return next((float(line.split()[1]) for line in lines if line.startswith(key)), 0.0)
    except OSError:
        return 0.0
