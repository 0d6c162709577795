"""``python -m nnunet_ext``."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

import nnunet_ext

ROOT = str(Path(nnunet_ext.__file__).parents[1])
NO_STARTUP_LINE = os.pathsep.join([str(Path(find_spec("nnunetv2").origin).parents[1]), ROOT])


@pytest.mark.parametrize(
    ("arguments", "got"), [((), "no command given"), (("nnUNetv2_trian", "-h"), "unknown command 'nnUNetv2_trian'")]
)
def test_without_a_known_command_one_error_lists_them(run, arguments, got):
    done = run("-m", "nnunet_ext", *arguments, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert f": {got}. Commands: " in line
    for command in ("nnUNetv2_train", "nnUNetv2_plan_and_preprocess", "nnUNetv2_ext"):
        assert command in line


def test_without_nnunetv2_the_error_says_so(run):
    done = run("-S", "-m", "nnunet_ext", "nnUNetv2_train", check=False, PYTHONPATH=ROOT)
    assert done.returncode == 2
    assert "neither nnunetv2 nor nnunetv2-ext is installed" in done.stderr


def test_runs_a_stock_command_under_its_name_with_the_plugin_active(run):
    done = run("-S", "-m", "nnunet_ext", "nnUNetv2_train", "-h", PYTHONPATH=NO_STARTUP_LINE)
    assert "usage: nnUNetv2_train " in done.stdout


def test_passes_arguments_result_and_activation(run, tmp_path):
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "import nnunet_ext.__main__ as entry\n"
        "from nnunet_ext.plugin.startup import status\n\n"
        "class Point:\n"
        "    def load(self):\n"
        "        return lambda: (sys.argv, status()[-1])\n\n"
        "entry.commands = lambda: {'command': Point()}\n"
        "print(entry.main(['command', '-x', '1']))\n"
    )
    done = run("-S", "script.py", PYTHONPATH=NO_STARTUP_LINE)
    assert done.stdout.strip() == "(['command', '-x', '1'], ('spawn', 'multiprocessing.spawn', 'waiting'))"
