import importlib
import inspect
import json
import pkgutil

import nnunetv2.experiment_planning.experiment_planners as stock_planners
import pytest
from data.tiny_dataset import NAME, SHAPE, TinyDataset, make_plans
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunet_ext.planners.semi_supervised import STOCK_PLANS, SemiSupervisedPlanner


@pytest.fixture
def planned(tiny: TinyDataset) -> TinyDataset:
    """A dataset with a fingerprint, and two labelled cases in the form that starts no pool."""
    dataset = {}
    for seed, name in enumerate("lm"):
        image, label = tiny.add_labelled(name, seed)
        dataset[name] = {"images": [str(image)], "label": str(label)}
    tiny.write_dataset_json(dataset=dataset)
    fingerprint = {
        "spacings": [[1.0, 1.0, 1.0]] * 2,
        "shapes_after_crop": [list(SHAPE)] * 2,
        "foreground_intensity_properties_per_channel": make_plans()["foreground_intensity_properties_per_channel"],
        "median_relative_size_after_cropping": 1.0,
    }
    (tiny.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    (tiny.preprocessed / "nnUNetPlans.json").unlink()
    return tiny


def read(tiny: TinyDataset, name: str) -> dict:
    return json.loads((tiny.preprocessed / f"{name}.json").read_text())


def test_plans_are_stock_plans_under_names_of_their_own(planned: TinyDataset):
    ExperimentPlanner(777).plan_experiment()
    stock_file = planned.preprocessed / "nnUNetPlans.json"
    before = (stock_file.read_bytes(), stock_file.stat().st_mtime_ns)
    SemiSupervisedPlanner(777, preprocessor_name="DefaultPreprocessor").plan_experiment()
    assert (stock_file.read_bytes(), stock_file.stat().st_mtime_ns) == before
    stock, ours = read(planned, "nnUNetPlans"), read(planned, "SemiSupervisedPlans")
    assert ours["plans_name"] == "SemiSupervisedPlans"
    assert ours["experiment_planner_used"] == "SemiSupervisedPlanner"
    assert set(ours["configurations"]) == {"2d", "3d_fullres"}
    for name, configuration in ours["configurations"].items():
        assert configuration["data_identifier"] == f"SemiSupervisedPlans_{name}"
        assert configuration["preprocessor_name"] == "SemiSupervisedPreprocessor"
        for key in ("data_identifier", "preprocessor_name"):
            configuration[key] = stock["configurations"][name][key]
    for key in ("plans_name", "experiment_planner_used"):
        ours[key] = stock[key]
    assert ours == stock


@pytest.mark.parametrize("given", ["DefaultPreprocessor", None])
def test_the_default_preprocessor_means_that_none_was_named(planned: TinyDataset, given):
    planner = SemiSupervisedPlanner(777, **({} if given is None else {"preprocessor_name": given}))
    assert planner.preprocessor_name == "SemiSupervisedPreprocessor"


def test_another_preprocessor_and_other_plans_can_be_named(planned: TinyDataset):
    planner = SemiSupervisedPlanner(NAME, preprocessor_name="MyPreprocessor", plans_name="MyPlans")
    assert planner.preprocessor_name == "MyPreprocessor"
    assert planner.generate_data_identifier("2d") == "MyPlans_2d"


def test_planning_again_overwrites_its_own_plans(planned: TinyDataset):
    SemiSupervisedPlanner(777).plan_experiment()
    first = read(planned, "SemiSupervisedPlans")
    SemiSupervisedPlanner(777).plan_experiment()
    assert read(planned, "SemiSupervisedPlans") == first


def test_the_signature_is_stocks():
    ours, stock = (inspect.signature(c.__init__).parameters for c in (SemiSupervisedPlanner, ExperimentPlanner))
    assert list(ours) == list(stock)


def test_every_name_that_a_stock_planner_uses_is_known():
    used = set()
    for module in pkgutil.walk_packages(stock_planners.__path__, f"{stock_planners.__name__}."):
        for _, planner in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(planner, ExperimentPlanner):
                used.add(inspect.signature(planner.__init__).parameters["plans_name"].default)
    assert {"nnUNetPlans", "nnUNetResEncUNetLPlans"} < used
    assert used <= set(STOCK_PLANS)


@pytest.mark.parametrize("name", STOCK_PLANS)
def test_plans_names_of_stock_planners_are_refused(planned: TinyDataset, name):
    with pytest.raises(ValueError, match=f"SemiSupervisedPlanner must not write {name}, .* -overwrite_plans_name"):
        SemiSupervisedPlanner(777, plans_name=name)
    assert not (planned.preprocessed / f"{name}.json").exists()


def test_plans_of_another_planner_are_refused_and_untouched(planned: TinyDataset):
    planned.write_plans(make_plans("MyPlans"))
    before = (planned.preprocessed / "MyPlans.json").read_bytes()
    with pytest.raises(ValueError, match=r"MyPlans\.json was written by ExperimentPlanner; .* does not overwrite"):
        SemiSupervisedPlanner(777, plans_name="MyPlans")
    assert (planned.preprocessed / "MyPlans.json").read_bytes() == before
