"""A guard on what the default test runs cost, so that they stay a matter of minutes.

Processor time is what counts: the clock on the wall also shows what else a machine does. It is the time of this process
and of all children that were waited for; with xdist each worker says its own, and the controller adds them up.
"""

import os
import sys

import pytest

HEADROOM = 1.25
# Seconds measured on two cores of an AMD EPYC (Linux, Python 3.11, torch 2.14 for CPUs), by the expression after -m.
MEASURED = {
    "not integration and not slow and not gpu": 600,  # 2026-11-27
    "integration and not slow": 530,  # 2026-11-27
}
FACTOR = "NNUNET_EXT_TEST_BUDGET"  # 2 doubles the budgets, for a processor that needs longer
_KEY = "nnunet_ext_processor_seconds"


def processor_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    import resource  # not on Windows

    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def whole_run(config: pytest.Config) -> str | None:
    """Return the expression of a default run, or None where the run is another or a part of one."""
    narrowed = ("keyword", "deselect", "ignore", "ignore_glob", "lf", "stepwise", "collectonly", "maxfail")
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return None
    if any(config.getoption(name, None) for name in narrowed):
        return None
    expression = config.getoption("markexpr")
    return expression if expression in MEASURED else None


def factor() -> float:
    """Return what budgets are multiplied by."""
    text = os.environ.get(FACTOR, "1")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise pytest.UsageError(f"{FACTOR} is {text!r}, expected a positive number; 2 doubles the budgets.")
    return value


class Guard:
    """Fails a default run that needs more processor time than its budget.

    Args:
        config: Of the session.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.worker = hasattr(config, "workeroutput")
        self.config = config
        self.expression = whole_run(config)
        self.factor = factor()
        self.of_workers = 0.0
        self.lines: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        """Add what a worker of xdist has used, which it says as it ends."""
        self.of_workers += getattr(node, "workeroutput", {}).get(_KEY, 0.0)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session, exitstatus):
        """Compare, before the workers are waited for: their time must not count twice."""
        used = processor_seconds()
        if self.worker:
            self.config.workeroutput[_KEY] = used
        elif self.expression is not None and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            used += self.of_workers
            budget = MEASURED[self.expression] * HEADROOM * self.factor
            self.lines.append(f"{used:.0f} s of processor time, of {budget:.0f} s")
            if used > budget:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
                self.lines.append(
                    f"FAILED: the tests take more than their budget. Find what became slow with --durations=15; on a "
                    f"processor that is slow as a whole, raise the budget by {FACTOR}={1.1 * used / budget:.1f}. Where "
                    f"more time is wanted, change MEASURED in {os.path.relpath(__file__)}."
                )

    def pytest_terminal_summary(self, terminalreporter):
        """Print what was found, above pytest's closing line."""
        if self.lines:
            terminalreporter.section("budget of the test run")
            for line in self.lines:
                terminalreporter.write_line(line)


def register(config: pytest.Config) -> None:
    """Watch the session of a configuration; where there is no ``getrusage`` there is no guard."""
    if sys.platform != "win32":
        config.pluginmanager.register(Guard(config), "nnunet_ext_budget")
