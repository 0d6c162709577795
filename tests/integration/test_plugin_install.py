"""The wheel: what is in it, what it does once installed, and that nothing stays after it is removed."""

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
DEPENDENCIES = str(Path(find_spec("nnunetv2").origin).parents[1])
MARKER = "__nnunet_ext_seam__"
PROBE = f"""
import sys
from importlib.util import find_spec
import nnunetv2.utilities.find_class_by_name as module
print(type(sys.meta_path[0]).__name__ == "SeamFinder", hasattr(module.recursive_find_python_class, "{MARKER}"),
      find_spec("nnunet_ext") is not None)
"""


def call(*arguments: str | Path, cwd: Path, **variables: str) -> str:
    ignored = ("nnUNet_", "NNUNET_EXT_", "PYTHONPATH", "PIP_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(ignored)}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1", **variables}
    done = subprocess.run(
        [str(argument) for argument in arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    if find_spec("build") is not None and find_spec("hatchling") is not None:
        build = ["build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY]
    else:
        build = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, REPOSITORY]
    call(sys.executable, "-m", *build, cwd=folder)
    (made,) = folder.glob("nnunetv2_ext-*.whl")
    return made


def test_startup_line_is_at_the_root_of_the_wheel_and_in_its_record(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("nnunet_ext.pth").decode().strip() == "import nnunet_ext.plugin.startup"
        (record,) = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        assert any(line.startswith("nnunet_ext.pth,sha256=") for line in archive.read(record).decode().splitlines())
        assert "nnunet_ext/discovery/nnunet_ext_trainers.py" in archive.namelist()
        assert not [name for name in archive.namelist() if name.startswith(("tests/", "trainers", "planners"))]


def test_target_folder_without_startup_lines(wheel, tmp_path):
    site = tmp_path / "site"
    call(sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    path = os.pathsep.join([str(site), DEPENDENCIES])
    assert call(sys.executable, "-S", "-c", PROBE, cwd=tmp_path, PYTHONPATH=path).split() == ["False", "False", "True"]
    code = f"import nnunet_ext; print(nnunet_ext.__file__); nnunet_ext.activate()\n{PROBE}"
    used, probed = call(sys.executable, "-S", "-c", code, cwd=tmp_path, PYTHONPATH=path).splitlines()
    assert Path(used).is_relative_to(site)
    assert probed.split() == ["True", "True", "True"]
    shown = call(sys.executable, "-S", "-m", "nnunet_ext", "nnUNetv2_train", "-h", cwd=tmp_path, PYTHONPATH=path)
    assert "usage: nnUNetv2_train " in shown


def test_environment_installed_active_uninstalled_stock(wheel, tmp_path):
    environment = tmp_path / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    # nnU-Net comes from the environment of the tests. Never while pip runs: it would see what is installed there.
    dependencies = site / "zz_dependencies.pth"
    before = files_below(environment)

    pip = [sys.executable, "-m", "pip", "--python", python]
    call(*pip, "install", "--no-deps", wheel, cwd=tmp_path)
    assert (site / "nnunet_ext.pth").is_file()
    dependencies.write_text(DEPENDENCIES + "\n")
    assert call(python, "-c", PROBE, cwd=tmp_path).split() == ["True", "True", "True"]
    assert call(python, "-c", PROBE, cwd=tmp_path, NNUNET_EXT_DISABLE="1").split() == ["False", "False", "True"]

    dependencies.unlink()
    call(*pip, "uninstall", "-y", "nnunetv2-ext", cwd=tmp_path)
    assert files_below(environment) == before
    site.mkdir(exist_ok=True)  # pip removes the folder where it becomes empty
    dependencies.write_text(DEPENDENCIES + "\n")
    assert call(python, "-c", PROBE, cwd=tmp_path).split() == ["False", "False", "False"]
