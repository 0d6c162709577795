"""Plans of ours are checked and what they name is locked before nnU-Net preprocesses; other plans are left to it."""

import json
from types import ModuleType

import pytest
from data.tiny_dataset import TinyDataset, make_plans

from nnunet_ext.data.preprocess_guard import guarded
from nnunet_ext.files import BusyError, only_here
from nnunet_ext.plugin import seam_ground_truth

NESTED = "nnunet_ext.networks.nested_unet.NestedAttentionUNet"


def our_plans(kind: str, **changes) -> dict:
    if kind == "preprocessor":
        return make_plans("OurPlans", preprocessor_name="SemiSupervisedPreprocessor", **changes)
    plans = make_plans("OurPlans", **changes)
    for configuration in plans["configurations"].values():
        configuration["architecture"] = {"network_class_name": NESTED}
    return plans


def cut_short(tiny: TinyDataset, name: str) -> None:
    file = tiny.preprocessed / name
    file.write_text(file.read_text()[:-20])


@pytest.fixture
def stock() -> tuple[ModuleType, list]:
    """A module with nnU-Net's function, which notes its calls; the seam is installed."""
    module, calls = ModuleType("fake"), []

    def preprocess_dataset(
        dataset_id,
        plans_identifier="nnUNetPlans",
        configurations=("2d", "3d_fullres"),
        num_processes=(8, 4),
        verbose=False,
        show_progress_bar=True,
    ):
        calls.append((dataset_id, plans_identifier, configurations, num_processes, verbose, show_progress_bar))

    module.preprocess_dataset = preprocess_dataset
    seam_ground_truth.install(module)
    return module, calls


@pytest.mark.parametrize("kind", ["preprocessor", "network"])
def test_damaged_plans_of_ours_are_named(tiny: TinyDataset, stock, kind):
    tiny.write_plans(our_plans(kind))
    cut_short(tiny, "OurPlans.json")
    with pytest.raises(ValueError, match=r"OurPlans\.json is no JSON \(line .*\); restore it, or plan again"):
        stock[0].preprocess_dataset(777, "OurPlans")
    assert stock[1] == []


@pytest.mark.parametrize("kind", ["preprocessor", "network"])
def test_a_damaged_dataset_json_is_named(tiny: TinyDataset, kind):
    tiny.write_plans(our_plans(kind))
    (tiny.preprocessed / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessed.*dataset\.json is no JSON .*; copy that of the raw data there"):
        guarded(777, "OurPlans", ["2d"])


def test_damaged_plans_of_others_are_left_to_nnunet(tiny: TinyDataset, stock):
    tiny.write_plans(make_plans())
    cut_short(tiny, "nnUNetPlans.json")
    stock[0].preprocess_dataset(777)
    stock[0].preprocess_dataset(777, "Missing", ["2d"], [1], show_progress_bar=False)
    assert stock[1] == [
        (777, "nnUNetPlans", ("2d", "3d_fullres"), (8, 4), False, True),
        (777, "Missing", ["2d"], [1], False, False),
    ]


def test_impossible_values_are_named_before_a_preprocessor_of_nnunet_runs(tiny: TinyDataset, stock):
    plans = our_plans("network")
    plans["configurations"]["2d"]["patch_size"] = "large"
    tiny.write_plans(plans)
    with pytest.raises(ValueError, match=r"OurPlans\.json, configuration '2d' has patch_size 'large', expected"):
        stock[0].preprocess_dataset(777, "OurPlans", ["2d"])
    stock[0].preprocess_dataset(777, "OurPlans", ["3d_fullres", "3d_nothing"])
    assert len(stock[1]) == 1


def test_two_runs_with_a_preprocessor_of_nnunet_do_not_meet(tiny: TinyDataset, stock):
    plans = our_plans("network")
    tiny.write_plans(plans)
    folder = tiny.preprocessed / plans["configurations"]["2d"]["data_identifier"]
    with only_here(folder, "preprocessed"), pytest.raises(BusyError, match=f"{folder.name} is being preprocessed by"):
        stock[0].preprocess_dataset(777, "OurPlans", ["3d_fullres", "2d"])
    assert stock[1] == []
    stock[0].preprocess_dataset(777, "OurPlans", ["3d_fullres", "2d"])
    with guarded(777, "OurPlans", ["2d"]), pytest.raises(BusyError, match="is being preprocessed"):
        guarded(777, "OurPlans", ["2d"])


def test_a_preprocessor_of_ours_locks_for_itself(tiny: TinyDataset):
    plans = our_plans("preprocessor")
    tiny.write_plans(plans)
    with (
        guarded(777, "OurPlans", ["3d_fullres"]),
        only_here(tiny.preprocessed / plans["configurations"]["3d_fullres"]["data_identifier"], "preprocessed"),
    ):
        pass


def test_plans_without_configurations(tiny: TinyDataset):
    (tiny.preprocessed / "OurPlans.json").write_text(json.dumps({"of": NESTED}))
    with pytest.raises(ValueError, match=r"OurPlans\.json has no 'configurations'"):
        guarded(777, "OurPlans", ["2d"])
