"""The parts IFECurvature and IFEEntropy inside nnU-Net's trainer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from reference import tiny

from nnunet_ext.model_sharing.export import export_model
from nnunet_ext.networks.ife_unet import IFEPlainConvUNet, IFEResidualEncoderUNet
from nnunet_ext.trainers.ife import IFECurvaturePart
from nnunet_ext.trainers.names import find_trainer
from nnunet_ext.training.enhancement import axes_of_stage, enhanced_architecture

SHORT = "_1epochs_2iterations"
PARTS = ["IFECurvature", "IFEEntropy"]


def deep_plans(spacing=(1.0, 1.0, 1.0), residual=False):
    """Plans whose network has four stages, so that both default stages have skips."""
    plans = tiny.plans()
    for name, configuration in plans["configurations"].items():
        if "architecture" not in configuration:
            continue
        dimensions = 2 if name == "2d" else 3
        configuration["spacing"] = list(spacing[-dimensions:])
        kwargs = configuration["architecture"]["arch_kwargs"]
        kwargs |= {"n_stages": 4, "features_per_stage": [4, 6, 8, 8], "kernel_sizes": [[3] * dimensions] * 4}
        strides = [[1] * 3, [2] * 3, [2] * 3, [2, 1, 2]]  # patches of 16 x 12 x 16
        kwargs |= {"strides": [s[-dimensions:] for s in strides], "n_conv_per_stage_decoder": [1] * 3}
        kwargs["n_conv_per_stage"] = [1] * 4
        if residual:
            kwargs["n_blocks_per_stage"] = kwargs.pop("n_conv_per_stage")
            name = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
            configuration["architecture"]["network_class_name"] = name
    return plans


def plain(network):
    return getattr(network, "_orig_mod", network)


@pytest.mark.parametrize("part", PARTS)
def test_found_alone_and_in_combination(part):
    for name in (f"nnUNetTrainer{part}", f"nnUNetTrainerCPS_CWCD_{part}", f"nnUNetTrainerCWCD_{part}_20epochs"):
        trainer = recursive_find_trainer_class_by_name(name)
        assert trainer.__name__ == name
        assert issubclass(trainer, nnUNetTrainer)


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerIFECurvature", "nnUNetTrainerIFEEntropy", "nnUNetTrainerCPS_CWCD_IFEEntropy"]
)
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d", "3d_lowres"])
@pytest.mark.parametrize("residual", [False, True])
def test_trains_and_predicts_from_what_is_saved(make_trainer, tmp_path, name, configuration, residual):
    trainer = make_trainer(name + SHORT, configuration, plans=deep_plans(residual=residual))
    trainer.run_training()
    network = plain(trainer.network)
    assert isinstance(network, IFEResidualEncoderUNet if residual else IFEPlainConvUNet)
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    image = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    rebuilt = predictor.network
    rebuilt.load_state_dict(predictor.list_of_parameters[0])
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(image), network.eval()(image))


class Mine(find_trainer("nnUNetTrainerIFEEntropy" + SHORT)):
    ife_ratios = (1.0, 0.25)
    ife_bins = 16
    ife_step = 2


def test_inference_builds_what_was_trained(make_trainer, monkeypatch):
    """The settings of a subclass are those of its model, whatever they are later."""
    trainer = make_trainer(cls=Mine, plans=deep_plans())
    trainer.run_training()
    enhanced = plain(trainer.network).enhancements
    assert [(e.score, e.selected, e.bins, e.step) for e in enhanced.values()] == [
        ("entropy", 6, 16, 2),
        ("entropy", 2, 16, 2),
    ]
    saved = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    monkeypatch.setattr(Mine, "ife_ratios", (0.5, 0.5))
    manager = PlansManager(saved)
    rebuilt = Mine.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3, False)
    rebuilt.load_state_dict(
        torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)["network_weights"]
    )
    assert [e.selected for e in rebuilt.enhancements.values()] == [6, 2]
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    stored = checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]
    assert stored["network_class_name"] == "nnunet_ext.networks.ife_unet.IFEPlainConvUNet"
    assert stored["arch_kwargs"]["ife_ratios"] == [1.0, 0.25]


def test_other_settings_than_those_of_the_weights_are_refused(make_trainer, monkeypatch):
    """Stage, ratio and shapes may fit while bins do not: continuing or validating would use another network."""
    trainer = make_trainer(cls=Mine, plans=deep_plans())
    trainer.run_training()
    final = str(Path(trainer.output_folder) / "checkpoint_final.pth")
    again = make_trainer(cls=Mine, plans=deep_plans())
    again.load_checkpoint(final)
    monkeypatch.setattr(Mine, "ife_bins", 32)
    with pytest.raises(RuntimeError, match="was trained with ife_bins = 16, but Mine has 32 now; set it back, or"):
        make_trainer(cls=Mine, plans=deep_plans()).initialize()
    other = make_trainer(cls=Mine, plans=deep_plans())
    monkeypatch.setattr("nnunet_ext.training.architecture.refuse_other_folds", lambda *arguments: None)
    with pytest.raises(RuntimeError, match="this checkpoint was trained with ife_bins = 16"):
        other.load_checkpoint(final)


MINE = """
from nnunet_ext.trainers import find_trainer


class nnUNetTrainerOfMine(find_trainer("nnUNetTrainerIFEEntropy_1epochs_2iterations")):
    ife_stages = (0, 2)
    ife_ratios = (0.25, 1.0)
"""


def test_a_users_subclass_predicts_with_mirroring_what_it_trained(make_trainer, environment, monkeypatch):
    folder = environment / "mine"
    folder.mkdir()
    (folder / "of_mine.py").write_text(MINE)
    monkeypatch.setenv("nnUNet_extTrainer", str(folder))
    cls = recursive_find_trainer_class_by_name("nnUNetTrainerOfMine")
    trainer = make_trainer(cls=cls, plans=deep_plans())
    trainer.run_training()
    (folder / "of_mine.py").write_text(MINE.replace("(0.25, 1.0)", "(0.5, 0.5)"))  # the model stays what it is
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=True, use_gaussian=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    network = plain(predictor.network)
    network.load_state_dict(predictor.list_of_parameters[0])
    assert {stage: e.selected for stage, e in network.enhancements.items()} == {"0": 1, "2": 8}
    image = torch.randn(1, *trainer.configuration_manager.patch_size)
    found = predictor.predict_sliding_window_return_logits(image)
    trainer.set_deep_supervision_enabled(False)
    trained = plain(trainer.network).eval()
    flips = [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
    with torch.no_grad():
        expected = sum(trained(image[None].flip(axes)).flip(axes) for axes in flips)[0] / len(flips)
    # one tile, kept in half precision
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("by", ["checkpoint", "plans"])
def test_plans_that_name_an_enhanced_network(make_trainer, by):
    trainer = make_trainer(cls=Mine, plans=deep_plans())
    plans = trainer.my_init_kwargs["plans"] if by == "checkpoint" else trainer.plans_manager.plans
    again = make_trainer(cls=Mine, plans=plans)
    assert again.plans_manager.plans["configurations"] == trainer.plans_manager.plans["configurations"]
    with pytest.raises(
        ValueError, match=r"already name .*IFEPlainConvUNet with ife_ratios = \[1.0, 0.25\], but nnUNetTra"
    ):
        make_trainer("nnUNetTrainerIFEEntropy", plans=plans)


def test_a_ratio_too_small_for_one_channel_is_said(make_trainer):
    trainer = make_trainer(cls=type("Small", (Mine,), {"ife_ratios": (0.1, 0.25)}), plans=deep_plans())
    trainer.initialize()
    log = Path(trainer.log_file).read_text()
    assert "stage 1: 0 of 6 channels by entropy; the ratio is too small, nothing is enhanced here" in log
    assert log.count("too small") == 1


def test_stock_export_says_that_the_plugin_is_needed(make_trainer, tmp_path):
    trainer = make_trainer("nnUNetTrainerIFECurvature" + SHORT, plans=deep_plans())
    trainer.run_training()
    with pytest.raises(ValueError, match="IFEPlainConvUNet, which plain nnU-Net does not have; predict with it where"):
        export_model(Path(trainer.output_folder_base), tmp_path / "out")


def test_plans_of_others_are_not_touched(make_trainer):
    plans = deep_plans()
    before = json.dumps(plans)
    make_trainer("nnUNetTrainerIFECurvature", plans=plans)
    assert json.dumps(plans) == before


def test_a_stage_without_a_skip_is_left_out(make_trainer):
    trainer = make_trainer("nnUNetTrainerIFECurvature")  # three stages: the last one is the bottleneck
    trainer.initialize()
    assert list(plain(trainer.network).enhancements) == ["1"]


@pytest.mark.parametrize(
    ("spacing", "strides", "stage", "axes"),
    [
        ((1, 1, 1), [[1] * 3, [2] * 3], 1, None),
        ((3.5, 1, 1), [[1] * 3, [1, 2, 2]], 0, [1, 2]),
        ((3.5, 1, 1), [[1] * 3, [1, 2, 2]], 1, None),  # 3.5, 2, 2
        ((0.7, 0.7), [[1] * 2, [2] * 2], 1, None),
        ((1, 4, 1), [[1] * 3, [2] * 3], 1, [0, 2]),
        ((8, 1), [[1, 1], [1, 2]], 1, None),  # at least two axes
        ((7, 7, 1), [[1, 1, 1], [1, 1, 2]], 1, [0, 2]),
    ],
)
def test_axes_with_coarse_voxels_are_not_looked_along(spacing, strides, stage, axes):
    assert axes_of_stage(spacing, strides, stage) == axes


def test_the_axes_reach_the_network(make_trainer):
    plans = deep_plans((8.0, 1.0, 1.0))
    trainer = make_trainer("nnUNetTrainerIFECurvature", plans=plans)
    trainer.initialize()
    assert [e.axes for e in plain(trainer.network).enhancements.values()] == [(1, 2), (1, 2)]
    assert (
        "IFE at encoder stage 1: 4 of 6 channels by curvature, along the axes 1, 2 alone"
        in Path(trainer.log_file).read_text()
    )
    assert trainer.hyperparameters()["ife_ratios"] == (0.75, 0.5)


def test_the_cascade(make_trainer):
    trainer = make_trainer("nnUNetTrainerIFECurvature", "3d_cascade_fullres", plans=deep_plans())
    assert trainer.is_cascaded
    trainer.initialize()
    assert isinstance(plain(trainer.network), IFEPlainConvUNet)
    assert plain(trainer.network).encoder.stages[0][0].convs[0].conv.in_channels == 3  # image and both labels


@pytest.mark.parametrize("name", ["nnUNetTrainerIFECurvature", "nnUNetTrainerCPS_IFECurvature"])
def test_pretrained_weights_of_the_plain_network_start_as_the_plain_network(make_trainer, name):
    stock = make_trainer(cls=nnUNetTrainer, plans=deep_plans())
    stock.initialize()
    file = Path(stock.output_folder) / "plain.pth"
    stock.save_checkpoint(str(file))
    trainer = make_trainer(name, plans=deep_plans())
    maybe_load_checkpoint(trainer, False, False, str(file))
    log = Path(trainer.log_file).read_text()
    assert "added input channels are zero in ['decoder.stages.1.convs.0.conv.weight'" in log
    image = torch.randn(1, 1, 16, 12, 16)
    networks = [plain(trainer.network), *([plain(trainer.network_2)] if "CPS" in name else [])]
    expected = stock.network
    for network in networks:
        # the heads are never transferred
        expected.decoder.seg_layers.load_state_dict(network.decoder.seg_layers.state_dict())
        for one, other in zip(network(image), expected(image), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    enhanced = Path(trainer.output_folder) / "enhanced.pth"
    trainer.save_checkpoint(str(enhanced))
    again = make_trainer(name, plans=deep_plans())
    maybe_load_checkpoint(again, False, False, str(enhanced))
    assert "added input channels" not in Path(again.log_file).read_text().rpartition("#" * 20)[2]
    key = "decoder.stages.1.convs.0.conv.weight"
    assert torch.equal(plain(again.network).state_dict()[key], plain(trainer.network).state_dict()[key])


def test_other_architectures_are_refused():
    manager = PlansManager(deep_plans())
    configuration = manager.get_configuration("3d_fullres")
    configuration.configuration["architecture"]["network_class_name"] = "somebody.Network"
    with pytest.raises(
        NotImplementedError, match=r"PlainConvUNet and ResidualEncoderUNet, but the plans name somebody\.Network"
    ):
        enhanced_architecture(IFECurvaturePart, configuration)


@pytest.mark.parametrize(
    ("stages", "ratios", "message"),
    [((1, 2), (0.5,), "one ratio for each of ife_stages"), ((5,), (0.5,), r"none of the stages \(5,\) has a skip")],
)
def test_settings_that_do_not_fit(stages, ratios, message):
    settings = type("Settings", (IFECurvaturePart,), {"ife_stages": stages, "ife_ratios": ratios})
    with pytest.raises(ValueError, match=message):
        enhanced_architecture(settings, PlansManager(deep_plans()).get_configuration("3d_fullres"))
