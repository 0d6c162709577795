"""The guard on what the default test runs cost, on small sessions of their own."""

import re
import subprocess
import sys
from pathlib import Path

import budget
import pytest

ROOT = Path(__file__).parents[1]
CONFTEST = f"""
import sys

sys.path.insert(0, {str(Path(__file__).parent)!r})
import budget

budget.MEASURED = {{"not slow": 0.8}}


def pytest_configure(config):
    budget.register(config)
"""
# A second of work, in a process that the test starts.
TESTS = """
import subprocess, sys


def test_first():
    code = "import time\\nwhile time.process_time() < 1: pass"
    subprocess.run([sys.executable, "-S", "-c", code], check=True)


def test_second():
    pass
"""
SETTINGS = "[pytest]\ntestpaths = t\nmarkers = slow: no\n"


@pytest.fixture
def session(tmp_path, monkeypatch):
    (tmp_path / "t").mkdir()
    for name, text in (("pytest.ini", SETTINGS), ("t/conftest.py", CONFTEST), ("t/test_them.py", TESTS)):
        (tmp_path / name).write_text(text)
    monkeypatch.delenv(budget.FACTOR, raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_a_run_above_its_budget_fails_and_says_what_to_do(session, monkeypatch, workers):
    done = session("-m", "not slow", *workers)
    assert done.returncode == 1
    assert float(re.search(r"\n(\d+) s of processor time, of 1 s\n", done.stdout)[1]) >= 1
    assert re.search(rf"\nFAILED: the tests take more than their budget\..* {budget.FACTOR}=\d\.\d\. ", done.stdout)
    assert re.match(r"=+ 2 passed in .*=+$", done.stdout.splitlines()[-1])


def test_a_larger_factor_lets_it_pass_and_no_number_is_refused(session, monkeypatch):
    monkeypatch.setenv(budget.FACTOR, "100")
    done = session("-m", "not slow")
    assert done.returncode == 0
    assert "s of processor time, of 100 s\n" in done.stdout
    monkeypatch.setenv(budget.FACTOR, "much")
    done = session("-m", "not slow")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"{budget.FACTOR} is 'much', expected a positive number; 2 doubles the budgets." in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("-m", "slow or not slow"), ("-m", "not slow", "t/test_them.py"), ("-m", "not slow", "-k", "first or second")],
    ids=["another selection", "files", "names"],
)
def test_it_is_silent_about_other_runs(session, arguments):
    done = session(*arguments)
    assert done.returncode == 0
    assert "processor time" not in done.stdout


@pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="no Makefile beside the tests")
def test_the_makefile_runs_what_has_a_budget():
    text = (ROOT / "Makefile").read_text()
    for expression in budget.MEASURED:
        assert f'-m "{expression}"' in text
