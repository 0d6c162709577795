"""The part ANUNet inside nnU-Net's trainer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from reference import tiny

from nnunet_ext.losses import ContourWeightedLoss, GeneralisedDiceLoss, HybridLoss
from nnunet_ext.model_sharing.export import export_model
from nnunet_ext.networks import NestedAttentionUNet
from nnunet_ext.trainers.anu_net import ANUNetPart
from nnunet_ext.trainers.ife import IFEPart
from nnunet_ext.trainers.names import find_trainer
from nnunet_ext.training.nesting import nested_architecture

SHORT = "_1epochs_2iterations"


def plain(network):
    return getattr(network, "_orig_mod", network)


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerANUNet", "nnUNetTrainerCPS_CWCD_ANUNet", "nnUNetTrainerGDL_ANUNet_9epochs"]
)
def test_found_alone_and_in_combination(name):
    trainer = recursive_find_trainer_class_by_name(name)
    assert trainer.__name__ == name
    assert issubclass(trainer, nnUNetTrainer)


@pytest.mark.parametrize("name", ["nnUNetTrainerANUNet", "nnUNetTrainerCPS_CWCD_ANUNet"])
@pytest.mark.parametrize(
    ("configuration", "kind"),
    [("3d_fullres", "labels"), ("2d", "regions_ignore"), ("3d_lowres", "ignore"), ("3d_fullres", "regions")],
)
def test_trains_and_predicts_from_what_is_saved(make_trainer, name, configuration, kind):
    trainer = make_trainer(name + SHORT, configuration, kind)
    trainer.run_training()
    network = plain(trainer.network)
    assert isinstance(network, NestedAttentionUNet)
    assert network.depth == 2
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    image = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    rebuilt = predictor.network
    rebuilt.load_state_dict(predictor.list_of_parameters[0])
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(image), network.eval()(image))
    restored = make_trainer(name + SHORT, configuration, kind)
    restored.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for key, value in plain(restored.network).state_dict().items():
        assert torch.equal(value, network.state_dict()[key])


def test_targets_keep_full_resolution(make_trainer):
    trainer = make_trainer("nnUNetTrainerANUNet")
    trainer.initialize()
    trainer.dataloader_train, _ = trainer.get_dataloaders()
    batch = next(trainer.dataloader_train)
    patch = tuple(trainer.configuration_manager.patch_size)
    assert [tuple(target.shape[2:]) for target in batch["target"]] == [patch] * 2
    outputs = trainer.network(batch["data"])
    assert [tuple(output.shape[2:]) for output in outputs] == [patch] * 2


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("nnUNetTrainerANUNet", HybridLoss),
        ("nnUNetTrainerCPS_ANUNet", HybridLoss),
        ("nnUNetTrainerCWCD_ANUNet", ContourWeightedLoss),
        ("nnUNetTrainerGDL_ANUNet", GeneralisedDiceLoss),
    ],
)
def test_its_own_loss_unless_the_name_has_one(make_trainer, name, loss):
    trainer = make_trainer(name)
    trainer.initialize()
    assert trainer.loss.weights == (0.5, 0.5)
    assert all(isinstance(plain(one), loss) for one in trainer.loss.losses)


def test_weights_of_the_outputs(make_trainer):
    """Depth 1 first in the attribute, the deepest output first in the loss."""
    trainer = make_trainer("nnUNetTrainerANUNet")
    trainer.anu_output_weights = (1.0, 3.0)
    trainer.initialize()
    assert trainer.loss.weights == (0.75, 0.25)
    outputs, target = torch.randn(2, 1, 3, 16, 12, 16).unbind(), torch.randint(0, 3, (1, 1, 16, 12, 16))
    loss = HybridLoss(batch_dice=trainer.configuration_manager.batch_dice)
    expected = 0.75 * loss(outputs[0], target) + 0.25 * loss(outputs[1], target)
    torch.testing.assert_close(trainer.loss(list(outputs), [target, target]), expected)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0.0, 0.0), (1.0, float("nan"))])
def test_weights_that_do_not_fit(make_trainer, weights):
    trainer = make_trainer("nnUNetTrainerANUNet")
    trainer.anu_output_weights = weights
    with pytest.raises(ValueError, match="anu_output_weights must hold 2 numbers of 0 or more, depth 1 first, and one"):
        trainer.initialize()


def test_without_deep_supervision(make_trainer):
    trainer = make_trainer("nnUNetTrainerANUNet" + SHORT)
    trainer.enable_deep_supervision = False
    trainer.run_training()
    assert trainer.loss.weights == (1.0,)
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))


@pytest.mark.parametrize("name", ["nnUNetTrainerANUNet", "nnUNetTrainerCPS_ANUNet"])
def test_checkpointing_reaches_every_network_and_changes_no_weight(make_trainer, name):
    weights = []
    for checkpointing in (False, True):
        trainer = make_trainer(name + SHORT)
        trainer.anu_checkpointing = checkpointing
        trainer.run_training()
        networks = [plain(trainer.network), *([plain(trainer.network_2)] if "CPS" in name else [])]
        assert [network.checkpointing for network in networks] == [checkpointing] * len(networks)
        weights.append(networks[-1].state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value)


class Mine(find_trainer("nnUNetTrainerANUNet" + SHORT)):
    anu_aggregation = "sum"
    anu_gate_ratio = 1.0
    anu_depth = 1


def test_inference_builds_what_was_trained(make_trainer, monkeypatch):
    """The settings of a subclass are those of its model, whatever they are later."""
    trainer = make_trainer(cls=Mine)
    trainer.run_training()
    saved = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    kwargs = saved["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert (kwargs["aggregation"], kwargs["gate_ratio"], kwargs["depth"]) == ("sum", 1.0, 1)
    final = str(Path(trainer.output_folder) / "checkpoint_final.pth")
    monkeypatch.setattr(Mine, "anu_depth", None)
    manager = PlansManager(saved)
    rebuilt = Mine.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3, False)
    rebuilt.load_state_dict(torch.load(final, weights_only=False)["network_weights"])
    assert rebuilt.depth == 1
    with pytest.raises(RuntimeError, match="was trained with depth = 1, but Mine has 2 now; set it back, or"):
        make_trainer(cls=Mine).initialize()
    monkeypatch.setattr("nnunet_ext.training.architecture.refuse_other_folds", lambda *arguments: None)
    with pytest.raises(RuntimeError, match="this checkpoint was trained with depth = 1"):
        make_trainer(cls=Mine).load_checkpoint(final)


def test_plans_that_name_a_nested_network(make_trainer):
    """The planner's say nothing of what the trainer decides; those beside a model do."""
    plans = tiny.plans()
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "nnunet_ext.networks.nested_unet.NestedAttentionUNet"
    trainer = make_trainer(cls=Mine, plans=plans)
    kwargs = trainer.configuration_manager.network_arch_init_kwargs
    assert (kwargs["aggregation"], kwargs["depth"]) == ("sum", 1)
    make_trainer(cls=Mine, plans=trainer.plans_manager.plans)
    with pytest.raises(
        ValueError, match=r"already name .*NestedAttentionUNet with aggregation = sum, but nnUNetTrainer"
    ):
        make_trainer("nnUNetTrainerANUNet", plans=trainer.plans_manager.plans)


@pytest.mark.parametrize("name", ["nnUNetTrainerCPS", "nnUNetTrainerCWCD", "nnUNetTrainer_2epochs"])
def test_nested_plans_want_the_part(make_trainer, name):
    plans = tiny.plans()
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "nnunet_ext.networks.nested_unet.NestedAttentionUNet"
    trainer = make_trainer(name, plans=plans)
    with pytest.raises(ValueError, match="name a nested network, .* use a trainer with ANUNet in its name"):
        trainer.initialize()


def test_networks_of_other_parts_are_refused(make_trainer):
    for first, second in (("ANUNet", "IFEEntropy"), ("IFEEntropy", "ANUNet")):
        plans = make_trainer(f"nnUNetTrainer{first}").plans_manager.plans
        with pytest.raises(NotImplementedError, match="but the plans name nnunet_ext"):
            make_trainer(f"nnUNetTrainer{second}", plans=plans)


def test_a_setting_of_one_trainer_decides_its_network(make_trainer):
    class Shallow(find_trainer("nnUNetTrainerANUNet")):
        def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
            self.anu_depth = 1
            super().__init__(plans, configuration, fold, dataset_json, device)

    trainer = make_trainer(cls=Shallow)
    assert trainer.configuration_manager.network_arch_init_kwargs["depth"] == 1


def test_one_change_of_the_network_is_enough(make_trainer):
    class Both(IFEPart, find_trainer("nnUNetTrainerANUNet")):
        def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
            super().__init__(plans, configuration, fold, dataset_json, device)

    with pytest.raises(NotImplementedError, match="Both has IFEPart and ANUNetPart, but can change its network in one"):
        make_trainer(cls=Both)


def test_the_log_says_the_depth(make_trainer):
    assert make_trainer("nnUNetTrainerANUNet").hyperparameters()["anu_depth"] == 2


def test_the_cascade(make_trainer):
    trainer = make_trainer("nnUNetTrainerANUNet", "3d_cascade_fullres")
    trainer.initialize()
    assert trainer.is_cascaded
    assert plain(trainer.network).encoder.stages[0][0].convs[0].conv.in_channels == 3  # image and both labels


def test_stock_export_says_that_the_plugin_is_needed(make_trainer, tmp_path):
    trainer = make_trainer("nnUNetTrainerANUNet" + SHORT)
    trainer.run_training()
    with pytest.raises(
        ValueError, match="NestedAttentionUNet, which plain nnU-Net does not have; predict with it where"
    ):
        export_model(Path(trainer.output_folder_base), tmp_path / "out")


def test_other_architectures_are_refused():
    configuration = PlansManager(tiny.plans()).get_configuration("3d_fullres")
    name = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    configuration.configuration["architecture"]["network_class_name"] = name
    with pytest.raises(
        NotImplementedError, match="nests nnU-Net's PlainConvUNet, but the plans name .*ResidualEncoder"
    ):
        nested_architecture(ANUNetPart, configuration)


def test_a_depth_that_does_not_fit(make_trainer):
    with pytest.raises(ValueError, match="anu_depth must lie between 1 and 2 for these plans, got 3"):
        make_trainer(cls=type("Deep", (Mine,), {"anu_depth": 3}))
