"""Worker processes by fork where a test does not look at spawning: nnU-Net's imports take seconds in each new process.

Python imports this file at start-up where its folder is on PYTHONPATH. The variable decides, so that one environment
can have both kinds.
"""

import multiprocessing
import os
import sys


def _one_thread():
    # Threads of OpenMP do not survive a fork: a child that would wait for them waits forever.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _fork_instead_of_spawn():
    original = multiprocessing.get_context

    def get_context(method=None):
        return original("fork" if method == "spawn" else method)

    multiprocessing.get_context = get_context
    os.register_at_fork(after_in_child=_one_thread)


if os.environ.get("TESTS_FORK_INSTEAD_OF_SPAWN") == "1" and "fork" in multiprocessing.get_all_start_methods():
    _fork_instead_of_spawn()
