"""The report: its numbers against hand-made summaries, its figures, its wording."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from matplotlib.image import imread

from nnunet_ext.demo.dataset import write_dataset
from nnunet_ext.demo.figures import read_slices
from nnunet_ext.demo.phantom import LABELS
from nnunet_ext.demo.report import ORGANS, Comparison, Method, compare, markdown_table, verdict
from nnunet_ext.demo.report import write_report as write

CASES = ("test_000", "test_001", "test_002")
SETUP = {
    "labeled": 5, "unlabeled": 40, "test": 3, "seed": 0, "epochs": 2, "iterations": 3, "device": "cpu",
    "machine": "Linux", "nnunetv2": "2.8.1", "torch": "2", "precision": "x",
    "commands": ["nnUNetv2_train A", "nnUNetv2_train B"],
}  # fmt: skip


def _summary(path: Path, dice: dict[str, float]) -> Path:
    """Dice of each case, the same for every organ but the pancreas, which has half of it."""
    cases = [
        {
            "prediction_file": f"/somewhere/{case}.nii.gz",
            "metrics": {
                str(LABELS[organ]): {
                    "Dice": value / 2 if organ == "pancreas" else value,
                    "n_ref": 5 if organ == "aorta" else 1000,
                }
                for organ in ORGANS
            },
        }
        for case, value in dice.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metric_per_case": cases}), encoding="utf-8")
    return path


def _shifted(source: Path, target: Path, voxels: int) -> None:
    labels = SimpleITK.ReadImage(str(source))
    moved = SimpleITK.GetImageFromArray(np.roll(SimpleITK.GetArrayFromImage(labels), voxels, axis=2))
    moved.CopyInformation(labels)
    target.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(moved, str(target))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("raw"), labeled=0, unlabeled=0, test=3)


@pytest.fixture(scope="module")
def methods(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Method, Method]:
    folder = tmp_path_factory.mktemp("predictions")
    made = []
    for title, shift, dice, seconds in (("supervised", 3, (0.4, 0.5, 0.6), 60.0), ("CPS", 1, (0.5, 0.7, 0.9), 240.0)):
        _summary(folder / title / "summary.json", dict(zip(CASES, dice, strict=True)))
        for case in CASES:
            _shifted(dataset / "labelsTs" / f"{case}.nii.gz", folder / title / f"{case}.nii.gz", shift)
        curves = folder / f"{title}.png"
        curves.write_bytes(b"curves of " + title.encode())
        made.append(Method(title, f"nnUNetTrainer{title}", folder / title, seconds, 1500.0, curves))
    return made[0], made[1]


@pytest.fixture(scope="module")
def report(dataset: Path, methods: tuple[Method, Method], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write(folder, dataset, *methods, SETUP)
    return folder


def _row(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_holds_the_means_of_the_summaries(report: Path) -> None:
    page = (report / "report.md").read_text(encoding="utf-8")
    # supervised (0.4 + 0.5 + 0.6) / 3, CPS (0.5 + 0.7 + 0.9) / 3, the pancreas half of both
    assert _row(page, "liver")[1:3] == ["0.500", "0.700"]
    assert _row(page, "liver")[3].startswith("+0.200 (")
    assert _row(page, "pancreas")[1:3] == ["0.250", "0.350"]
    # five organs in full, one half: 0.5 * 5.5 / 6 and 0.7 * 5.5 / 6
    assert _row(page, "mean")[1:3] == ["0.458", "0.642"]
    assert _row(page, "worst case")[1:] == ["0.367", "0.458", "+0.092"]  # 0.4 and 0.5 times 5.5 / 6
    assert _row(page, "aorta (smallest)")[1:3] == ["0.500", "0.700"]
    assert _row(page, "training time")[1:] == ["1 min 00 s", "4 min 00 s", "4.0 times"]
    assert _row(page, "peak host memory")[1:] == ["1.50 GB", "1.50 GB", "+0.00 GB"]


def test_json_holds_the_same_numbers(report: Path) -> None:
    content = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert content["methods"]["CPS"]["dice"]["test_001"]["liver"] == 0.7
    assert content["methods"]["supervised"]["mean_dice"] == pytest.approx(0.5 * 5.5 / 6)
    assert content["difference"]["organs"]["liver"]["mean"] == pytest.approx(0.2)
    assert content["difference"]["mean"]["low"] > 0
    assert content["setup"]["iterations"] == 3
    assert content["methods"]["CPS"]["worst_case_dice"] == pytest.approx(0.5 * 5.5 / 6)
    assert content["smallest_organ"] == "aorta"
    assert "was better" in content["verdict"]
    assert "worst case 0.367 to 0.458; smallest organ, aorta, 0.500 to 0.700" in content["verdict"]


def test_what_is_printed_names_folder_and_files(
    dataset: Path, methods: tuple[Method, Method], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, dataset, *methods, SETUP)
    printed = capsys.readouterr().out
    assert f"In {tmp_path}:" in printed
    assert all(path.name in printed for path in tmp_path.iterdir())
    assert "| pancreas " in printed


def test_a_method_without_curves_is_reported_all_the_same(
    dataset: Path, methods: tuple[Method, Method], tmp_path: Path
) -> None:
    write(tmp_path, dataset, methods[0], replace(methods[1], curves=tmp_path / "none.png"), SETUP)
    assert sorted(path.name for path in tmp_path.glob("progress_*.png")) == ["progress_supervised.png"]


def test_pictures_are_written_and_not_blank(report: Path) -> None:
    for name, colours in (("dice_per_organ.png", 20), ("overlays.png", 200)):
        picture = imread(report / name)
        assert min(picture.shape[:2]) > 400
        shades = np.rint(255 * picture[::2, ::2, :3]).astype(int) @ (65536, 256, 1)
        assert len(np.unique(shades)) > colours
    assert (report / "progress_cps.png").read_bytes() == b"curves of CPS"


@pytest.mark.parametrize("flipped", [False, True])
def test_slices_face_the_same_way_however_they_are_stored(tmp_path: Path, flipped: bool) -> None:
    labels = np.zeros((3, 4, 6), dtype=np.uint8)
    labels[0, 2, 4] = labels[1, 2, 4] = 1
    labels[1, 3, 5] = 2
    scan = labels.astype(np.int16) * 100
    for name, array in (("scan", scan), ("labels", labels)):
        stored = array[:, ::-1, ::-1] if flipped else array
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(stored))
        image.SetSpacing((2.0, 3.0, 5.0))
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1) if flipped else (1, 0, 0, 0, 1, 0, 0, 0, 1))
        SimpleITK.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    hu, (shown,), aspect = read_slices(tmp_path / "scan.nii.gz", [tmp_path / "labels.nii.gz"])
    np.testing.assert_array_equal(shown, labels[1])  # the slice with two labels
    np.testing.assert_array_equal(hu, scan[1])
    assert aspect == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("gains", "wording"),
    [
        ((0.1, 0.1, 0.2), "CPS was better than supervised"),
        ((-0.1, 0.2, 0.0), "CPS was not distinguishable from supervised"),
        ((-0.1, -0.2, -0.1), "CPS was worse than supervised"),
    ],
)
def test_verdict_says_what_the_interval_allows(gains: tuple[float, ...], wording: str) -> None:
    baseline = np.full((3, len(ORGANS)), 0.5)
    comparison = Comparison(CASES, baseline, baseline + np.array(gains)[:, None])
    assert verdict(comparison, "supervised", "CPS").startswith(wording)


def test_columns_of_the_table_line_up(methods: tuple[Method, Method]) -> None:
    comparison = compare(*(method.predictions / "summary.json" for method in methods))
    lines = markdown_table(comparison, *methods).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_summaries_of_different_cases_are_refused(tmp_path: Path) -> None:
    first = _summary(tmp_path / "a" / "summary.json", {"test_000": 0.5})
    second = _summary(tmp_path / "b" / "summary.json", {"test_001": 0.5})
    with pytest.raises(ValueError, match="differ in their cases: test_000, test_001; evaluate both on the same folder"):
        compare(first, second)
