"""The parts TransUNet and DeepLabV3Plus inside nnU-Net's trainer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from reference import tiny
from reference.architecture import architecture

from nnunet_ext.networks import DeepLabV3Plus, TransUNet
from nnunet_ext.trainers.names import find_trainer
from nnunet_ext.training.architecture import DEEPLAB, NESTED, TRANSUNET

SHORT = "_1epochs_1iterations"
NETWORKS = {"TransUNet": TransUNet, "DeepLabV3Plus": DeepLabV3Plus}
EACH = pytest.mark.parametrize("part", NETWORKS)
# nnU-Net divides by zero where a class is neither in a batch nor predicted
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


def plans(patch=(32, 48), **changes):
    content = tiny.plans()
    content["configurations"]["2d"] |= {"patch_size": list(patch)} | changes
    return content


def windowed_plans():
    """As ReferencePlanner writes them: the network's input says what is done to CT."""
    content = plans()
    arguments = content["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments |= {"windows": [[-150, 250], [-500, 1300]], "hounsfield_channels": [0], "position": False}
    return content


def plain(network):
    return getattr(network, "_orig_mod", network)


@EACH
@pytest.mark.parametrize("kind", [pytest.param("labels", marks=pytest.mark.slow), "regions_ignore"])
def test_trains_and_predicts_from_what_is_saved(make_trainer, part, kind):
    trainer = make_trainer(f"nnUNetTrainer{part}{SHORT}", "2d", kind, plans=windowed_plans())
    trainer.run_training()
    assert isinstance(plain(trainer.network), NETWORKS[part])
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False, use_gaussian=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    assert plain(predictor.network).reference_input.output_channels == 2  # one channel of CT, two windows
    image = torch.randn(1, 1, 32, 48)
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        expected = plain(trainer.network).eval()(image)
        assert torch.equal(predictor.network.eval()(image), expected)
    found = predictor.predict_sliding_window_return_logits(image)
    torch.testing.assert_close(found.float()[:, 0], expected[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("CPS_TransUNet", marks=pytest.mark.slow),
        "CPS_CutMix_Confidence_DeepLabV3Plus",
        "Semi_TransUNet",
        pytest.param("MeanTeacher_BCP_ClassBalance_DeepLabV3Plus", marks=pytest.mark.slow),
        pytest.param("CPS_CWCD_TransUNet", marks=pytest.mark.slow),
        "CWCD_DeepLabV3Plus",
        "DWCE_TransUNet",
        pytest.param("GDL_DeepLabV3Plus", marks=pytest.mark.slow),
    ],
)
def test_with_every_supervision_and_loss(make_trainer, name):
    trainer = make_trainer(f"nnUNetTrainer{name}_2epochs_1iterations", "2d", plans=plans())
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))


@EACH
def test_the_optimiser_is_adamw_with_nnunets_schedule(make_trainer, part):
    trainer = make_trainer(f"nnUNetTrainerCPS_{part}", "2d", plans=plans())
    trainer.num_epochs = 10
    trainer.initialize()
    for optimizer, scheduler in (
        (trainer.optimizer, trainer.lr_scheduler),
        (trainer.optimizer_2, trainer.lr_scheduler_2),
    ):
        assert type(optimizer) is torch.optim.AdamW
        assert isinstance(scheduler, PolyLRScheduler)
        (group,) = optimizer.param_groups
        assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.937, 0.999), 1e-7)
        scheduler.step(5)
        assert group["lr"] == pytest.approx(1e-4 * 0.5**0.9)
    logged = trainer.hyperparameters()
    assert (logged["initial_lr"], logged["weight_decay"], logged["adam_betas"]) == (1e-4, 1e-7, (0.937, 0.999))
    of_part = find_trainer(f"nnUNetTrainer{part}")
    plateau = type("Plateau", (find_trainer(f"nnUNetTrainerCPS_{part}"),), {})
    assert issubclass(plateau, of_part.__mro__[1])
    changed = make_trainer(cls=plateau, configuration="2d", plans=plans())
    changed.lr_schedule, changed.initial_lr = "plateau", 3e-4
    changed.initialize()
    assert type(changed.optimizer) is torch.optim.AdamW
    assert changed.optimizer.param_groups[0]["lr"] == 3e-4
    assert not isinstance(changed.lr_scheduler, PolyLRScheduler)


def test_deep_supervision_of_transunet(make_trainer):
    """8, 4, 2 and 1 fifteenth, by hand: nnU-Net leaves the last output out, whose block is then not supervised."""
    trainer = make_trainer("nnUNetTrainerTransUNet", "2d", plans=plans())
    trainer.initialize()
    assert trainer._get_deep_supervision_scales() == [[1, 1], [0.5, 0.5], [0.25, 0.25], [0.125, 0.125]]
    assert trainer.output_weights() == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15))
    generator = torch.Generator().manual_seed(0)
    sizes = [(32, 48), (16, 24), (8, 12), (4, 6)]
    outputs = [torch.randn((2, 3, *size), generator=generator) for size in sizes]
    target = [torch.randint(0, 3, (2, 1, *size), generator=generator).float() for size in sizes]
    each = [trainer.loss.loss(output, labels) for output, labels in zip(outputs, target, strict=True)]
    expected = sum(loss * weight / 15 for loss, weight in zip(each, (8, 4, 2, 1), strict=True))
    assert trainer.loss(outputs, target) == pytest.approx(float(expected))
    contours = make_trainer("nnUNetTrainerCWCD_TransUNet", "2d", plans=plans())
    contours.initialize()
    assert contours.loss.weights == trainer.output_weights()


def test_transunet_without_deep_supervision(make_trainer):
    trainer = make_trainer(f"nnUNetTrainerTransUNet{SHORT}", "2d", plans=plans())
    trainer.enable_deep_supervision = False
    trainer.initialize()
    assert trainer._get_deep_supervision_scales() is None
    assert trainer.output_weights() == (1.0,)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", -1))


def test_deeplab_has_one_output(make_trainer):
    trainer = make_trainer("nnUNetTrainerDeepLabV3Plus", "2d", plans=plans())
    trainer.initialize()
    assert trainer._get_deep_supervision_scales() is None
    assert trainer.output_weights() == (1.0,)
    trainer.set_deep_supervision_enabled(True)
    assert isinstance(plain(trainer.network)(torch.randn(2, 1, 32, 32)), torch.Tensor)
    other = make_trainer("nnUNetTrainerDeepLabV3Plus", "2d", plans=plans())
    other.enable_deep_supervision = True
    with pytest.raises(ValueError, match="DeepLabV3Plus has one output, but enable_deep_supervision is True; leave it"):
        other.initialize()


@pytest.mark.parametrize(
    ("batch_size", "setting", "norm"), [(7, None, "instance"), (8, None, "batch"), (2, "batch", "batch")]
)
def test_the_norm_goes_by_the_batch(make_trainer, batch_size, setting, norm):
    cls = type("Mine", (find_trainer("nnUNetTrainerTransUNet"),), {"transunet_norm": setting})
    trainer = make_trainer(cls=cls, configuration="2d", plans=plans(batch_size=batch_size))
    assert trainer.configuration_manager.network_arch_init_kwargs["norm"] == norm


def other_networks():
    nested = architecture(2, [4, 6, 8]) | {"network_class_name": NESTED}
    nested["arch_kwargs"] |= {"aggregation": "concat", "gate_ratio": 0.5, "depth": 2}
    return {"residual": architecture(2, [4, 6, 8], residual=True), "nested": nested}


@EACH
@pytest.mark.parametrize("other", other_networks())
def test_they_take_the_place_of_any_2d_network(make_trainer, part, other):
    content = plans(architecture=other_networks()[other])
    before = json.dumps(content)
    trainer = make_trainer(f"nnUNetTrainer{part}", "2d", plans=content)
    named = trainer.configuration_manager.configuration["architecture"]
    assert named["network_class_name"] == {"TransUNet": TRANSUNET, "DeepLabV3Plus": DEEPLAB}[part]
    assert "n_stages" not in named["arch_kwargs"]
    assert json.dumps(content) == before


@EACH
def test_what_plans_say_of_the_input_stays(make_trainer, part):
    trainer = make_trainer(f"nnUNetTrainer{part}", "2d", plans=windowed_plans())
    arguments = trainer.configuration_manager.network_arch_init_kwargs
    assert (arguments["windows"], arguments["hounsfield_channels"]) == ([[-150, 250], [-500, 1300]], [0])
    assert arguments["position"] is False
    again = make_trainer(f"nnUNetTrainer{part}", "2d", plans=trainer.plans_manager.plans)  # of the model
    assert again.plans_manager.plans["configurations"] == trainer.plans_manager.plans["configurations"]


@EACH
def test_inference_builds_what_was_trained_and_other_settings_are_refused(make_trainer, monkeypatch, part):
    setting, key, one, other = {
        "TransUNet": ("transunet_depth", "depth", 1, 2),
        "DeepLabV3Plus": ("deeplab_decoder_channels", "decoder_channels", 8, 16),
    }[part]
    trainer = make_trainer(f"nnUNetTrainer{part}{SHORT}", "2d", plans=plans())
    trainer.initialize()
    trainer.on_train_start()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    saved = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
    cls = type(trainer)
    monkeypatch.setattr(cls, setting, other)
    manager = PlansManager(saved)
    rebuilt = cls.build_network_architecture(manager, manager.get_configuration("2d"), 1, 3, False)
    rebuilt.load_state_dict(plain(trainer.network).state_dict())
    with pytest.raises(RuntimeError, match=f"was trained with {key} = {one}, but .* has {other} now; set it back, or"):
        make_trainer(cls=cls, configuration="2d", plans=plans()).initialize()
    with pytest.raises(ValueError, match=f"already name .*{NETWORKS[part].__name__} with {key} = {one}, but"):
        make_trainer(cls=cls, configuration="2d", plans=saved)


@EACH
def test_what_does_not_fit(make_trainer, environment, part):
    cls = find_trainer(f"nnUNetTrainer{part}")
    with pytest.raises(ValueError, match=f"{part} is a 2D network, but the patches of this configuration are 16 x 12"):
        cls(tiny.plans(), "3d_fullres", 0, tiny.dataset_json(), torch.device("cpu"))
    message = (
        rf"{part} takes patches whose sides are multiples of 16, but those of these plans are 40 x 32; the next are "
        r"48 x 32: plan with nnUNetv2_plan_and_preprocess \.\.\. -pl ReferencePlanner -c 2d, or set"
    )
    with pytest.raises(ValueError, match=message):
        make_trainer(f"nnUNetTrainer{part}", "2d", plans=plans((40, 32)))
    assert not list((environment / "results").rglob("*.*"))


def test_batches_of_one_patch(make_trainer):
    trainer = make_trainer("nnUNetTrainerDeepLabV3Plus", "2d", plans=plans(batch_size=1))
    with pytest.raises(
        ValueError, match="at least two patches a step for its batch norm, but the plans TinyPlans have"
    ):
        trainer.initialize()
    make_trainer("nnUNetTrainerTransUNet", "2d", plans=plans(batch_size=1)).initialize()


@EACH
def test_plans_that_name_them_need_the_part(make_trainer, part):
    content = make_trainer(f"nnUNetTrainer{part}", "2d", plans=plans()).plans_manager.plans
    trainer = make_trainer("nnUNetTrainerCPS", "2d", plans=content)
    with pytest.raises(ValueError, match=f"name the network of the part {part}, which nnUNetTrainerCPS does not have"):
        trainer.initialize()


def encoder_file(trainer, folder, name="encoder.pth"):
    """Weights of the encoder of a trainer's network with three channels, and the numbers in them."""
    manager, configuration = trainer.plans_manager, trainer.configuration_manager
    torch.manual_seed(7)
    network = trainer.build_network_architecture(manager, configuration, 3, 3, False)
    weights = {key: value.clone() for key, value in network.encoder.state_dict().items()}
    if name.endswith(".safetensors"):
        from safetensors.torch import save_file

        save_file(weights, folder / name)
    else:
        torch.save(weights, folder / name)
    return folder / name, weights


@EACH
@pytest.mark.parametrize("name", ["encoder.pth", "encoder.safetensors"])
def test_weights_of_the_encoder(make_trainer, tmp_path, part, name):
    setting = {"TransUNet": "transunet_weights", "DeepLabV3Plus": "deeplab_weights"}[part]
    trainer = make_trainer(f"nnUNetTrainerCPS_{part}", "2d", plans=plans())
    file, weights = encoder_file(trainer, tmp_path, name)
    setattr(trainer, setting, str(file))
    trainer.initialize()
    stem = next(key for key, value in weights.items() if value.ndim == 4)
    for network in (trainer.network, trainer.network_2):
        state = plain(network).encoder.state_dict()
        torch.testing.assert_close(state[stem], weights[stem].sum(1, keepdim=True))
        assert all(torch.equal(state[key], weights[key]) for key in weights if key != stem)
    heads = [plain(network).decoder.seg_layers[0].weight for network in (trainer.network, trainer.network_2)]
    assert not torch.equal(*heads)
    log = Path(trainer.log_file).read_text()
    assert f"{setting}: {stem}: the three channels of the file are summed for one" in log

    other = make_trainer(f"nnUNetTrainer{part}", "2d", plans=plans())
    setattr(other, setting, str(tmp_path / "nothing.pth"))
    with pytest.raises(FileNotFoundError, match=f"{setting} .*nothing.pth is no file; name a state dict"):
        other.initialize()
    assert not hasattr(other, "optimizer") or other.optimizer is None


@EACH
def test_a_training_goes_on_without_the_file(make_trainer, tmp_path, part):
    setting = {"TransUNet": "transunet_weights", "DeepLabV3Plus": "deeplab_weights"}[part]
    trainer = make_trainer(f"nnUNetTrainer{part}", "2d", plans=plans())
    trainer.initialize()
    checkpoint = str(tmp_path / "checkpoint.pth")
    trainer.save_checkpoint(checkpoint)
    again = make_trainer(f"nnUNetTrainer{part}", "2d", plans=plans())
    setattr(again, setting, str(tmp_path / "gone.pth"))
    again.load_checkpoint(checkpoint)
    state = plain(trainer.network).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain(again.network).state_dict().items())


def test_batch_norms_are_shared_with_their_activation(make_trainer):
    """torch's own function drops the activation that timm's batch norms hold."""
    trainer = make_trainer("nnUNetTrainerDeepLabV3Plus", "2d", plans=plans())
    trainer.initialize()
    shared = trainer.with_shared_batch_norm(plain(trainer.network))
    found = [module for module in shared.modules() if isinstance(module, torch.nn.SyncBatchNorm)]
    assert found
    assert any(hasattr(module, "act") for module in found)
