"""Commands run by the demo: output, errors, time, memory."""

import os
import sys
import textwrap
from pathlib import Path

import pytest

from nnunet_ext.demo.process import Usage, run_command, tree_memory_mb
from nnunet_ext.evaluation.command import CommandError, find_command


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "stage.log"


def _run(code: str, log: Path, usage: Usage | None = None, **environment: str) -> list[str]:
    lines: list[str] = []
    arguments = [sys.executable, "-S", "-c", textwrap.dedent(code)]
    run_command(arguments, environment, log, usage or Usage(), lines.append, lambda: None)
    return lines


def test_lines_go_to_the_log_and_to_the_caller(log: Path) -> None:
    code = "import os, sys; print(os.environ['COLOUR']); print('problem', file=sys.stderr)"
    assert _run(code, log, COLOUR="blue") == ["blue", "problem"]
    text = log.read_text(encoding="utf-8")
    assert text.startswith("$ ")
    assert text.endswith("blue\nproblem\n")


def test_failure_names_command_status_and_log(log: Path) -> None:
    with pytest.raises(
        CommandError, match=r"exit status 3\. Its output is in .*stage\.log, the end of it:\n(.*\n)*last words"
    ):
        _run("print('last words'); raise SystemExit(3)", log)


def test_missing_command_is_named() -> None:
    with pytest.raises(CommandError, match=r"nnUNetv2_no_such is neither in .* nor on PATH; install nnunetv2"):
        find_command("nnUNetv2_no_such")


def test_stock_commands_are_found_beside_the_interpreter() -> None:
    assert Path(find_command("nnUNetv2_train")).parent == Path(sys.executable).parent


def test_usage_adds_up_time_and_sees_the_memory_of_children(log: Path) -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("needs /proc")
    usage = Usage(seconds=100.0)
    # the child of the command holds 120 MB for as long as the sampler needs to see it
    held = "import sys, time; held = b'x' * 120_000_000; time.sleep(1.5)"
    _run(f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {held!r}], check=True)", log, usage)
    assert 101.4 < usage.seconds < 130
    assert 120 < usage.peak_memory_mb < 300


def test_memory_of_a_process_that_is_gone_is_zero() -> None:
    assert tree_memory_mb(2**22 + 1) == 0


def test_a_worker_that_outlives_the_command_does_not_hold_the_demo(log: Path) -> None:
    usage = Usage()
    worker = "import time; time.sleep(20)"
    _run(f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {worker!r}])", log, usage)
    assert usage.seconds < 15


def test_an_interrupted_demo_ends_its_command(log: Path) -> None:
    pids: list[int] = []

    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid()); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        run_command([sys.executable, "-S", "-c", code], {}, log, Usage(), interrupt, lambda: None)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
