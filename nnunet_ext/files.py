"""Files that are whole or not there: written under another name, checked, renamed; what a killed run left is swept."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

PREFIX = ".partial_"
_NAME = re.compile(rf"{re.escape(PREFIX)}[0-9a-f]{{10}}_\d+_\d+_")  # what is named otherwise is somebody else's
_OLD_SECONDS = 24 * 3600  # after which what another machine left is nobody's any more
_LITTLE_BYTES = 2**28  # free on a disk: below this a failed write is put down to it
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_numbers = itertools.count()


class DiskFullError(OSError):
    """Something could not be written for lack of room; the message names it."""


class BusyError(RuntimeError):
    """Another process works in the same place; the message names it."""


@contextlib.contextmanager
def whole(path: str | Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Give a name to write a file (or a folder) to, and rename it to ``path`` once the block ends well.

    The name has the ending of ``path`` and is unique, so that two processes can write the same file: the later one
    wins. Where the block or the check raises, nothing is left behind and what was at ``path`` stays.

    Args:
        path: Where the file belongs; its folder is made. A folder there is replaced only by a folder.
        check: Looks at what was written, for writers that ignore errors; raises if it is not whole.

    Raises:
        DiskFullError: If there is no room, whatever the writer called it.
    """
    path = Path(path)
    if path.is_symlink():  # what it leads to is replaced, not the link
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_partial_name(path.name))
    try:
        with naming_full_disk(path):
            yield temporary
            if check is not None:
                check(temporary)
            if path.is_file() and temporary.is_file():
                with contextlib.suppress(OSError):
                    shutil.copymode(path, temporary)  # others may be allowed to write it
            _put(temporary, path)
    finally:
        remove(temporary)


@contextlib.contextmanager
def whole_files(folder: str | Path, last: Callable[[Path], bool] = lambda _: True) -> Iterator[Path]:
    """Give an empty folder to write files into, and move them into ``folder`` once the block ends well.

    Args:
        folder: Where the files belong; it is made.
        last: Says which of them stand for the others: they are moved after all others.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / _partial_name("files")
    temporary.mkdir()
    try:
        with naming_full_disk(folder):
            yield temporary
            for file in sorted(temporary.iterdir(), key=lambda file: (last(file), file.name)):
                _put(file, folder / file.name)
    finally:
        remove(temporary)


@contextlib.contextmanager
def cleared(folder: str | Path) -> Iterator[Callable[[], None]]:
    """Empty a folder to fill it anew, and keep what it held until the block says that there is something new.

    Without that word the folder is afterwards as it was before, however the block ends; where the process is killed,
    the next call puts it back. To be used by one process at a time (:func:`only_here`).

    Args:
        folder: It is made.

    Yields:
        A function that drops what the folder held; to be called once what replaces it is known to succeed.
    """
    folder = Path(folder)
    before = folder.with_name(f".{folder.name}.before")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if before.is_dir():  # of a killed run
        remove(folder)
        os.replace(before, folder)
    if folder.is_dir():
        os.replace(folder, before)
    folder.mkdir()
    try:
        yield functools.partial(_drop, before)
    finally:
        if before.is_dir():
            remove(folder)
            os.replace(before, folder)


def _drop(folder: Path) -> None:
    """Take a folder's name away in one step, then remove it; what cannot be removed is swept another time."""
    if folder.is_dir():
        aside = folder.with_name(_partial_name(folder.name))
        os.replace(folder, aside)
        remove(aside)


def write_json(path: str | Path, content: Any, indent: int | None = 2, **options: Any) -> None:
    """Write a JSON file, whole or not at all.

    Args:
        path: File.
        content: JSON values.
        indent: Of the text.
        options: Of :func:`json.dumps`.
    """
    text = json.dumps(content, indent=indent, **options)
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path, remedy: str = "restore or remove it", kind: type = dict, **options: Any) -> Any:
    """Read a JSON file.

    Args:
        path: File.
        remedy: What to do where it is missing or damaged, for the message.
        kind: Type that the whole content must have: ``dict`` or ``list``.
        options: Of :func:`json.loads`.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is no JSON, or of another kind; names the file and the place in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"), **options)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(f"{path} is no JSON ({where}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no JSON (not UTF-8 text); {remedy}") from error
    if not isinstance(content, kind):
        wanted = "a list [...]" if kind is list else "an object {...}"
        raise ValueError(f"{path} holds {content!r:.60}, expected {wanted}; {remedy}")
    return content


@contextlib.contextmanager
def naming_full_disk(path: str | Path) -> Iterator[None]:
    """Name the disk where something could not be written because it is full; libraries call that anything.

    Args:
        path: What is being written, or its folder.

    Raises:
        DiskFullError: In place of what was raised.
    """
    try:
        yield
    except DiskFullError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        free = _free_bytes(Path(path))
        full = isinstance(error, OSError) and error.errno in _NO_SPACE
        if not full and (free is None or free > _LITTLE_BYTES or not _says_nothing(error)):
            raise
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        left = "" if free is None else f", which has {free / 1e6:.0f} MB left"
        raise DiskFullError(
            f"{path} cannot be written ({reason[0]}): no room on its disk{left}, or in your share of it; free some and "
            "run again"
        ) from error


def _says_nothing(error: Exception) -> bool:
    """Whether an error of a failed write may well be one of a full disk: those with a meaning of their own are not."""
    if isinstance(error, OSError):
        return error.errno in (None, errno.EIO, errno.EINVAL)
    return isinstance(error, RuntimeError)  # what libraries raise; checks of ours raise ValueError


def sweep(folder: str | Path) -> list[Path]:
    """Remove what killed processes left half-written in a folder; whoever is alive keeps theirs.

    Args:
        folder: Looked at without its subfolders; it need not exist.

    Returns:
        What was removed.
    """
    removed = []
    for path in Path(folder).glob(f"{PREFIX}*"):
        if _NAME.match(path.name) and _is_abandoned(path):
            remove(path)
            removed.append(path)
    return removed


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def only_here(folder: str | Path, doing: str, part: str = "", patience_seconds: float = 0.0) -> Iterator[None]:
    """Keep other processes from doing the same in the same place; a lock ends with its process, however that ends.

    Args:
        folder: What is worked on; the lock lies beside it, hidden, and stays as an empty file.
        doing: What is done, for the message, e.g. ``"preprocessed"``.
        part: What of it, e.g. ``"part 0 of 4"``, has a lock of its own; empty for the folder's.
        patience_seconds: How long to wait for the lock.

    Raises:
        BusyError: If another process has the lock; names its host, number and start.
    """
    import filelock

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    name = f".{folder.name}.{part.replace(' ', '_')}" if part else f".{folder.name}"
    what = f"{folder} ({part})" if part else f"{folder}"
    lock = filelock.FileLock(folder.with_name(f"{name}.lock"), timeout=patience_seconds, mode=0o666)
    holder = folder.with_name(f"{name}.lock.json")
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BusyError(f"{what} is being {doing} {_describe(holder)}; wait until it is done, or stop it") from None
    except (OSError, NotImplementedError) as error:  # a file system without locks, or a lock of another user's
        warnings.warn(f"{folder} cannot be locked ({error}); let only one command work on it at a time", stacklevel=4)
    try:
        if lock.is_locked:
            own = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            with contextlib.suppress(OSError):
                holder.write_text(json.dumps(own), encoding="utf-8")
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                holder.unlink(missing_ok=True)
            lock.release()


def _describe(holder: Path) -> str:
    try:
        other = json.loads(holder.read_text(encoding="utf-8"))
        return f"by process {other['pid']} on {other['host']} since {other['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "by another process"


def _partial_name(name: str) -> str:
    # Machine, process and number first: file systems end at 255 bytes, and the ending must stay.
    return f"{PREFIX}{_machine()}_{os.getpid()}_{next(_numbers)}_{name[-80:]}"


def _machine() -> str:
    """Name what process numbers are unique on: a host, or a container of it."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        name += str(os.stat("/proc/self/ns/pid").st_ino)
    return hashlib.sha256(name.encode()).hexdigest()[:10]


def _is_abandoned(path: Path) -> bool:
    machine, _, rest = path.name.removeprefix(PREFIX).partition("_")
    process = rest.partition("_")[0]
    if machine == _machine() and process.isdigit():
        return is_of_dead_process(path, int(process))
    try:
        return time.time() - path.stat().st_mtime > _OLD_SECONDS
    except OSError:  # renamed meanwhile
        return False


def is_of_dead_process(path: Path, process: int) -> bool:
    """Return whether a file was left by a process that is no more.

    A process that began a day after the file was touched last is another one, to which the number was given again; a
    day, because the clocks of file servers differ from ours.

    Args:
        path: File or folder.
        process: Number of the process, of this machine.
    """
    try:
        status = path.stat()
        # Copies carry the times of what they were copied from, but not that of the change of the entry.
        touched = max(status.st_mtime, status.st_ctime)
        return psutil.Process(process).create_time() > touched + _OLD_SECONDS
    except psutil.NoSuchProcess:
        return True
    except (OSError, psutil.Error):
        return False


def _put(temporary: Path, path: Path) -> None:
    """Rename; a folder that is in the way of a folder is moved aside first, as no system replaces it in one step."""
    if temporary.is_dir() and path.is_dir() and not path.is_symlink():
        aside = path.with_name(_partial_name(path.name))
        os.replace(path, aside)
        try:
            os.replace(temporary, path)
        except OSError:
            os.replace(aside, path)
            raise
        remove(aside)
    else:
        os.replace(temporary, path)


def _free_bytes(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(path if path.is_dir() else path.parent).free
    return None
