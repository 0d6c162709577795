import re
from types import ModuleType

import pytest
from data.tiny_dataset import TinyDataset, make_plans

from nnunet_ext.data.failures import drain
from nnunet_ext.data.ground_truth import copy_what_is_there
from nnunet_ext.plugin import seam_ground_truth


@pytest.fixture
def dataset(tiny: TinyDataset) -> TinyDataset:
    listed = {}
    for seed, name in enumerate("abc"):
        image, label = tiny.add_labelled(name, seed)
        listed[name] = {"images": [str(image)], "label": str(label)}
    tiny.write_dataset_json(dataset=listed)
    tiny.write_plans(make_plans("SemiSupervisedPlans", preprocessor_name="SemiSupervisedPreprocessor"))
    drain()
    return tiny


def copied(tiny: TinyDataset) -> list[str]:
    folder = tiny.preprocessed / "gt_segmentations"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_missing_label_costs_itself_only(dataset: TinyDataset):
    (dataset.raw / "labelsTr" / "b.nii.gz").unlink()
    assert copy_what_is_there(777, "SemiSupervisedPlans")
    assert copied(dataset) == ["a.nii.gz", "c.nii.gz"]
    (failure,) = drain()
    assert (failure.case, failure.kind) == ("b", "labelled")
    assert "labelsTr/b.nii.gz does not exist; add it or remove the case" in failure.reason


@pytest.mark.parametrize("plans", ["nnUNetPlans", "SemiSupervisedPlans", "Nobodys"])
def test_other_plans_and_complete_datasets_are_not_touched(dataset: TinyDataset, plans):
    if plans != "SemiSupervisedPlans":
        (dataset.raw / "labelsTr" / "b.nii.gz").unlink()
    assert not copy_what_is_there(777, plans)
    assert copied(dataset) == []
    assert drain() == []


def seam_around(raises: Exception) -> ModuleType:
    module = ModuleType("fake")

    def preprocess_dataset(
        dataset_id,
        plans_identifier="nnUNetPlans",
        configurations=(),
        num_processes=8,
        verbose=False,
        show_progress_bar=True,
    ):
        raise raises

    module.preprocess_dataset = preprocess_dataset
    seam_ground_truth.install(module)
    return module


class DistutilsFileError(Exception):
    pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), FileNotFoundError("plans"), ValueError("x")])
@pytest.mark.parametrize("label_is_missing", [False, True])
def test_the_seam_passes_every_other_error_on(dataset: TinyDataset, error, label_is_missing):
    if label_is_missing:
        (dataset.raw / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(type(error), match=re.escape(str(error))):
        seam_around(error).preprocess_dataset(777, "SemiSupervisedPlans")
    assert copied(dataset) == []
    assert drain() == []


@pytest.mark.parametrize("kind", [FileNotFoundError, DistutilsFileError])
def test_the_seam_takes_the_error_that_names_a_missing_label(dataset: TinyDataset, kind):
    label = dataset.raw / "labelsTr" / "b.nii.gz"
    label.unlink()
    module = seam_around(kind(f"can't copy '{label}': doesn't exist or not a regular file"))
    assert module.preprocess_dataset(777, "SemiSupervisedPlans", configurations=["2d"]) is None
    assert "b.nii.gz" not in copied(dataset)
    assert [failure.reason for failure in drain()] == [f"{label} does not exist; add it or remove the case"]
