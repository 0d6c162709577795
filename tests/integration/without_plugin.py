"""An environment in which the plugin cannot be imported, as for somebody who has not installed it."""

# Python imports it at start-up, in spawned workers too; by then the plugin's own start-up line has run.
WITHOUT_PLUGIN = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "nnunet_ext":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path[:] = [Missing(), *(finder for finder in sys.meta_path if type(finder).__name__ != "SeamFinder")]
for name in [name for name in sys.modules if name.partition(".")[0] == "nnunet_ext"]:
    del sys.modules[name]
"""
