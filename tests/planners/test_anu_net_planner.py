"""The planner of ANU-Net."""

import inspect
import json
from pathlib import Path

import nnunetv2
import pytest
from data.tiny_dataset import SHAPE, TinyDataset, make_plans
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.planners.anu_net import ANUNetPlanner
from nnunet_ext.training.step_memory import GIB

LARGE = [64, 72, 56]


@pytest.fixture
def planned(tiny: TinyDataset) -> TinyDataset:
    """A dataset with a fingerprint, and two labelled cases in the form that starts no pool."""
    dataset = {}
    for seed, name in enumerate("lm"):
        image, label = tiny.add_labelled(name, seed)
        dataset[name] = {"images": [str(image)], "label": str(label)}
    tiny.write_dataset_json(dataset=dataset)
    write_fingerprint(tiny, SHAPE)
    (tiny.preprocessed / "nnUNetPlans.json").unlink()
    return tiny


def write_fingerprint(tiny: TinyDataset, shape) -> None:
    fingerprint = {
        "spacings": [[1.0, 1.0, 1.0]] * 2,
        "shapes_after_crop": [list(shape)] * 2,
        "foreground_intensity_properties_per_channel": make_plans()["foreground_intensity_properties_per_channel"],
        "median_relative_size_after_cropping": 1.0,
    }
    (tiny.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def narrow(**arguments) -> ANUNetPlanner:
    """A planner of narrow networks, which take less time to look at."""
    planner = ANUNetPlanner(777, **arguments)
    planner.UNet_base_num_features = 4
    return planner


def few_stages(planner: ExperimentPlanner) -> ExperimentPlanner:
    """Let a planner for large images stop earlier, which takes less time too."""
    planner.UNet_featuremap_min_edge_length = 8
    return planner


def test_nnunet_finds_it_and_passes_its_arguments():
    folder = str(Path(nnunetv2.__file__).parent / "experiment_planning")
    found = recursive_find_python_class(folder, "ANUNetPlanner", current_module="nnunetv2.experiment_planning")
    assert found is ANUNetPlanner
    signatures = [list(inspect.signature(c.__init__).parameters) for c in (ANUNetPlanner, ExperimentPlanner)]
    assert signatures[0] == signatures[1]


def test_plans_are_stock_plans_with_a_nested_network(planned: TinyDataset):
    ExperimentPlanner(777).plan_experiment()
    stock_file = planned.preprocessed / "nnUNetPlans.json"
    before = (stock_file.read_bytes(), stock_file.stat().st_mtime_ns)
    ANUNetPlanner(777).plan_experiment()
    assert (stock_file.read_bytes(), stock_file.stat().st_mtime_ns) == before
    stock, ours = (json.loads((planned.preprocessed / f"{n}.json").read_text()) for n in ("nnUNetPlans", "ANUNetPlans"))
    assert ours["plans_name"] == "ANUNetPlans"
    assert ours["experiment_planner_used"] == "ANUNetPlanner"
    assert set(ours["configurations"]) == set(stock["configurations"])
    for name, configuration in ours["configurations"].items():
        assert configuration["data_identifier"] == f"ANUNetPlans_{name}"
        network = configuration["architecture"]["network_class_name"]
        assert network == "nnunet_ext.networks.nested_unet.NestedAttentionUNet"
        # patches of this tiny dataset are its whole images, with both networks
        same = ("patch_size", "spacing", "preprocessor_name", "normalization_schemes", "batch_dice")
        assert all(configuration[key] == stock["configurations"][name][key] for key in same)
        kwargs = configuration["architecture"]["arch_kwargs"]
        assert kwargs == stock["configurations"][name]["architecture"]["arch_kwargs"]


def test_patches_fit_the_memory_of_a_nested_network(planned: TinyDataset, capsys):
    write_fingerprint(planned, LARGE)
    target = 0.567
    planner = few_stages(narrow(gpu_memory_target_in_gb=target))
    plans = planner.plan_experiment()
    assert "3d_fullres: " in capsys.readouterr().out
    for name in ("2d", "3d_fullres"):
        configuration = plans["configurations"][name]
        assert planner.step_memory(configuration) <= planner.memory_budget_in_gb * GIB
    # nothing much is left unused
    assert planner.step_memory(plans["configurations"]["3d_fullres"]) > 0.6 * planner.memory_budget_in_gb * GIB
    stock = few_stages(ExperimentPlanner(777, target))
    stock.UNet_base_num_features = 4
    patches = [p["configurations"]["3d_fullres"]["patch_size"] for p in (plans, stock.plan_experiment())]
    assert patches[0] < patches[1]


def test_the_budget_is_used_and_checkpointing_gives_larger_patches(planned: TinyDataset, monkeypatch):
    """Wide networks take less than nnU-Net's own measure says, so its targets must be no bound."""
    write_fingerprint(planned, [256, 256, 256])
    monkeypatch.setattr(ANUNetPlanner, "step_memory", lambda self, plan: step_bytes(plan, self.checkpointing))
    sizes = []
    for checkpointing in (False, True):
        planner = ANUNetPlanner(777)
        planner.checkpointing = checkpointing
        plan = planner.plan_experiment()["configurations"]["3d_fullres"]
        assert 5.3 * GIB < planner.step_memory(plan) <= 0.9 * 7.5 * GIB
        sizes.append(step_bytes(plan, False))
    assert sizes[1] > 1.5 * sizes[0]


def step_bytes(plan: dict, checkpointing: bool) -> int:
    """About what a step takes, by voxels of the batch: 4.8 KB each in 3D, as measured, or 0.4 of that."""
    voxels = int(plan["batch_size"])
    for length in plan["patch_size"]:
        voxels *= int(length)
    return int(voxels * (4800 if len(plan["patch_size"]) == 3 else 6000) * (0.4 if checkpointing else 1))


def test_what_the_trainer_may_choose_counts(planned: TinyDataset):
    write_fingerprint(planned, LARGE)
    planner = few_stages(narrow())
    plan = planner.plan_experiment()["configurations"]["3d_fullres"]
    usual = planner.step_memory(plan)
    planner.aggregation = "sum"
    assert planner.step_memory(plan) < usual
    planner.aggregation, planner.gate_ratio = "concat", 2.0
    assert planner.step_memory(plan) > 1.1 * usual
    planner.gate_ratio, planner.depth = 0.5, 1
    assert planner.step_memory(plan) < 0.5 * usual
    planner.depth = 99  # more than the stages of a small patch allow
    assert planner.step_memory(plan) == usual
    planner.depth, planner.checkpointing = None, True
    assert planner.step_memory(plan) < 0.6 * usual


def test_a_depth_that_the_stages_do_not_allow_is_warned_of(planned: TinyDataset, capsys):
    planner = narrow()
    planner.depth = 1
    planner.plan_experiment()
    assert "WARNING" not in capsys.readouterr().out
    planner.depth = 9
    plan = planner.plan_experiment()["configurations"]["3d_fullres"]
    deepest = plan["architecture"]["arch_kwargs"]["n_stages"] - 1
    text = f"WARNING: 3d_fullres allows a depth of {deepest}, not 9: set anu_depth to {deepest}"
    assert text in capsys.readouterr().out
    planner.depth = 0
    with pytest.raises(ValueError, match="depth must be 1 or more, or None for all that the stages allow, got 0"):
        planner.plan_experiment()


def test_workspaces_count_where_activations_are_computed_again(planned: TinyDataset, monkeypatch):
    planner = narrow()
    plan = planner.plan_experiment()["configurations"]["3d_fullres"]
    monkeypatch.setattr("nnunet_ext.planners.anu_net.nested_step_memory", lambda *arguments: 1000)
    planner._estimates.clear()
    assert planner.step_memory(plan) == 1000
    planner.checkpointing = True
    assert planner.step_memory(plan) == 1200


def test_a_memory_target_that_nothing_fits_is_refused(planned: TinyDataset):
    with pytest.raises(ValueError, match=r"-gpu_memory_target 0\.501: not even the smallest patch of a nested network"):
        ANUNetPlanner(777, gpu_memory_target_in_gb=0.501).plan_experiment()


@pytest.mark.parametrize("name", ["nnUNetPlans", "nnUNetResEncUNetMPlans"])
def test_plans_names_of_stock_planners_are_refused(planned: TinyDataset, name):
    with pytest.raises(ValueError, match=f"ANUNetPlanner must not write {name}, which stock planners use"):
        ANUNetPlanner(777, plans_name=name)


def test_the_trainer_builds_from_the_plans(planned: TinyDataset):
    from nnunet_ext.trainers import find_trainer

    manager = PlansManager(narrow().plan_experiment())
    configuration = manager.get_configuration("3d_fullres")
    network = find_trainer("nnUNetTrainerANUNet").build_network_architecture(manager, configuration, 1, 2, True)
    assert network.depth == configuration.network_arch_init_kwargs["n_stages"] - 1
    assert network.decoder.aggregation == "concat"
