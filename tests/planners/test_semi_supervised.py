import importlib
import inspect
import json
import math
import pkgutil
import shutil
from pathlib import Path

import nnunetv2.experiment_planning.experiment_planners as stock_planners
import pytest
from data.tiny_dataset import NAME, SHAPE, TinyDataset, make_plans
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from nnunet_ext.planners.own_plans import STOCK_PLANS
from nnunet_ext.planners.semi_supervised import (
    SemiSupervisedPlanner,
    SemiSupervisedPlannerResEncL,
    SemiSupervisedPlannerResEncM,
    SemiSupervisedPlannerResEncXL,
)


@pytest.fixture
def planned(tiny: TinyDataset) -> TinyDataset:
    """A dataset with a fingerprint, and two labelled cases in the form that starts no pool."""
    dataset = {}
    for seed, name in enumerate("lm"):
        image, label = tiny.add_labelled(name, seed)
        dataset[name] = {"images": [str(image)], "label": str(label)}
    tiny.write_dataset_json(dataset=dataset)
    statistics = make_plans()["foreground_intensity_properties_per_channel"]
    fingerprint = {
        "spacings": [[1.0, 1.0, 1.0]] * 2,
        "shapes_after_crop": [list(SHAPE)] * 2,
        "foreground_intensity_properties_per_channel": statistics,
        "median_relative_size_after_cropping": 1.0,
        "global_intensity_properties_per_channel": statistics,
        "unlabeled_spacings": [],
        "unlabeled_shapes_after_crop": [],
    }
    (tiny.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    (tiny.preprocessed / "nnUNetPlans.json").unlink()
    return tiny


def narrow(planner: ExperimentPlanner) -> ExperimentPlanner:
    """Let it plan narrow networks with few stages, which take less time to look at."""
    planner.UNet_base_num_features = 4
    planner.UNet_featuremap_min_edge_length = 8
    return planner


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
    assert (ours.pop("intensity_source"), ours.pop("spacing_source")) == ("global", "all")
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


def change_fingerprint(tiny: TinyDataset, **changes) -> dict:
    path = tiny.preprocessed / "dataset_fingerprint.json"
    fingerprint = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in fingerprint.items() if value is not None}))
    return fingerprint


GLOBAL = {"0": {"mean": 1, "median": 2, "std": 3, "min": 4, "max": 5, "percentile_99_5": 6, "percentile_00_5": 7}}
FINER = {
    "unlabeled_spacings": [[0.5, 0.5, 0.5]] * 3,
    "unlabeled_shapes_after_crop": [[24, 32, 28]] * 3,
    "global_intensity_properties_per_channel": GLOBAL,
}


@pytest.mark.parametrize(
    ("intensity", "spacing"), [("global", "all"), ("foreground", "labeled"), ("global", "labeled")]
)
def test_sources_are_attributes_and_the_plans_say_which_were_used(planned: TinyDataset, intensity, spacing):
    stock = change_fingerprint(planned, **FINER)["foreground_intensity_properties_per_channel"]
    planner = SemiSupervisedPlanner(777)
    planner.intensity_source, planner.spacing_source = intensity, spacing
    plans = planner.plan_experiment()
    assert (plans["intensity_source"], plans["spacing_source"]) == (intensity, spacing)
    assert plans["foreground_intensity_properties_per_channel"] == (GLOBAL if intensity == "global" else stock)
    # Median over two labelled (1 mm) and three unlabelled (0.5 mm) cases, or over the labelled alone.
    assert plans["configurations"]["3d_fullres"]["spacing"] == [0.5 if spacing == "all" else 1.0] * 3
    assert read(planned, "SemiSupervisedPlans")["intensity_source"] == intensity


def test_an_unknown_source_is_refused(planned: TinyDataset):
    planner = SemiSupervisedPlanner(777)
    planner.intensity_source = "all"
    with pytest.raises(ValueError, match=r"intensity_source is 'all', expected one of \('global', 'foreground'\)"):
        planner.plan_experiment()


def test_without_global_statistics_it_warns_once_and_records_what_it_used(planned: TinyDataset):
    change_fingerprint(planned, global_intensity_properties_per_channel=None)
    planner = SemiSupervisedPlanner(777)
    with pytest.warns(UserWarning, match="-d 777 -fpe GlobalIntensityFingerprintExtractor") as caught:
        plans = planner.plan_experiment()
    assert len(caught) == 1
    assert (plans["intensity_source"], plans["spacing_source"]) == ("foreground", "labeled")


def unlabelled_only(tiny: TinyDataset, number: int = 3) -> None:
    for seed in range(number):
        tiny.add_unlabeled(f"u{seed}", seed)
    tiny.write_dataset_json(numTraining=0)
    shapes = {"spacings": [[1.0] * 3] * number, "shapes_after_crop": [[48, 56, 48]] * number}
    change_fingerprint(
        tiny, **shapes, unlabeled_spacings=shapes["spacings"], unlabeled_shapes_after_crop=shapes["shapes_after_crop"]
    )
    shutil.rmtree(tiny.raw / "imagesTr")


def test_unlabelled_only_counts_images_for_the_batch_and_keeps_the_2d_batch_at_twelve(planned: TinyDataset):
    unlabelled_only(planned, 40)
    planner = narrow(SemiSupervisedPlannerResEncM(777))  # leaves room for a large batch
    plans = planner.plan_experiment()
    assert plans["spacing_source"] == "all"
    assert plans["configurations"]["2d"]["batch_size"] == 12
    assert plans["configurations"]["3d_fullres"]["batch_size"] > 2
    labelled = planned.add_labelled("l", 0)
    planned.write_dataset_json(dataset={"l": {"images": [str(labelled[0])], "label": str(labelled[1])}}, numTraining=1)
    change_fingerprint(planned, spacings=[[1.0] * 3], shapes_after_crop=[[48, 56, 48]])
    planner = narrow(SemiSupervisedPlannerResEncM(777))
    with_label = planner.plan_experiment()
    assert with_label["configurations"]["2d"]["batch_size"] > 12  # one labelled case and 40 others: nnU-Net's rule


def test_a_damaged_first_image_does_not_decide_the_reader(planned: TinyDataset):
    first = json.loads((planned.raw / "dataset.json").read_text())["dataset"]["l"]["images"][0]
    Path(first).write_bytes(b"no image")
    assert SemiSupervisedPlanner(777).determine_reader_writer().__name__ == "SimpleITKIO"


@pytest.mark.parametrize(
    ("planner", "name", "stock"),
    [
        (SemiSupervisedPlannerResEncM, "SemiSupervisedResEncMPlans", nnUNetPlannerResEncM),
        (SemiSupervisedPlannerResEncL, "SemiSupervisedResEncLPlans", nnUNetPlannerResEncL),
        (SemiSupervisedPlannerResEncXL, "SemiSupervisedResEncXLPlans", nnUNetPlannerResEncXL),
    ],
)
def test_residual_encoders_plan_as_stock_does_under_their_own_names(planned: TinyDataset, planner, name, stock):
    expected = stock(777).plan_experiment()
    ours = planner(777, preprocessor_name="DefaultPreprocessor").plan_experiment()
    assert ours["plans_name"] == name
    assert set(ours["configurations"]) == set(expected["configurations"])
    for configuration, plan in ours["configurations"].items():
        assert plan["data_identifier"] == f"{name}_{configuration}"
        same = ("patch_size", "batch_size", "architecture", "spacing", "batch_dice")
        assert all(plan[key] == expected["configurations"][configuration][key] for key in same)
    signatures = (inspect.signature(c.__init__).parameters for c in (planner, stock))
    assert list(next(signatures)) == list(next(signatures))


def test_an_explicit_memory_target_is_the_total_of_a_cps_step(planned: TinyDataset, capsys):
    shape = {"shapes_after_crop": [[48, 56, 48]] * 2, "unlabeled_shapes_after_crop": []}
    change_fingerprint(planned, **shape)
    free = narrow(SemiSupervisedPlanner(777))
    free_plan = free.plan_experiment()["configurations"]["3d_fullres"]
    needed = free.cps_memory(free_plan) / 2**30
    assert "3d_fullres: " in capsys.readouterr().out
    target = free.memory_reserve_gb + needed / 2
    tight = narrow(SemiSupervisedPlanner(777, gpu_memory_target_in_gb=target, plans_name="TightPlans"))
    plans = tight.plan_experiment()
    for configuration in plans["configurations"].values():
        assert tight.cps_memory(configuration) / 2**30 <= target - tight.memory_reserve_gb
    used = tight.cps_memory(plans["configurations"]["3d_fullres"]) / 2**30
    assert used > 0.6 * (target - tight.memory_reserve_gb)  # and not much is left unused


def test_a_measure_of_ones_own_decides_the_fit(planned: TinyDataset):
    class Mine(SemiSupervisedPlanner):
        def cps_memory(self, plan):
            return int(math.prod(map(int, plan["patch_size"]))) * 2**30 // 2000

    plan = narrow(Mine(777, gpu_memory_target_in_gb=3.0)).plan_experiment()["configurations"]["3d_fullres"]
    assert 1 < Mine(777).step_memory(plan) / 2**30 <= 3.0


def test_a_memory_target_that_nothing_fits_is_refused(planned: TinyDataset):
    with pytest.raises(ValueError, match=r"-gpu_memory_target 1\.001: not even the smallest patch"):
        SemiSupervisedPlanner(777, gpu_memory_target_in_gb=1.001).plan_experiment()


def test_planning_twice_plans_the_same(planned: TinyDataset):
    change_fingerprint(planned, **FINER)
    planner = SemiSupervisedPlanner(777)
    assert planner.plan_experiment() == planner.plan_experiment()


def test_without_labels_labelled_sources_are_refused(planned: TinyDataset):
    unlabelled_only(planned)
    planner = SemiSupervisedPlanner(777)
    planner.intensity_source = "foreground"
    with pytest.raises(ValueError, match="has no labels, so SemiSupervisedPlanner can only plan with"):
        planner.plan_experiment()


def test_configurations_of_an_earlier_planning_go_and_those_of_users_stay(planned: TinyDataset):
    SemiSupervisedPlanner(777).plan_experiment()
    path = planned.preprocessed / "SemiSupervisedPlans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_lowres"] = plans["configurations"]["3d_fullres"]
    plans["configurations"]["3d_mine"] = {"inherits_from": "3d_fullres"}
    path.write_text(json.dumps(plans))
    assert set(SemiSupervisedPlanner(777).plan_experiment()["configurations"]) == {"2d", "3d_fullres", "3d_mine"}
    assert set(read(planned, "SemiSupervisedPlans")["configurations"]) == {"2d", "3d_fullres", "3d_mine"}
