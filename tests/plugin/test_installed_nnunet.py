"""The plugin on the nnU-Net that is installed, by snippets that one new interpreter runs: it imports for seconds."""

import json

import pytest

from nnunet_ext.plugin import compat

# In this order: the first one looks at an interpreter in which nobody has imported nnU-Net.
SNIPPETS = {
    "seams": f"""
import pickle
import nnunetv2.run.run_training as training, nnunetv2.inference.predict_from_raw_data as prediction
import nnunetv2.experiment_planning.plan_and_preprocess_entrypoints as entries
import nnunetv2.utilities.find_objects as objects
from nnunet_ext.plugin.startup import SEAMS, status
assert [(module, state) for _, module, state in status()] == [(module, "active") for module in SEAMS], status()
for function in (
    training.maybe_load_checkpoint, training.recursive_find_trainer_class_by_name,
    prediction.recursive_find_trainer_class_by_name, objects.recursive_find_python_class,
    entries.plan_and_preprocess_entry, entries.preprocess_entry, entries.extract_fingerprint_entry,
    prediction.predict_entry_point, prediction.predict_entry_point_modelfolder,
):
    assert function.{compat.MARKER} and pickle.loads(pickle.dumps(function)) is function
pickle.loads(pickle.dumps(training.run_ddp))
print("fine")
""",
    "callers": """
import inspect, nnunetv2.experiment_planning.plan_and_preprocess_api as api
from nnunetv2.utilities.plans_handling import plans_handler
from nnunet_ext.plugin.seam_find_class import CLASSES
for module, where in ((api, "nnunetv2.experiment_planning"), (plans_handler, "nnunetv2.preprocessing")):
    assert f'current_module="{where}")' in inspect.getsource(module) and where in CLASSES
folder = api.nnunetv2.__path__[0] + "/experiment_planning"
find = api.recursive_find_python_class
assert find(folder, "NoSuchPlanner", current_module="nnunetv2.experiment_planning") is None
planner = find(folder, "ResEncUNetPlanner", current_module="nnunetv2.experiment_planning")
assert planner is find.__wrapped__(folder, "ResEncUNetPlanner", current_module="nnunetv2.experiment_planning")
assert planner.__name__ == "ResEncUNetPlanner"
for name in CLASSES["nnunetv2.experiment_planning"]:
    assert find(folder, name, current_module="nnunetv2.experiment_planning").__name__ == name
for name in CLASSES["nnunetv2.preprocessing"]:
    folder = api.nnunetv2.__path__[0] + "/preprocessing"
    assert find(folder, name, current_module="nnunetv2.preprocessing").__name__ == name
print("fine")
""",
    "names": """
from nnunetv2.run.run_training import recursive_find_trainer_class_by_name as find
for name in ("nnUNetTrainerCPS", "nnUNetTrainerCPS_3epochs"):
    assert find(name).__name__ == name and find(name) is find(name)
for name in ("nnUNetTrainerNobodyHas", "SomethingElse", "nnUNetTrainerCPS_CPS"):
    try:
        find(name)
    except Exception as error:
        print(type(error).__name__, str(error)[:40])
""",
    "folder": f"""
import os, pathlib
folder = pathlib.Path("trainers").absolute()
folder.mkdir()
(folder / "mine.py").write_text(
    "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\\n\\n\\n"
    "class nnUNetTrainerCPS(nnUNetTrainer):\\n    mine = True\\n"
)
os.environ["nnUNet_extTrainer"] = str(folder)
from nnunetv2.run.run_training import recursive_find_trainer_class_by_name as find
assert find.{compat.MARKER}
found = find("nnUNetTrainerCPS")
print(found.__module__, found.mine, find("nnUNetTrainer").__module__)
del os.environ["nnUNet_extTrainer"]
""",
    "exit status": """
import runpy, sys
sys.argv = ["nnunet_ext", "nnUNetv2_train", "--no-such-flag"]
runpy.run_module("nnunet_ext", run_name="__main__", alter_sys=True)
""",
}
RUN_THEM = """
import contextlib, io, json, sys, traceback

answers = {}
for name, code in json.loads(sys.argv[1]).items():
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            exec(code, {"__name__": "snippet"})
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
            status = 1
    answers[name] = status, output.getvalue().splitlines(), errors.getvalue()
print("ANSWERS" + json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(run_in, tmp_path_factory):
    """Exit status, printed lines and standard error of each snippet."""
    done = run_in(tmp_path_factory.mktemp("probe"), "-c", RUN_THEM, json.dumps(SNIPPETS))
    return json.loads(done.stdout.rpartition("ANSWERS")[2]), done.stderr


def printed(answers, name: str) -> list[str]:
    status, lines, errors = answers[0][name]
    assert status == 0, errors
    return lines


def test_every_seam_is_active_on_the_installed_nnunetv2(answers):
    assert printed(answers, "seams")[-1] == "fine"
    assert "nnunet_ext:" not in answers[0]["seams"][2] + answers[1]


def test_stock_callers_ask_with_the_modules_of_the_table(answers):
    assert printed(answers, "callers")[-1] == "fine"


def test_names_of_ours_are_found_composed_or_explained_by_the_stock_lookup(answers):
    *_, unknown, foreign, malformed = printed(answers, "names")
    assert unknown == foreign == "RuntimeError Could not find requested nnunet trainer "
    assert malformed.startswith("ValueError ")


def test_users_own_trainer_folder_wins(answers):
    assert printed(answers, "folder")[-1] == "mine True nnunetv2.training.nnUNetTrainer.nnUNetTrainer"


def test_exit_status_of_a_command_run_by_the_module_is_passed_on(answers):
    status, _, errors = answers[0]["exit status"]
    assert status == 2
    assert "nnUNetv2_train: error:" in errors
