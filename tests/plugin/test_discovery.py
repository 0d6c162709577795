"""The leaf folder for ``nnUNet_extTrainer``, used where the plugin is not active."""

import pkgutil
from pathlib import Path

from nnunet_ext.plugin import compat

FOLDER = Path(compat.__file__).parents[1] / "discovery"


def test_folder_holds_one_module():
    assert [module.name for module in pkgutil.iter_modules([str(FOLDER)])] == ["nnunet_ext_trainers"]


def test_written_out_trainers_are_found_with_the_plugin_disabled(run):
    code = f"""
from nnunetv2.run.run_training import recursive_find_trainer_class_by_name as find
assert not hasattr(find, "{compat.MARKER}")
import nnunet_ext.trainers
names = nnunet_ext.trainers.__all__
assert "nnUNetTrainerCPS" in names
first, again = find("nnUNetTrainerCPS"), find("nnUNetTrainerCPS")
assert first is again is nnunet_ext.trainers.nnUNetTrainerCPS
for name in names:
    assert find(name).__name__ == name
print("fine")
"""
    done = run("-c", code, NNUNET_EXT_DISABLE="1", nnUNet_extTrainer=str(FOLDER))
    assert done.stdout.splitlines()[-1] == "fine"
