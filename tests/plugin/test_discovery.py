"""The leaf folder for ``nnUNet_extTrainer``, used where the plugin is not active."""

import pkgutil
from pathlib import Path

from nnunet_ext.plugin import compat

FOLDER = Path(compat.__file__).parents[1] / "discovery"


def test_folder_holds_one_module():
    assert [module.name for module in pkgutil.iter_modules([str(FOLDER)])] == ["nnunet_ext_trainers"]


def test_listed_trainers_are_found_with_the_plugin_disabled(run):
    code = f"""
from nnunetv2.run.run_training import recursive_find_trainer_class_by_name as find
assert not hasattr(find, "{compat.MARKER}")
import nnunet_ext.trainers
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
names = nnunet_ext.trainers.__all__
assert len(names) > 30
some = ["nnUNetTrainerCPS", "nnUNetTrainerIFECurvature", "nnUNetTrainerCPS_CWCD_IFECurvature"]
some += ["nnUNetTrainerCPS_100epochs", "nnUNetTrainerANUNet_3epochs_2iterations"]
for name in some:
    assert find(name) is find(name) is getattr(nnunet_ext.trainers, name), name
    assert find(name).__name__ == name
# The rest without nnU-Net's own folder, which takes long to look through; each look imports the module anew.
for name in names[::20]:
    found = recursive_find_python_class({str(FOLDER)!r}, name, None, {str(FOLDER)!r}, False, True)
    assert found is getattr(nnunet_ext.trainers, name), name
import sys
sys.path.insert(0, {str(FOLDER)!r})
import nnunet_ext_trainers
for name in names:
    assert getattr(nnunet_ext_trainers, name) is getattr(nnunet_ext.trainers, name), name
try:
    find("nnUNetTrainerCPS_foo")
except RuntimeError as error:
    print(error)
"""
    variables = {"NNUNET_EXT_DISABLE": "1", "nnUNet_extTrainer": str(FOLDER), "PYTHONPATH": str(FOLDER.parents[1])}
    done = run("-c", code, **variables)
    assert done.stdout.splitlines()[-1].startswith("Could not find requested nnunet trainer nnUNetTrainerCPS_foo in ")
