"""What the start-up hook does to an interpreter, to nnU-Net's modules, and what it leaves alone."""

from pathlib import Path

import pytest

from nnunet_ext.plugin import compat, startup

FIND_CLASS = "nnunetv2.utilities.find_class_by_name"
FIND_OBJECTS = "nnunetv2.utilities.find_objects"


def test_startup_imports_nothing_heavy(run):
    code = (
        "import os, sys; before = set(sys.modules); import nnunet_ext.plugin.startup as startup;"
        "new = set(sys.modules) - before; print(sorted(name for name in new if not name.startswith('nnunet_ext')))"
    )
    root = str(Path(startup.__file__).parents[2])
    assert run("-S", "-c", code, PYTHONPATH=root).stdout.strip() == "[]"


def test_interpreter_of_the_environment_starts_without_torch_numpy_nnunetv2(run):
    code = (
        "import sys; from nnunet_ext.plugin import startup;"
        "print([name for name in ('torch', 'numpy', 'nnunetv2', 'importlib.metadata', 'nnunet_ext.plugin.installer')"
        " if name in sys.modules], type(sys.meta_path[0]) is startup.SeamFinder)"
    )
    assert run("-c", code).stdout.strip() == "[] True"


def test_finder_is_in_front_and_there_once(run):
    code = (
        "import importlib, sys, nnunet_ext; from nnunet_ext.plugin import startup;"
        "nnunet_ext.activate(); nnunet_ext.activate(); importlib.reload(startup);"
        "[sys.modules.pop(name) for name in list(sys.modules) if name.startswith('nnunet_ext')];"
        "import nnunet_ext.plugin.startup, nnunet_ext; nnunet_ext.activate();"
        "print([type(finder).__name__ for finder in sys.meta_path].count('SeamFinder'),"
        " type(sys.meta_path[0]).__name__)"
    )
    assert run("-c", code).stdout.strip() == "1 SeamFinder"


@pytest.mark.parametrize("value", ["1", "true", "True"])
def test_disable_variable_turns_startup_and_activate_off(run, value):
    code = (
        "import sys, nnunet_ext; from nnunet_ext.plugin import startup; nnunet_ext.activate();"
        f"import {FIND_CLASS} as module;"
        "print([type(finder).__name__ for finder in sys.meta_path].count('SeamFinder'),"
        f" hasattr(module.recursive_find_python_class, '{compat.MARKER}'), startup.status()[0])"
    )
    expected = f"0 False ('find_class', '{FIND_CLASS}', 'refused: NNUNET_EXT_DISABLE is set')"
    assert run("-c", code, NNUNET_EXT_DISABLE=value).stdout.strip() == expected


def test_disable_variable_zero_keeps_the_plugin_on(run):
    code = "import sys; print(type(sys.meta_path[0]).__name__)"
    assert run("-c", code, NNUNET_EXT_DISABLE="0").stdout.strip() == "SeamFinder"


def test_status_goes_from_waiting_to_active(run, fake_nnunet):
    code = (
        "from nnunet_ext.plugin.startup import status; states = lambda: [state for _, _, state in status()];"
        f"print(states()); import {FIND_OBJECTS}; print(states())"
    )
    waiting, active = run("-c", code, PYTHONPATH=str(fake_nnunet)).stdout.splitlines()
    assert waiting == str(["waiting"] * len(startup.SEAMS))
    assert active == str(["active"] * 2 + ["waiting"] * (len(startup.SEAMS) - 2))


def test_names_copied_from_a_module_are_the_replaced_ones(run, fake_nnunet):
    code = (
        f"import {FIND_OBJECTS} as module; function = module.recursive_find_python_class;"
        f"import {FIND_CLASS} as origin; print(function is origin.recursive_find_python_class, "
        f"function.{compat.MARKER}, function('', 'Stock', None), "
        "function('', 'Unknown', 'nnunetv2.experiment_planning'))"
    )
    assert run("-c", code, PYTHONPATH=str(fake_nnunet)).stdout.strip() == "True True <class 'int'> None"


def test_introspection_and_pickling_work_on_an_extended_module(run, fake_nnunet):
    code = f"""
import importlib, importlib.util, inspect, pickle
spec = importlib.util.find_spec("{FIND_CLASS}")
assert spec.loader.get_source(spec.name).lstrip('"').startswith("A stand-in")
assert spec.loader.get_data(spec.origin) and not spec.loader.is_package(spec.name)
module = importlib.import_module("{FIND_CLASS}")
from importlib.machinery import SourceFileLoader
assert type(module.__loader__) is type(module.__spec__.loader) is SourceFileLoader
function = module.recursive_find_python_class
assert pickle.loads(pickle.dumps(function)) is function
assert function.__module__ == module.__name__ and function.__name__ in inspect.getsource(function)
assert list(inspect.signature(function).parameters)[:2] == ["folder", "class_name"]
assert inspect.getsource(module).lstrip('"').startswith("A stand-in") and inspect.getfile(module) == spec.origin
assert importlib.reload(module) is module and module.recursive_find_python_class.{compat.MARKER}
assert module.recursive_find_python_class is not function
assert not hasattr(module.recursive_find_python_class.__wrapped__, "{compat.MARKER}")
print("fine")
"""
    assert run("-c", code, PYTHONPATH=str(fake_nnunet)).stdout.strip() == "fine"


def test_seam_with_another_signature_is_refused_in_one_line_and_stock_untouched(run, fake_nnunet):
    path = fake_nnunet / "nnunetv2/utilities/find_class_by_name.py"
    path.write_text("def recursive_find_python_class(folder, name):\n    return 'stock'\n")
    code = (
        f"import {FIND_CLASS} as module; from nnunet_ext.plugin.startup import status;"
        "function = module.recursive_find_python_class;"
        f"print(function(1, 2), hasattr(function, '{compat.MARKER}'));"
        "print(status()[0][2])"
    )
    done = run("-c", code, PYTHONPATH=str(fake_nnunet))
    stock, state = done.stdout.splitlines()
    assert stock == "stock False"
    assert state.startswith("refused: SeamError: made for nnunetv2>=2.8.1,<3, expected recursive_find_python_class(")
    assert "(folder, name); nnU-Net is left untouched" in state
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("nnunet_ext: seam 'find_class' is not active. SeamError: made for")


def test_a_seam_that_cannot_even_be_imported_leaves_nnunet_alone(run, fake_nnunet):
    code = (
        "import sys; sys.modules['nnunet_ext.plugin.seam_find_class'] = None;"
        f"import {FIND_CLASS} as module; print(module.recursive_find_python_class('', 'Stock', None))"
    )
    done = run("-c", code, PYTHONPATH=str(fake_nnunet))
    assert done.stdout.strip() == "<class 'int'>"
    assert len(done.stderr.splitlines()) == 1


def test_an_installer_that_cannot_be_imported_leaves_nnunet_alone(run, fake_nnunet):
    code = (
        "import sys; sys.modules['nnunet_ext.plugin.installer'] = None;"
        f"import {FIND_CLASS} as module; print(module.recursive_find_python_class('', 'Stock', None))"
    )
    done = run("-c", code, PYTHONPATH=str(fake_nnunet))
    assert done.stdout.strip() == "<class 'int'>"
    assert len(done.stderr.splitlines()) == 1


def test_an_error_in_nnunets_own_module_is_its_own(run, fake_nnunet):
    (fake_nnunet / "nnunetv2/utilities/find_class_by_name.py").write_text("1 / 0\n")
    done = run("-c", f"import {FIND_CLASS}", check=False, PYTHONPATH=str(fake_nnunet))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "nnunet_ext: seam" not in done.stderr


def test_a_process_without_stderr_survives_a_refusal(run, fake_nnunet):
    (fake_nnunet / "nnunetv2/utilities/find_class_by_name.py").write_text("")
    code = f"import sys; sys.stderr = None; import {FIND_CLASS}; print('alive')"
    assert run("-c", code, PYTHONPATH=str(fake_nnunet)).stdout.strip() == "alive"


def test_late_activation_extends_the_module_and_names_those_that_copied(run, fake_nnunet):
    root = str(Path(startup.__file__).parents[2])
    code = (
        f"import {FIND_OBJECTS} as copier, {FIND_CLASS} as origin, nnunet_ext; nnunet_ext.activate();"
        "nnunet_ext.activate();"
        f"print(hasattr(origin.recursive_find_python_class, '{compat.MARKER}'),"
        f" hasattr(copier.recursive_find_python_class, '{compat.MARKER}'))"
    )
    done = run("-S", "-c", code, PYTHONPATH=f"{fake_nnunet}:{root}")
    assert done.stdout.strip() == "True False"
    assert done.stderr.splitlines() == [
        f"nnunet_ext: seam 'find_class' came too late for {FIND_OBJECTS}, where the stock function stays; "
        "call nnunet_ext.activate() before importing nnunetv2"
    ]


def test_late_activation_without_copies_is_silent(run, fake_nnunet):
    root = str(Path(startup.__file__).parents[2])
    code = f"import {FIND_CLASS}, nnunet_ext; nnunet_ext.activate()"
    assert run("-S", "-c", code, PYTHONPATH=f"{fake_nnunet}:{root}").stderr == ""


def test_table_names_the_modules_that_compat_describes():
    targets = (*compat.SINGLE_TARGETS, *compat.PREPROCESSING_ENTRIES, *compat.PREDICT_ENTRIES)
    assert set(startup.SEAMS) == {target.module for target in targets}
