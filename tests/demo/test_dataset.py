"""The phantoms on disk: what nnU-Net reads, and what a second call keeps."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunet_ext import files
from nnunet_ext.demo import dataset
from nnunet_ext.demo.dataset import DATASET_NAME, write_dataset
from nnunet_ext.demo.phantom import LABELS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("raw"), seed=1, labeled=2, unlabeled=2, test=1)


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def test_layout(folder: Path) -> None:
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.nii.gz")}
    assert folder.name == DATASET_NAME
    assert names == {
        "imagesTr/labeled_000_0000.nii.gz",
        "imagesTr/labeled_001_0000.nii.gz",
        "labelsTr/labeled_000.nii.gz",
        "labelsTr/labeled_001.nii.gz",
        "imagesUnlabeled/unlabeled_000_0000.nii.gz",
        "imagesUnlabeled/unlabeled_001_0000.nii.gz",
        "imagesTs/test_000_0000.nii.gz",
        "labelsTs/test_000.nii.gz",
    }


def test_dataset_json_is_what_nnunet_expects(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert content["channel_names"] == {"0": "CT"}
    assert content["labels"] == LABELS
    assert content["numTraining"] == 2
    cases = get_filenames_of_train_images_and_targets(str(folder), content)
    assert sorted(cases) == ["labeled_000", "labeled_001"]


def test_nnunets_reader_accepts_every_labelled_case(folder: Path) -> None:
    reader = SimpleITKIO()
    for images, labels, name in (("imagesTr", "labelsTr", "labeled_001"), ("imagesTs", "labelsTs", "test_000")):
        image, image_properties = reader.read_images((str(folder / images / f"{name}_0000.nii.gz"),))
        segmentation, properties = reader.read_seg(str(folder / labels / f"{name}.nii.gz"))
        assert image.shape == segmentation.shape
        assert image_properties["spacing"] == pytest.approx(properties["spacing"])
        assert image_properties["sitk_stuff"] == properties["sitk_stuff"]
        assert sorted(np.unique(segmentation)) == sorted(LABELS.values())


def test_a_second_call_writes_only_what_is_missing(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path, seed=1, labeled=1, unlabeled=1, test=1)
    before = _times(folder)
    missing = folder / "labelsTs" / "test_000.nii.gz"
    image = folder / "imagesTs" / "test_000_0000.nii.gz"
    content = missing.read_bytes()
    missing.unlink()
    write_dataset(tmp_path, seed=1, labeled=1, unlabeled=1, test=1)
    after = _times(folder)
    kept = before.keys() - {missing, image}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    assert missing.read_bytes()[10:] == content[10:]  # the first bytes of a gzip file hold the time


def test_an_interrupted_write_leaves_nothing_that_nnunet_would_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die_halfway(image: object, path: str) -> None:
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset.SimpleITK, "WriteImage", die_halfway)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, labeled=1, unlabeled=0, test=0)
    folder = tmp_path / DATASET_NAME
    assert not list((folder / "imagesTr").glob("*"))
    monkeypatch.undo()
    write_dataset(tmp_path, labeled=1, unlabeled=0, test=0)
    assert (folder / "imagesTr" / "labeled_000_0000.nii.gz").stat().st_size > 10_000


def test_more_cases_of_one_group_do_not_change_another(tmp_path: Path, folder: Path) -> None:
    other = write_dataset(tmp_path, seed=1, labeled=1, unlabeled=0, test=1)
    reader = SimpleITKIO()
    first, second = (reader.read_seg(str(root / "labelsTs" / "test_000.nii.gz"))[0] for root in (folder, other))
    np.testing.assert_array_equal(first, second)


def test_other_settings_in_the_same_folder_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"holds phantoms made with .*'seed': 1.*expected .*'seed': 2.*another folder"):
        write_dataset(folder.parent, seed=2, labeled=2, unlabeled=2, test=1)


def test_what_killed_runs_left_is_swept(tmp_path: Path) -> None:
    images = tmp_path / DATASET_NAME / "imagesTr"
    dead = images / files._partial_name("files").replace(f"_{os.getpid()}_", "_4194000_")
    dead.mkdir(parents=True)
    (tmp_path / DATASET_NAME / "unfinished").mkdir()
    write_dataset(tmp_path, labeled=1, unlabeled=0, test=0)
    assert [path.name for path in images.iterdir()] == ["labeled_000_0000.nii.gz"]
    assert not (tmp_path / DATASET_NAME / "unfinished").exists()


def test_a_damaged_dataset_json_is_named(tmp_path: Path) -> None:
    (tmp_path / DATASET_NAME).mkdir()
    (tmp_path / DATASET_NAME / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"dataset\.json is no JSON .*; remove it: it is written again"):
        write_dataset(tmp_path, labeled=1, unlabeled=0, test=0)
