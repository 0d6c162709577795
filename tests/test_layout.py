"""Rooms of the package: which may import which, no circles, no long files; and the names that others rely on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

import nnunet_ext

NAME = "nnunet_ext"
PACKAGE = Path(nnunet_ext.__file__).parent
TESTS = Path(__file__).parent
# A room imports itself and those below it. Rooms of one line stand side by side, and import each other not at all.
ORDER = (
    ("cli", "demo"),
    ("pseudo_labels",),
    ("evaluation",),
    ("figures",),
    ("inference", "trainers"),
    ("model_sharing", "planners", "engines"),
    ("training", "fingerprints", "propagation"),
    ("data",),
    ("losses", "networks", "files", "errors"),
)
ROOT = "the package itself"  # __init__ and __main__, which anybody may import
COMPAT = f"{NAME}.plugin.compat"  # every private name of nnU-Net, for every room
BESIDE = {  # room -> what it may import beside what the order says
    "cli": {"demo", "plugin"},
    "evaluation": {"plugin"},
    ROOT: {"plugin"},
    "discovery": {"trainers"},
    "plugin": {"discovery", *(room for line in ORDER for room in line)},
}
MOST_LINES, MOST_LINES_OF_BODY = 400, 50
# Written into plans, checkpoints, wheels and code of users.
STAYS = (
    "cli.main:main",
    "discovery.nnunet_ext_trainers:nnUNetTrainerCPS",
    "inference:ForcedSpacing",
    "inference:MaxVoxels",
    "inference:PredictionFailedError",
    "inference:Predictor",
    "inference:TargetSpacing",
    "losses:ContourWeightedLoss",
    "losses:DistanceWeightedCrossEntropy",
    "losses:GeneralisedDiceLoss",
    "losses:HybridLoss",
    "losses:bcp_loss",
    "losses:contour_map",
    "losses:cross_pseudo_loss",
    "losses:cross_pseudo_region_loss",
    "losses:literal_hybrid_loss",
    "losses:pseudo_labels",
    "losses:unlabelled_loss",
    "losses:unlabelled_region_loss",
    "networks:AttentionGate",
    "networks:InstructiveFeatureEnhancement",
    "networks:NestedAttentionUNet",
    "networks:curvature_scores",
    "networks:entropy_scores",
    "networks.ife_unet:IFEPlainConvUNet",
    "networks.ife_unet:IFEResidualEncoderUNet",
    "networks.nested_unet:NestedAttentionUNet",
    "networks.space_time:SpaceTimeNetwork",
    "planners.anu_net:ANUNetPlanner",
    "planners.global_fingerprint:GlobalIntensityFingerprintExtractor",
    "planners.preprocessor:SemiSupervisedPreprocessor",
    "planners.semi_supervised:SemiSupervisedPlanner",
    "plugin.startup:activate",
    "trainers:nnUNetTrainerCPS",
    "trainers.cps:CPSPart",
    "trainers.cwcd:CWCDPart",
)


class Arrow(NamedTuple):
    """A module that another one names.

    Attributes:
        line: Where it is named.
        target: Its full name.
        imported: By an import; False where a text names it.
    """

    line: int
    target: str
    imported: bool


def modules(package: Path) -> dict[str, Path]:
    """Return the files of a package by the names of their modules."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            yield node.value


def arrows(path: Path, known: Mapping[str, Path]) -> Iterator[Arrow]:
    """Find what a file imports of its package: at its top, for types only, in functions, and by texts."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    said = {id(node) for node in docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import, expected {NAME}.ROOM.module"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Arrow(node.lineno, whole if whole in known else node.module or "", True)
        elif isinstance(node, ast.Import):
            yield from (Arrow(node.lineno, alias.name, True) for alias in node.names)
        elif isinstance(node, ast.Constant) and id(node) not in said and _is_name(node.value):
            yield Arrow(node.lineno, str(node.value).partition(":")[0], False)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"{NAME}(\.\w+)+(:\w+)?", value) is not None


def room_of(module: str) -> str:
    parts = module.split(".")
    return ROOT if len(parts) == 1 or parts[1] == "__main__" else parts[1]


def allowed(room: str) -> set[str]:
    """Return the rooms that one may import."""
    place = next((number for number, line in enumerate(ORDER) if room in line), len(ORDER))
    return {room, ROOT, *BESIDE.get(room, ())}.union(*ORDER[place + 1 :])


def wrong_arrows(package: Path) -> list[str]:
    known = modules(package)
    found = []
    for name, path in known.items():
        room = room_of(name)
        for line, target, _ in sorted(arrows(path, known)):
            if not f"{target}.".startswith(f"{NAME}.") or f"{target}.".startswith(f"{COMPAT}."):
                continue
            if room_of(target) not in allowed(room):
                rooms = ", ".join(sorted(allowed(room) - {ROOT}))
                found.append(
                    f"{path.relative_to(package.parent)}:{line}: {room} names {target}, but may import only {rooms}"
                )
    return found


def circle(package: Path) -> list[str] | None:
    """Return files that import each other in a circle, the first of them again at the end, or None."""
    known = modules(package)
    graph = {
        name: {arrow.target for arrow in arrows(path, known) if arrow.imported and arrow.target in known}
        for name, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def too_long(package: Path) -> list[str]:
    found = []
    for path in modules(package).values():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(package.parent)
        if (lines := len(text.splitlines())) > MOST_LINES:
            found.append(f"{name} has {lines} lines, expected at most {MOST_LINES}; move a subject out")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[ast.get_docstring(node) is not None :]
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                if lines > MOST_LINES_OF_BODY:
                    found.append(
                        f"{name}:{node.lineno}: the body of {node.name} has {lines} lines, expected at most "
                        f"{MOST_LINES_OF_BODY}"
                    )
    return found


def test_rooms_import_one_way():
    assert wrong_arrows(PACKAGE) == []


def test_no_circles():
    assert circle(PACKAGE) is None


def test_no_long_files_and_functions():
    assert too_long(PACKAGE) == []


def test_every_room_has_its_place():
    there = {room_of(name) for name in modules(PACKAGE)} - {ROOT}
    assert there - {"plugin", "discovery"} <= {room for line in ORDER for room in line}


def test_tests_mirror_the_package():
    rooms = {path.parent.name for path in TESTS.glob("*/test_*.py")} - {"integration"}
    assert rooms <= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize("name", STAYS)
def test_what_others_rely_on_stays_where_it_is(name):
    module, attribute = name.split(":")
    assert getattr(import_module(f"{NAME}.{module}"), attribute).__name__ == attribute


@pytest.fixture
def made_up(tmp_path):
    """Make a package whose rooms import nothing, and return what writes one more file of it and gives its folder."""
    package = tmp_path / NAME

    def write(file: str, text: str) -> Path:
        path = package / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return package

    for room in (*(room for line in ORDER for room in line), "plugin", "discovery"):
        write(f"{room}/__init__.py", "")
        write(f"{room}/a.py", "")
    write("plugin/compat.py", "")
    return write


@pytest.mark.parametrize(
    ("room", "text", "line"),
    [
        ("training", "from nnunet_ext.inference import a", 1),
        ("training", "import nnunet_ext.trainers.a", 1),
        ("training", "\n\ndef f():\n    from nnunet_ext.model_sharing.a import g", 4),
        ("data", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nnunet_ext.fingerprints.a import C", 3),
        ("training", "PART = 'nnunet_ext.trainers.a:Part'", 1),
        ("trainers", "from nnunet_ext.inference.a import f", 1),
        ("losses", "from nnunet_ext import networks", 1),
        ("demo", "from nnunet_ext.cli import a", 1),
        ("inference", "from nnunet_ext.plugin import a", 1),
        ("discovery", "from nnunet_ext.training import a", 1),
        ("training", "from nnunet_ext.propagation import a", 1),
    ],
)
def test_an_arrow_against_the_order_is_seen(made_up, room, text, line):
    (found,) = wrong_arrows(made_up(f"{room}/b.py", text))
    assert found.startswith(f"{NAME}/{room}/b.py:{line}: {room} names {NAME}.")
    assert f"but may import only {', '.join(sorted(allowed(room) - {ROOT}))}" in found


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("cli", "from nnunet_ext import demo, files, plugin"),
        ("losses", "from nnunet_ext.plugin import compat\nfrom nnunet_ext.plugin.compat import NAME"),
        ("losses", '"""Used by :func:`nnunet_ext.trainers.a`."""\n"""nnunet_ext.trainers.a"""'),
        ("pseudo_labels", "from nnunet_ext.evaluation import a\nfrom nnunet_ext.propagation import a as b"),
        ("training", "from nnunet_ext import __version__\nfrom nnunet_ext.training import a"),
        ("plugin", "from nnunet_ext.inference import a\nfrom nnunet_ext.data import a as b"),
    ],
)
def test_an_arrow_along_the_order_is_fine(made_up, room, text):
    assert wrong_arrows(made_up(f"{room}/b.py", text)) == []


@pytest.mark.parametrize(
    "back",
    [
        "from nnunet_ext.data import b",
        "def f():\n    import nnunet_ext.data.b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from nnunet_ext.data.b import C",
    ],
)
def test_a_circle_is_seen(made_up, back):
    assert circle(made_up("data/b.py", "from nnunet_ext.data import c")) is None
    made_up("data/c.py", "from nnunet_ext.data.d import f")
    found = circle(made_up("data/d.py", back))
    assert found is not None
    assert set(found) == {f"{NAME}.data.{file}" for file in "bcd"}


def test_what_is_too_long_is_seen(made_up):
    body = "    x = 1\n" * MOST_LINES_OF_BODY
    made_up("data/b.py", f'def fits():\n    """One.\n\n    Two.\n    """\n{body}')
    assert too_long(made_up("data/c.py", "\n" * MOST_LINES)) == []
    made_up("data/b.py", f"def f():\n{body}    x = 2\n")
    file, function = too_long(made_up("data/a.py", "\n" * (MOST_LINES + 1)))
    assert file.startswith(f"{NAME}/data/a.py has 401 lines")
    assert function.startswith(f"{NAME}/data/b.py:1: the body of f has 51 lines")
