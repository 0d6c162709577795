"""Names of nnU-Net that begin with an underscore, or that its next version may move, stand in compat.py alone."""

import ast
import functools
import importlib.util
from pathlib import Path

import pytest

import nnunet_ext

PACKAGE = Path(nnunet_ext.__file__).parent
SEAM = "plugin/compat.py"
SOURCES = sorted(str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if "discovery" not in file.parts)
# Without an underscore, but inner workings all the same.
INNER_NAMES = {"local_logger", "my_fantastic_logging"}
# Hooks that nnU-Net's own variants of the trainer override, as ours must: (folder, name) -> why there is no other way.
HOOKS = {
    ("trainers", "_build_loss"): "the only method that nnU-Net asks for a loss",
    ("trainers", "_get_deep_supervision_scales"): "the only method that decides the sizes of outputs and targets",
}


def underscored(name):
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined_in(tree):
    """Names that a module defines: functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@functools.cache
def private_names():
    """Every name with one underscore that nnU-Net and its loaders define."""
    names = set()
    for package in ("nnunetv2", "batchgenerators"):
        folder = Path(importlib.util.find_spec(package).submodule_search_locations[0])
        for file in folder.rglob("*.py"):
            names.update(filter(underscored, defined_in(ast.parse(file.read_text(encoding="utf-8")))))
    return names


def bound_to_nnunet(tree):
    """Names that a module gives to modules of nnU-Net or its loaders."""
    packages = ("nnunetv2", "batchgenerators")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in packages:
                    yield alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in packages:
            yield from (alias.asname or alias.name for alias in node.names)


def is_hook(name, file, owner):
    """Whether a use is an override of an allowed hook, or its call through self or super()."""
    of_object = owner is None or (isinstance(owner, ast.Name) and owner.id == "self")
    of_super = isinstance(owner, ast.Call) and isinstance(owner.func, ast.Name) and owner.func.id == "super"
    return (of_object or of_super) and (Path(file).parts[0], name) in HOOKS


def uses(source, file):
    """Lines of a module that use what is private to nnU-Net, and what they use."""
    tree = ast.parse(source)
    private = private_names() | INNER_NAMES
    foreign = set(bound_to_nnunet(tree))
    for node in ast.walk(tree):
        found = []
        if isinstance(node, ast.Attribute):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            replaced = isinstance(node.ctx, ast.Store) and isinstance(root, ast.Name) and root.id in foreign
            if replaced or (node.attr in private and not is_hook(node.attr, file, node.value)):
                found = [node.attr]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("nnunetv2", "batchgenerators"):
            found = [alias.name for alias in node.names if underscored(alias.name)]
        elif isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            found = [item.name for item in methods if item.name in private and not is_hook(item.name, file, None)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in private:
            found = [node.value]  # getattr, a key of a checkpoint
        for name in found:
            yield node.lineno, name


@pytest.mark.parametrize("file", [file for file in SOURCES if file != SEAM])
def test_private_names_of_nnunet_stand_in_one_place(file):
    found = [f"line {line}: {name}" for line, name in uses((PACKAGE / file).read_text(encoding="utf-8"), file)]
    assert not found, f"{file} uses what may change with nnU-Net's version ({found}); give it a function in {SEAM}"


@pytest.mark.parametrize(
    "source",
    [
        "trainer._do_i_compile()",
        "self._best_ema",
        "super()._start()",
        "trainer._build_loss()",
        "logger.local_logger.log",
        "getattr(trainer, '_best_ema')",
        "from nnunetv2.training.logging.nnunet_logger import _hidden",
        "from batchgenerators.dataloading import augmenter as x\nx.producer = 3",
        "import nnunetv2.training.loss\nnnunetv2.training.loss.Loss = None",
        "class Ours(Theirs):\n    def _do_i_compile(self):\n        return True",
    ],
)
def test_what_is_private_is_noticed(source):
    assert list(uses(source, "trainers/ours.py"))


@pytest.mark.parametrize("source", ["self._own_of_ours", "self._build_loss()", "super()._build_loss()", "a = _best"])
def test_what_is_ours_or_a_hook_is_not(source):
    assert not list(uses(source, "trainers/ours.py"))


def test_hooks_are_for_trainers():
    assert list(uses("self._build_loss()", "training/ours.py"))


def test_the_names_in_compat_are_still_nnunets():
    tree = ast.parse((PACKAGE / SEAM).read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and underscored(node.attr)}
    assert "_do_i_compile" in used
    assert used | {name for _, name in HOOKS} <= private_names()


def test_compat_imports_nothing_that_costs_time(run):
    """The start-up hook imports it in every process that imports nnU-Net, and every room of ours does."""
    script = "import sys, nnunet_ext.plugin.compat; print(*sys.modules)"
    modules = run("-c", script, PYTHONPATH=str(PACKAGE.parent)).stdout.split()
    assert not {"torch", "numpy", "nnunetv2", "batchgenerators"} & set(modules)
    rooms = {name for name in modules if name.startswith("nnunet_ext.")}
    assert rooms <= {"nnunet_ext.plugin", "nnunet_ext.plugin.startup", "nnunet_ext.plugin.compat"}
