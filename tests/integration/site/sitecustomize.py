"""Less work for the commands of the tests where no test looks at it. Python imports this file at start-up.

Workers are forked where spawning is not the subject: nnU-Net's imports take seconds in each new process. A variable
decides, so that one environment can have both kinds. And nnU-Net's extractor of fingerprints draws fewer intensities.
"""

import functools
import importlib.util
import multiprocessing
import os
import sys

EXTRACTOR = "nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor"


class _FewerIntensities:
    """Finds that module and changes one number: 10^8 intensities, of images with 16,000 voxels, take ten seconds."""

    def find_spec(self, name, path=None, target=None):
        if name != EXTRACTOR:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        original = spec.loader.exec_module

        def exec_module(module):
            original(module)
            extractor = module.DatasetFingerprintExtractor
            extractor.__init__ = _with_fewer(extractor.__init__)

        spec.loader.exec_module = exec_module
        return spec


def _with_fewer(original):
    @functools.wraps(original)
    def init(self, *arguments, **keywords):
        original(self, *arguments, **keywords)
        self.num_foreground_voxels_for_intensitystats = 1e5

    return init


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


sys.meta_path.insert(0, _FewerIntensities())
if os.environ.get("TESTS_FORK_INSTEAD_OF_SPAWN") == "1" and "fork" in multiprocessing.get_all_start_methods():
    _fork_instead_of_spawn()
