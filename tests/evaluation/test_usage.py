"""Sampling of a command: processor time, host memory, GPU memory."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nnunet_ext.evaluation import usage
from nnunet_ext.evaluation.usage import Curve, Usage, UsageSampler, descendants, gpu_memory_mb, gpu_name, tree_memory_mb


@pytest.fixture
def fake_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nvidia-smi; the file says what is in use, in MiB, and the calls go into ``calls``."""
    script, value = tmp_path / "nvidia-smi", tmp_path / "value"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncat {value}\n')
    script.chmod(0o755)
    value.write_text("1000\n")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return value


def test_area_and_peak_of_a_curve():
    # trapezia: (0 + 4) / 2 * 2 = 4 and (4 + 10) / 2 * 1 = 7
    curve = Curve([1.0, 3.0, 4.0], [0.0, 4.0, 10.0])
    assert curve.area() == 11
    assert curve.peak() == 10
    assert (Curve().area(), Curve().peak(), Curve([1.0], [5.0]).area()) == (0, 0, 0)


def test_a_thinned_curve_keeps_the_peak_and_the_order():
    curve = Curve()
    for second in range(1000):
        curve.add(float(second), 99.0 if second == 617 else float(second % 7))
    thin = curve.thinned(100)
    assert len(thin.values) == len(thin.seconds) == 100
    assert thin.values[thin.seconds.index(617.0)] == 99
    assert thin.seconds == sorted(thin.seconds)
    assert curve.thinned(1000) == curve


def test_processor_time_is_the_area_under_the_utilisation():
    assert Usage(cpu_seconds=2.5).cpu_area == 250


def sample(code: str, **more: bool) -> Usage:
    with UsageSampler(**more) as sampler, subprocess.Popen([sys.executable, "-S", "-c", code]) as process:
        sampler.start(process.pid)
        process.wait()
        return sampler.stop()


def test_children_count(monkeypatch: pytest.MonkeyPatch):
    if not psutil.LINUX:
        pytest.skip("proportional set sizes")
    monkeypatch.setattr(usage, "_MEMORY_SECONDS", 0.1)
    # the child holds 120 MB and computes until it has used 0.8 s of processor time
    child = "import time; held = b'x' * 120_000_000\nwhile time.process_time() < 0.8: pass"
    seen = sample(
        f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {child!r}], check=True)", gpu=False
    )
    assert 120 < seen.memory_mb.peak() <= seen.peak_memory_mb < 300
    assert 0.4 < seen.cpu_seconds < 3
    assert seen.cpu_area == 100 * seen.cpu_seconds
    # the curve of a rate, summed up in steps, is the processor time
    times, shares = seen.cpu_percent.seconds, seen.cpu_percent.values
    steps = [later - sooner for sooner, later in zip([0.0, *times], times, strict=False)]
    assert sum(step * share / 100 for step, share in zip(steps, shares, strict=True)) == pytest.approx(seen.cpu_seconds)
    assert seen.gpu_memory_mb is None


def test_without_a_gpu_there_is_no_curve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory_mb() is None
    assert gpu_name() is None
    assert UsageSampler().stop().gpu_memory_mb is None


def test_gpu_memory_is_what_is_above_the_use_before(fake_gpu: Path):
    assert gpu_memory_mb() == 1000 * 2**20 / 1e6
    with UsageSampler() as sampler, subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=-1) as process:
        fake_gpu.write_text("1500\n")
        sampler.start(process.pid)
        time.sleep(0.5)
        fake_gpu.write_text("900\n")
        time.sleep(0.3)
        process.communicate(b"\n")
        curve = sampler.stop().gpu_memory_mb
    assert curve is not None
    assert curve.peak() == pytest.approx(500 * 2**20 / 1e6)
    assert curve.values[-1] == 0  # never below 0, though another process freed memory


def test_the_gpu_is_the_one_nnunet_uses(fake_gpu: Path, monkeypatch: pytest.MonkeyPatch):
    gpu_memory_mb()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    gpu_memory_mb()
    calls = (fake_gpu.parent / "calls").read_text().splitlines()
    assert calls == [f"--query-gpu=memory.used --format=csv,noheader,nounits -i {device}" for device in (0, 2)]
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert gpu_memory_mb() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    fake_gpu.write_text("[N/A]\n")
    assert gpu_memory_mb() is None


def test_processes_that_are_gone_use_nothing():
    assert descendants(2**22 + 1) == []
    assert tree_memory_mb(2**22 + 1) == 0


def test_a_sampler_that_never_started_stops():
    assert UsageSampler(gpu=False).stop() == Usage()
