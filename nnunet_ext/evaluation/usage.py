"""Processor time, host memory and GPU memory of a command and its descendants, sampled while it runs.

The FLARE challenge compares methods not only by accuracy, but also by running time, by the area under the curve of GPU
memory over time and by that of CPU utilisation over time (Ma et al., "Unleashing the strengths of unlabelled data in
deep learning-assisted pan-cancer abdominal organ quantification: the FLARE22 challenge", Lancet Digital Health 2024).
The quantities of this module are of that kind; their sampling is its own, and described where they are defined.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import psutil

from nnunet_ext.inference.process_memory import high_water_bytes

MB = 1e6  # bytes
_MIB = 2**20  # bytes; the unit of nvidia-smi, which writes MiB
_CPU_SECONDS = 0.2
_MEMORY_SECONDS = 1.0  # adding up shared pages walks through the page tables of the command, which slows it
_GPU_SECONDS = 0.2


@dataclass
class Curve:
    """Values over time.

    Attributes:
        seconds: Times in seconds since the start, ascending.
        values: Value at each of the times.
    """

    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, seconds: float, value: float) -> None:
        """Append a point."""
        self.seconds.append(seconds)
        self.values.append(value)

    def peak(self) -> float:
        """Return the largest value, 0 where there is none."""
        return max(self.values, default=0.0)

    def area(self) -> float:
        """Return the area under the straight lines that join the points."""
        x, y = np.asarray(self.seconds), np.asarray(self.values)
        return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())

    def thinned(self, limit: int = 400) -> Curve:
        """Return at most ``limit`` of the points: of neighbours the highest, so that the peak stays."""
        if len(self.values) <= limit:
            return Curve(list(self.seconds), list(self.values))
        highest = [
            int(part[np.argmax(np.asarray(self.values)[part])])
            for part in np.array_split(np.arange(len(self.values)), limit)
        ]
        return Curve([self.seconds[i] for i in highest], [self.values[i] for i in highest])


@dataclass
class Usage:
    """Processor time and memory that a command used.

    Attributes:
        cpu_percent: Utilisation of the processors by the command and its descendants, each value over the time since
            the one before; 100 is one core busy, so 16 cores can reach 1600.
        cpu_seconds: Processor time, user and system. Of a process that ends, the last 0.2 s may be missing.
        memory_mb: Host memory in 10^6 bytes: on Linux the proportional set sizes added up (shared pages count once),
            elsewhere the resident set sizes. A value read while processes are being forked is too small.
        peak_memory_mb: Peak of that curve, or the kernel's high-water mark of one process where that is larger.
        gpu_memory_mb: Memory in use on the GPU above what was in use before, in 10^6 bytes, whichever process uses it;
            None without a GPU that ``nvidia-smi`` can read.
    """

    cpu_percent: Curve = field(default_factory=Curve)
    cpu_seconds: float = 0.0
    memory_mb: Curve = field(default_factory=Curve)
    peak_memory_mb: float = 0.0
    gpu_memory_mb: Curve | None = None

    @property
    def cpu_area(self) -> float:
        """Area under the curve of CPU utilisation in % s: as the curve is a rate, 100 times the processor time."""
        return 100 * self.cpu_seconds


class UsageSampler:
    """Samples a command in threads of its own until it is stopped.

    Processors and GPU are sampled five times a second, host memory once. What the GPU has in use when the sampler is
    made counts as before the command, so make it before the command starts, and keep the GPU free of other work.

    Args:
        gpu: Whether to sample the GPU, if there is one.
    """

    def __init__(self, gpu: bool = True) -> None:
        self.usage = Usage()
        self._gpu_before = gpu_memory_mb() if gpu else None
        self._gpu = None if self._gpu_before is None else Curve()
        self.usage.gpu_memory_mb = self._gpu
        self._seen: dict[tuple[int, float], float] = {}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clock = 0.0

    def start(self, pid: int) -> None:
        """Begin to sample a process and its descendants."""
        self._clock = time.monotonic()
        self._threads = [threading.Thread(target=self._sample_host, args=(pid,), daemon=True)]
        if self._gpu is not None:
            self._threads.append(threading.Thread(target=self._sample_gpu, args=(self._gpu,), daemon=True))
        for thread in self._threads:
            thread.start()

    def stop(self) -> Usage:
        """End sampling and return the usage until now; also works if it never started."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self.usage

    def __enter__(self) -> UsageSampler:
        """Return the sampler; it is started by hand, once there is a process."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop sampling."""
        self.stop()

    def _sample_host(self, pid: int) -> None:
        before, memory_due = self._clock, self._clock
        while True:
            members = descendants(pid)
            now = time.monotonic()
            used = self._processor_seconds(members)
            if now > before:
                self.usage.cpu_percent.add(now - self._clock, 100 * used / (now - before))
            self.usage.cpu_seconds += used
            before = now
            if now >= memory_due and members:
                together, high_water = _memory_bytes(members)
                self.usage.memory_mb.add(now - self._clock, together / MB)
                self.usage.peak_memory_mb = max(self.usage.peak_memory_mb, together / MB, high_water / MB)
                memory_due = now + _MEMORY_SECONDS
            if self._stop.wait(max(0.0, now + _CPU_SECONDS - time.monotonic())):
                return

    def _processor_seconds(self, members: Iterable[psutil.Process]) -> float:
        """Return the processor time used since the last call; that of a new process counts from its start."""
        used = 0.0
        for member in members:
            try:
                times, key = member.cpu_times(), (member.pid, member.create_time())
            except psutil.Error:
                continue  # it ended meanwhile
            total = times.user + times.system
            used += max(0.0, total - self._seen.get(key, 0.0))
            self._seen[key] = total
        return used

    def _sample_gpu(self, curve: Curve) -> None:
        while True:
            now = time.monotonic()
            value = gpu_memory_mb()
            if value is not None:
                curve.add(time.monotonic() - self._clock, max(0.0, value - (self._gpu_before or 0.0)))
            if self._stop.wait(max(0.0, now + _GPU_SECONDS - time.monotonic())):
                return


def tree_memory_mb(pid: int) -> float:
    """Return the host memory of a process and its descendants in 10^6 bytes, as ``Usage.peak_memory_mb`` defines it."""
    return max(_memory_bytes(descendants(pid))) / MB


def descendants(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started, directly or not; none where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def gpu_memory_mb() -> float | None:
    """Return the memory that the GPU has in use, by all processes, in 10^6 bytes.

    The GPU is the one that nnU-Net uses: the first of ``CUDA_VISIBLE_DEVICES``, else number 0. ``nvidia-smi`` counts
    GPUs in the order of the bus; where they differ in kind, set ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` so that CUDA does too.

    Returns:
        None without ``nvidia-smi``, or where it reads nothing.
    """
    answer = _ask_gpu("memory.used")
    try:
        return None if answer is None else float(answer) * _MIB / MB
    except ValueError:  # "[N/A]"
        return None


def gpu_name() -> str | None:
    """Return the name of that GPU, None where there is none."""
    return _ask_gpu("name")


def _ask_gpu(field_name: str) -> str | None:
    # torch would open a CUDA context here, which is memory in use, and NVIDIA's own library is no dependency.
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if device in ("", "-1"):
        return None
    command = ["nvidia-smi", f"--query-gpu={field_name}", "--format=csv,noheader,nounits", "-i", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if lines else None


def _memory_bytes(members: Iterable[psutil.Process]) -> tuple[float, float]:
    """Return the memory of all processes together, and the largest high-water mark of one of them (Linux, else 0)."""
    together = largest = 0.0
    for member in members:
        try:
            if psutil.LINUX:
                together += member.memory_full_info().pss
                largest = max(largest, high_water_bytes(member.pid))
            else:
                together += member.memory_info().rss
        except (psutil.Error, OSError):
            continue  # it ended meanwhile, or belongs to somebody else
    return together, largest
