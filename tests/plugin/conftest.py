"""Interpreters of their own for what a running pytest has already settled, and a small stand-in for nnU-Net."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

FAKE_NNUNET = {
    "nnunetv2/__init__.py": "",
    "nnunetv2/utilities/__init__.py": "",
    "nnunetv2/utilities/find_class_by_name.py": (
        '"""A stand-in."""\n\n\n'
        "def recursive_find_python_class(\n"
        "    folder, class_name, current_module, base_folder=None, verbose=False,\n"
        "    cleanup_imports_from_base_folder=False,\n"
        "):\n"
        '    return int if class_name == "Stock" else None\n'
    ),
    "nnunetv2/utilities/find_objects.py": (
        "from nnunetv2.utilities.find_class_by_name import recursive_find_python_class\n\n\n"
        "def recursive_find_trainer_class_by_name(trainer_name):\n"
        '    found = recursive_find_python_class("", trainer_name, None)\n'
        "    if found is None:\n"
        '        raise RuntimeError(f"Could not find requested nnunet trainer {trainer_name}")\n'
        "    return found\n"
    ),
}


@pytest.fixture(scope="session")
def run_in() -> Run:
    """Run Python in a folder and an interpreter of its own, without variables of nnU-Net or the plugin from outside."""

    def run_in(folder: Path, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        ignored = ("nnUNet_", "NNUNET_EXT_", "PYTHONPATH")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ignored)}
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**environment, **variables},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run_in


@pytest.fixture
def run(run_in: Run, tmp_path: Path) -> Run:
    """Run Python in a temporary folder, as ``run_in`` does."""
    return functools.partial(run_in, tmp_path)


@pytest.fixture
def fake_nnunet(tmp_path: Path) -> Path:
    """Folder for PYTHONPATH with a package ``nnunetv2`` that has two of the modules we extend and imports nothing."""
    folder = tmp_path / "fake"
    for name, text in FAKE_NNUNET.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder
