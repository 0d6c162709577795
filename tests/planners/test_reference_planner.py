"""The planner of the reference module."""

import json
import math
import re

import pytest
from data.tiny_dataset import TinyDataset, make_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.data.preprocess_guard import guarded
from nnunet_ext.data.reference_plans import refuse_training
from nnunet_ext.planners.reference import WINDOWS, ReferencePlanner
from nnunet_ext.trainers.names import find_trainer
from nnunet_ext.training.step_memory import GIB

SHAPE = (12, 100, 70)
BOUNDS = [[-150.0, 250.0], [-1350.0, 225.0], [-500.0, 1300.0]]


@pytest.fixture
def planned(tiny: TinyDataset) -> TinyDataset:
    """A dataset of CT and MRI with nnU-Net's fingerprint, and two labelled cases in the form that starts no pool."""
    dataset = {}
    for seed, name in enumerate("lm"):
        image, label = tiny.add_labelled(name, seed)
        dataset[name] = {"images": [str(image), str(image)], "label": str(label)}
    tiny.write_dataset_json(2, dataset=dataset, channel_names={"0": "T1", "1": "ct"})
    write_fingerprint(tiny)
    (tiny.preprocessed / "nnUNetPlans.json").unlink()
    return tiny


def write_fingerprint(tiny: TinyDataset, shape=SHAPE, **more) -> None:
    statistics = make_plans(channels=2)["foreground_intensity_properties_per_channel"]
    fingerprint = {
        "spacings": [[3.0, 1.0, 1.0]] * 2,
        "shapes_after_crop": [list(shape)] * 2,
        "foreground_intensity_properties_per_channel": statistics,
        "median_relative_size_after_cropping": 1.0,
        **more,
    }
    (tiny.preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def narrow(planner: ReferencePlanner) -> ReferencePlanner:
    planner.UNet_base_num_features = 4
    planner.UNet_featuremap_min_edge_length = 16
    planner.networks = ("UNet", "UNet")
    return planner


def without_ct(tiny: TinyDataset) -> None:
    content = json.loads((tiny.raw / "dataset.json").read_text()) | {"channel_names": {"0": "T1", "1": "T2"}}
    (tiny.raw / "dataset.json").write_text(json.dumps(content))


def test_one_2d_configuration_with_ct_in_hounsfield_units(planned: TinyDataset, capsys):
    with pytest.warns(UserWarning, match="no global statistics"):
        narrow(ReferencePlanner(777, preprocessor_name="DefaultPreprocessor")).plan_experiment()
    assert (
        "3D fullres U-Net configuration:\nnone: the networks of the reference module are 2D" in capsys.readouterr().out
    )
    plans = json.loads((planned.preprocessed / "ReferencePlans.json").read_text())
    assert list(plans["configurations"]) == ["2d"]
    assert (plans["plans_name"], plans["experiment_planner_used"]) == ("ReferencePlans", "ReferencePlanner")
    assert plans["windows"] == dict(zip(WINDOWS, BOUNDS, strict=True))
    configuration = plans["configurations"]["2d"]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization", "HounsfieldNormalization"]
    assert configuration["preprocessor_name"] == "ReferencePreprocessor"
    assert configuration["data_identifier"] == "ReferencePlans_2d"
    assert configuration["patch_size"] == [128, 96]  # whole slices, in multiples of 32
    architecture = configuration["architecture"]
    assert architecture["network_class_name"] == "nnunet_ext.networks.reference_unet.ReferenceUNet"
    arguments = architecture["arch_kwargs"]
    assert (arguments["windows"], arguments["hounsfield_channels"], arguments["position"]) == (BOUNDS, [1], True)


def test_names_of_users_and_a_fingerprint_with_global_statistics(planned: TinyDataset):
    statistics = make_plans(channels=2)["foreground_intensity_properties_per_channel"]
    more = {"unlabeled_spacings": [[3.0, 1.0, 1.0]] * 3, "unlabeled_shapes_after_crop": [[12, 200, 200]] * 3}
    write_fingerprint(planned, global_intensity_properties_per_channel=statistics, **more)
    plans = narrow(ReferencePlanner(777, plans_name="MyPlans")).plan_experiment()
    assert (planned.preprocessed / "MyPlans.json").is_file()
    assert (plans["spacing_source"], plans["configurations"]["2d"]["patch_size"]) == ("all", [224, 224])
    with pytest.raises(ValueError, match="ReferencePlanner must not write nnUNetPlans, which stock planners use"):
        ReferencePlanner(777, plans_name="nnUNetPlans")


@pytest.mark.filterwarnings("ignore:the fingerprint of")
@pytest.mark.parametrize(
    ("windows", "written"), [({"lung": [-1000, 0]}, [[-1000.0, 0.0]]), ({}, None), (None, None)], ids=str
)
def test_windows_and_position_are_the_users(planned: TinyDataset, windows, written):
    planner = narrow(ReferencePlanner(777))
    planner.windows, planner.use_position = windows, False
    configuration = planner.plan_experiment()["configurations"]["2d"]
    arguments = configuration["architecture"]["arch_kwargs"]
    assert (arguments["windows"], arguments["position"]) == (written, False)
    assert configuration["preprocessor_name"] == "SemiSupervisedPreprocessor"


@pytest.mark.filterwarnings("ignore:the fingerprint of")
def test_data_without_ct_keep_nnunets_normalisation_and_have_no_windows(planned: TinyDataset):
    without_ct(planned)
    plans = narrow(ReferencePlanner(777)).plan_experiment()
    configuration = plans["configurations"]["2d"]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"] * 2
    arguments = configuration["architecture"]["arch_kwargs"]
    assert (arguments["windows"], arguments["hounsfield_channels"], arguments["position"]) == (None, [], True)
    assert "windows" not in plans


def test_windows_without_hounsfield_units_are_refused(planned: TinyDataset):
    class Windowed(ReferencePlanner):
        windows = {"abdomen": (-150, 250)}  # noqa: RUF012

    without_ct(planned)
    message = (
        "Windowed.windows asks for windows in Hounsfield units, but Dataset777_Tiny has no CT (channel_names: T1, T2)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Windowed(777).plan_experiment()
    assert not (planned.preprocessed / "ReferencePlans.json").exists()


@pytest.mark.parametrize("bounds", [(250, -150), (0, 0), (1,), "wide", (0, float("inf"))])
def test_windows_that_are_none_are_refused(planned: TinyDataset, bounds):
    planner = ReferencePlanner(777)
    planner.windows = {"liver": bounds}
    with pytest.raises(ValueError, match="ReferencePlanner.windows has liver .*, expected a lower and a higher bound"):
        planner.plan_experiment()


def test_a_preprocessor_without_position_is_refused(planned: TinyDataset):
    with pytest.raises(ValueError, match="the preprocessor Mine does not write the position of slices; set use_pos"):
        ReferencePlanner(777, preprocessor_name="Mine").plan_experiment()


@pytest.mark.filterwarnings("ignore:the fingerprint of")
class TestMemory:
    """Narrow networks whose step takes megabytes."""

    def plan(self, target=None, **settings) -> dict:
        planner = narrow(ReferencePlanner(777, target))
        planner.max_dataset_covered, planner.memory_reserve_gb = 1, 0
        for name, value in settings.items():
            setattr(planner, name, value)
        plan = planner.plan_experiment()["configurations"]["2d"]
        return plan | {"gib": planner.step_memory(plan) / GIB}

    def test_without_a_target_the_batch_is_nnunets_as_far_as_the_step_fits(self, planned: TinyDataset):
        free, limited = self.plan(memory_limit_gb=100), self.plan(memory_limit_gb=0.1)
        assert free["gib"] > 0.1 >= limited["gib"]
        assert limited["patch_size"] == free["patch_size"] == [128, 96]
        assert 2 <= limited["batch_size"] < free["batch_size"]

    def test_a_target_is_the_total_of_the_step(self, planned: TinyDataset):
        """Whole slices first, then more of them; smaller patches where two do not fit."""
        whole, small = self.plan(0.1), self.plan(0.012)
        assert (whole["patch_size"], whole["gib"] <= 0.1) == ([128, 96], True)
        assert whole["batch_size"] >= 2
        assert small["gib"] <= 0.012
        assert small["batch_size"] == 2
        assert math.prod(small["patch_size"]) < 128 * 96
        assert all(side % 32 == 0 for side in small["patch_size"])

    def test_too_little_memory_is_refused(self, planned: TinyDataset):
        with pytest.raises(ValueError, match=r"-gpu_memory_target 0.001: not even the smallest patch .* \(2D\)"):
            self.plan(0.001)

    def test_networks_that_do_not_exist_are_refused(self, planned: TinyDataset):
        with pytest.raises(ValueError, match="'nnUNetTrainerANUNetty' has an unknown part 'ANUNetty'"):
            self.plan(networks=("UNet", "ANUNetty"))


@pytest.mark.filterwarnings("ignore:the fingerprint of")
class TestAfterPlanning:
    @pytest.fixture(autouse=True)
    def plans(self, planned: TinyDataset) -> dict:
        return narrow(ReferencePlanner(777)).plan_experiment()

    def test_3d_is_refused_before_anything_is_preprocessed(self):
        message = (
            "plans ReferencePlans have no configuration 3d_fullres: networks of the reference module are 2D; use -c"
        )
        with pytest.raises(ValueError, match=message):
            guarded(777, "ReferencePlans", ["3d_fullres"])
        with guarded(777, "ReferencePlans", ["2d", "3d_fullres", "3d_lowres"]):
            pass  # nnU-Net's default, which leaves out what is not there

    def test_training_by_nnunets_trainers_or_in_3d_is_refused(self):
        from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

        held = "the position of slices and CT in Hounsfield units, which the augmentation of nnUNetTrainer would spoil"
        with pytest.raises(ValueError, match=f"{held}; use -tr nnUNetTrainer_1000epochs"):
            refuse_training(777, "ReferencePlans", "2d", nnUNetTrainer)
        ours = find_trainer("nnUNetTrainer_1000epochs")
        assert refuse_training(777, "ReferencePlans", "2d", ours) is None
        with pytest.raises(ValueError, match="no configuration 3d_fullres: networks of the reference module are 2D"):
            refuse_training(777, "ReferencePlans", "3d_fullres", ours)

    @pytest.mark.parametrize(
        ("trainer", "part"), [("nnUNetTrainerANUNet", "ANUNet"), ("nnUNetTrainerIFECurvature", "IFE")]
    )
    def test_networks_without_windows_are_refused(self, plans, trainer, part):
        cls = find_trainer(trainer)
        with pytest.raises(
            NotImplementedError, match=f"^{part} has no windows of CT and takes no position of the slice"
        ):
            cls.network_architecture(cls, PlansManager(plans).get_configuration("2d"))


def test_slices_too_small_for_a_network_are_not_said_to_need_memory(planned: TinyDataset):
    write_fingerprint(planned, shape=(12, 6, 6))
    planner = narrow(ReferencePlanner(777))
    planner.intensity_source, planner.spacing_source = "foreground", "labeled"
    with pytest.raises(ValueError, match="the median slice of Dataset777_Tiny has 6 x 6 voxels, too few to halve"):
        planner.plan_experiment()
    assert not (planned.preprocessed / "ReferencePlans.json").exists()
