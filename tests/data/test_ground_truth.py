import json
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


def test_the_seam_passes_every_other_error_on(dataset: TinyDataset):
    module = ModuleType("fake")

    def preprocess_dataset(
        dataset_id,
        plans_identifier="nnUNetPlans",
        configurations=(),
        num_processes=8,
        verbose=False,
        show_progress_bar=True,
    ):
        raise OSError("label is missing")

    module.preprocess_dataset = preprocess_dataset
    seam_ground_truth.install(module)
    with pytest.raises(OSError, match="label is missing"):
        module.preprocess_dataset(777, "SemiSupervisedPlans")
    content = json.loads((dataset.raw / "dataset.json").read_text())
    content["dataset"]["c"]["label"] = str(dataset.raw / "nowhere.nii.gz")
    (dataset.raw / "dataset.json").write_text(json.dumps(content))
    assert module.preprocess_dataset(777, "SemiSupervisedPlans", configurations=["2d"]) is None
    assert copied(dataset) == ["a.nii.gz", "b.nii.gz"]
    drain()
