"""What is freed stays with the process: large pieces are not mapped anew in every step."""

import subprocess
import sys

import pytest

from nnunet_ext.training.host_memory import keep_freed_memory

FAULTS = """
import resource, sys
import numpy as np
from nnunet_ext.training.host_memory import keep_freed_memory

kept = keep_freed_memory({}) if sys.argv[1] == "keep" else False

def step():
    pieces = [np.ones(2**22 + 2**18 * i, np.uint8) for i in range(12)]  # 4 to 7 MB
    large = np.ones(2**25 - 2**20, np.uint8)

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_pages_are_not_mapped_anew():
    found = {}
    for how in ("keep", "leave"):
        output = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=120
        ).stdout.split()
        found[how] = (output[0], int(output[1]))
    assert found["keep"][0] == "True"
    assert found["keep"][1] < 100 < 10000 < found["leave"][1]


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "100000"}, {"MALLOC_MMAP_MAX_": "9"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}],
)
def test_settings_of_users_stay(environment):
    assert keep_freed_memory(environment) is False


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory({}) is False
