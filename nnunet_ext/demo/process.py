"""Run one stock command: its output goes to a log, its progress to the terminal, its time and memory into a record."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nnunet_ext import files
from nnunet_ext.evaluation import command
from nnunet_ext.evaluation.usage import tree_memory_mb

__all__ = ["Usage", "run_command", "tree_memory_mb"]

_MEMORY_SECONDS = 4  # adding up shared pages walks through the page tables of the training, which slows it


@dataclass
class Usage:
    """What a stage took.

    Attributes:
        seconds: Wall-clock time, summed over the runs of a stage that was interrupted and continued.
        peak_memory_mb: Largest host memory seen, in 10^6 bytes: the proportional set sizes of the command and all its
            descendants added up (shared pages count once), sampled every four seconds, or the kernel's high-water mark
            of one of these processes where that is larger. Memory of a GPU is not in it. Where there is no ``/proc``,
            the resident set sizes.
    """

    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def save(self, path: Path, **more: object) -> None:
        """Write the record, with ``more`` beside it."""
        files.write_json(path, {**asdict(self), **more})


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
        usage: Record that is updated while the command runs.
        on_line: Function that is called with each line that the command prints.
        on_tick: Function that is called about twice a second.

    Raises:
        CommandError: If the command is missing or fails; names the command and its log.
    """
    clock, seconds_before = time.monotonic(), usage.seconds
    last_sample = clock - _MEMORY_SECONDS

    def tick(pid: int) -> None:
        nonlocal last_sample
        time_now = time.monotonic()
        if time_now - last_sample >= _MEMORY_SECONDS:
            last_sample = time_now
            usage.peak_memory_mb = max(usage.peak_memory_mb, tree_memory_mb(pid))
        usage.seconds = seconds_before + time_now - clock
        on_tick()

    try:
        command.run_command(arguments, log, environment, on_line, tick)
    finally:
        usage.seconds = seconds_before + time.monotonic() - clock
