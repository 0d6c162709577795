"""Which integration tests one worker of xdist runs, because they share fixtures that take long to make.

A fixture of a session is made once by each worker that needs it. What is in no group goes, a file at a time, to the
worker that has time. xdist's own groups (``--dist loadgroup``) are not seen with every version of pytest.
"""

import pytest

_COMMANDS = "integration/test_stock_commands.py::"
# The first beginning that fits decides.
GROUPS = {
    f"{_COMMANDS}TestTraining::test_regions": "regions",
    f"{_COMMANDS}TestTraining::test_2d": "prepared",
    f"{_COMMANDS}TestTraining::test_low": "prepared",
    f"{_COMMANDS}TestPreparing": "prepared",
    f"{_COMMANDS}TestContinuing": "prepared",
    _COMMANDS: "trained",
    "integration/test_enhanced_networks.py": "trained",
    "integration/test_export_without_plugin.py": "trained",
    "integration/test_prediction_options.py": "trained",
    "integration/test_profile.py": "trained",
    "integration/test_pseudo_labels.py": "trained",
    "integration/test_nested_networks.py": "prepared",
    "integration/test_pairs_by_commands.py": "prepared",
    "integration/test_propagation_training.py": "prepared",
    "integration/test_reference_networks.py": "prepared",
    "integration/test_unchanged_stock.py": "prepared",
    "integration/test_planning_unlabelled.py::TestRealData": "real data",
    "integration/test_planning_unlabelled.py": "prepared",
    "integration/test_propagation_by_commands.py": "prepared",
}


def group_of(nodeid: str) -> str:
    """Return the group of a test, by default its file."""
    name = nodeid.removeprefix("tests/")
    return next((group for start, group in GROUPS.items() if name.startswith(start)), name.partition("::")[0])


def check(items) -> None:
    """Refuse tests that would make a worker prepare or train what another one has already."""
    for item in items:
        needed = getattr(item, "fixturenames", ())
        wanted = ("trained",) if "trained" in needed else ("trained", "prepared")
        if "blobs" in needed and group_of(item.nodeid) not in wanted:
            raise pytest.UsageError(
                f"{item.nodeid} is in the group {group_of(item.nodeid)!r}, expected {wanted[-1]!r} for the fixtures "
                "that it uses; add it to GROUPS in tests/groups.py"
            )


def scheduler(config: pytest.Config, log):
    """Return the scheduler of xdist that keeps groups together."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return GroupScheduling(config, log)
