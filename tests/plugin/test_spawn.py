"""Spawned workers see the same nnU-Net as their parent."""

import os
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import nnunet_ext
from nnunet_ext.plugin import compat, seam_spawn, startup

# The function travels with the work item: it is imported while the item is unpickled, hence activation must be earlier.
SCRIPT = """
import multiprocessing
import sys


def probe(function):
    return hasattr(function, "{marker}"), "nnunet_ext.plugin.startup" in sys.modules


def nested(function):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(probe, (function,))


if __name__ == "__main__":
    {activate}
    from concurrent.futures import ProcessPoolExecutor
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as function

    context = multiprocessing.get_context("{method}")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(probe(function), pool.submit(probe, function).result(), pool.submit(nested, function).result())
"""


def write(folder: Path, activate: str = "pass", method: str = "spawn") -> str:
    path = folder / "script.py"
    path.write_text(SCRIPT.format(marker=compat.MARKER, activate=activate, method=method))
    return str(path)


PACKAGES = str(Path(find_spec("nnunetv2").origin).parents[1])
ROOT = str(Path(nnunet_ext.__file__).parents[1])


def test_workers_see_the_seam_through_the_startup_line(run, tmp_path, fake_nnunet):
    assert run(write(tmp_path), PYTHONPATH=str(fake_nnunet)).stdout.strip() == " ".join(["(True, True)"] * 3)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_see_the_seam_through_activate_where_no_startup_line_runs(run, tmp_path, fake_nnunet, method):
    path = os.pathsep.join([str(fake_nnunet), PACKAGES, ROOT])
    done = run("-S", write(tmp_path, "import nnunet_ext; nnunet_ext.activate()", method), PYTHONPATH=path)
    assert done.stdout.strip() == " ".join(["(True, True)"] * 3)
    assert done.stderr == ""


def test_real_nnunetv2_in_workers_through_activate(run, tmp_path):
    path = os.pathsep.join([PACKAGES, ROOT])
    done = run("-S", write(tmp_path, "import nnunet_ext; nnunet_ext.activate()"), PYTHONPATH=path)
    assert done.stdout.strip() == " ".join(["(True, True)"] * 3)


def test_workers_activate_where_only_the_parents_sys_path_leads_to_us(run, tmp_path, fake_nnunet):
    activate = f"sys.path.append({ROOT!r}); import nnunet_ext; nnunet_ext.activate()"
    path = os.pathsep.join([str(fake_nnunet), PACKAGES])
    done = run("-S", write(tmp_path, activate), PYTHONPATH=path)
    assert done.stdout.strip() == " ".join(["(True, True)"] * 3)


def test_workers_are_stock_without_activation_and_startup_line(run, tmp_path, fake_nnunet):
    path = os.pathsep.join([str(fake_nnunet), PACKAGES, ROOT])
    done = run("-S", write(tmp_path), PYTHONPATH=path)
    assert done.stdout.strip() == " ".join(["(False, False)"] * 3)


def test_workers_are_stock_when_disabled(run, tmp_path, fake_nnunet):
    path = os.pathsep.join([str(fake_nnunet), PACKAGES, ROOT])
    script = write(tmp_path, "import nnunet_ext; nnunet_ext.activate()")
    done = run("-S", script, PYTHONPATH=path, NNUNET_EXT_DISABLE="1")
    assert done.stdout.replace("True)", "any)").strip().startswith("(False, any) (False, ")
    assert "(True, " not in done.stdout


def test_spawn_is_left_alone_until_activate(run):
    code = (
        "import multiprocessing.spawn as spawn, nnunet_ext; from nnunet_ext.plugin import startup;"
        f"print(hasattr(spawn.get_preparation_data, '{compat.MARKER}')); nnunet_ext.activate(); nnunet_ext.activate();"
        f"print(hasattr(spawn.get_preparation_data, '{compat.MARKER}'),"
        f" hasattr(spawn.get_preparation_data.__wrapped__, '{compat.MARKER}'), startup.status()[-1])"
    )
    before, after = run("-c", code).stdout.splitlines()
    assert before == "False"
    assert after == f"True False {('spawn', startup.SPAWN_SEAM[0], 'active')}"


def test_installing_twice_wraps_once():
    module = ModuleType("spawn")

    def get_preparation_data(name):
        return {"name": name}

    module.get_preparation_data = get_preparation_data
    seam_spawn.install(module)
    seam_spawn.install(module)
    assert module.get_preparation_data.__wrapped__ is get_preparation_data
    assert module.get_preparation_data("worker").keys() == {"name", seam_spawn.KEY}


def test_another_signature_is_refused():
    module = ModuleType("spawn")
    module.get_preparation_data = stock = lambda: {}
    with pytest.raises(compat.SeamError, match=r"\(name\), found"):
        seam_spawn.install(module)
    assert module.get_preparation_data is stock


def test_prepare_ignores_our_key():
    import inspect
    from multiprocessing import spawn

    source = inspect.getsource(spawn.prepare)
    assert seam_spawn.KEY not in source
    assert "for " not in source  # picks the keys it knows, does not walk over the dictionary
