"""What a mistake of the user looks like at nnU-Net's commands."""

from types import ModuleType

import pytest

from nnunet_ext.data.signature import source_signature
from nnunet_ext.files import naming_full_disk, only_here, read_json
from nnunet_ext.plugin import compat, seam_exit_status, seam_find_class


def lookup():
    module = ModuleType("find_class")

    def recursive_find_python_class(
        folder, class_name, current_module, base_folder=None, verbose=False, cleanup_imports_from_base_folder=False
    ):
        return "stock's own" if class_name == "SemiSupervisedMine" else None

    module.recursive_find_python_class = recursive_find_python_class
    seam_find_class.install(module)
    return module.recursive_find_python_class


@pytest.mark.parametrize(
    ("name", "module", "nearest"),
    [
        ("SemiSupervisedPlaner", compat.PLANNING_MODULE, "SemiSupervisedPlanner"),
        ("semisupervisedplannerresencl", compat.PLANNING_MODULE, "SemiSupervisedPlannerResEncL"),
        ("GlobalIntensityFingerprint", compat.PLANNING_MODULE, "GlobalIntensityFingerprintExtractor"),
        ("ANUnetPlanner", compat.PLANNING_MODULE, "ANUNetPlanner"),
        ("SemiSupervisedPreproc", compat.PREPROCESSING_MODULE, "SemiSupervisedPreprocessor"),
    ],
)
def test_a_name_that_is_almost_one_of_ours(name, module, nearest):
    ours = ", ".join(sorted(seam_find_class.CLASSES[module]))
    with pytest.raises(ValueError, match=rf"there is no '{name}', did you mean {nearest}\? nnunet_ext has {ours}"):
        lookup()("folder", name, module)


def test_every_other_name_is_stocks_business():
    find = lookup()
    assert find("folder", "SemiSupervisedMine", compat.PLANNING_MODULE) == "stock's own"
    for name, module in (
        ("ExperimentPlaner", compat.PLANNING_MODULE),
        ("SemiSupervisedPlaner", "nnunetv2.imageio"),
        ("SemiSupervisedPlaner", None),
        ("MySemiSupervisedPlanner", compat.PLANNING_MODULE),
    ):
        assert find("folder", name, module) is None


def command(work) -> int:
    module = ModuleType("entries")
    for target in compat.PREPROCESSING_ENTRIES:
        setattr(module, target.function, lambda: work())
    seam_exit_status.install(module)
    return module.plan_experiment_entry()


def no_room(folder):
    with naming_full_disk(folder):
        raise OSError(28, "No space left on device")


def busy(folder):
    with only_here(folder, "planned"), only_here(folder, "planned"):
        pass


@pytest.mark.parametrize(
    ("work", "text"),
    [
        (lambda _: lookup()("folder", "SemiSupervisedPlaner", compat.PLANNING_MODULE), "there is no 'SemiSup"),
        (lambda folder: read_json(folder / "none.json"), "none.json is missing; restore or remove it"),
        (no_room, "cannot be written ([Errno 28] No space left on device): no room on its disk"),
        (busy, "is being planned by process "),
    ],
)
def test_a_mistake_that_we_name_is_said_without_a_traceback(tmp_path, capsys, work, text):
    assert command(lambda: work(tmp_path / "folder")) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert text in said
    assert "Traceback" not in said


def test_other_errors_pass():
    def stocks_own():
        raise ValueError("nnU-Net's own")

    with pytest.raises(ValueError, match="nnU-Net's own"):
        command(stocks_own)
    with pytest.raises(TypeError):
        command(lambda: read_json(None))
    with pytest.raises(KeyboardInterrupt):
        command(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    # Python itself raises this one in a line of ours, and only a traceback says where.
    with pytest.raises(ValueError, match="embedded null byte"):
        command(lambda: source_signature(("\0",)))
