"""CPS of two different networks."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.taught import networks, ready, same, weights

from nnunet_ext.inference import Predictor
from nnunet_ext.losses import ContourWeightedLoss, GeneralisedDiceLoss, HybridLoss
from nnunet_ext.model_sharing.both_networks import members_of
from nnunet_ext.networks import NestedAttentionUNet
from nnunet_ext.networks.ife_unet import IFEPlainConvUNet
from nnunet_ext.trainers import names
from nnunet_ext.trainers.names import find_trainer
from nnunet_ext.training import second_network
from nnunet_ext.training.architecture import SECOND
from nnunet_ext.training.checkpoints import SECOND_NETWORK
from nnunet_ext.training.schedules import PlateauScheduler
from nnunet_ext.training.unlabelled import unlabelled_criterion

SHORT = "_2epochs_2iterations"
PAIR = "nnUNetTrainerCPS_UNet_ANUNet"


def forced(name, first, second):
    """A pair of any two networks, under the name of a trainer: one of two equal networks has no name of its own."""
    parts = {part.name: part for part in names.PARTS}
    before = [(parts[word], 0) for word in name.removeprefix("nnUNetTrainer").split("_") if word in parts]
    before = [item for item in before if item[0].kind != names.NETWORK]
    pair = [*before, (parts[first], 0), (parts[second], 0)]
    content = {"companion_bases": names.companion_bases_of(pair), "__module__": "nnunet_ext.trainers"}
    return type(name, names.bases_of(pair), content)


def subclass(name, **attributes):
    return type(f"{name}_Mine", (find_trainer(name),), attributes)


@pytest.mark.parametrize(
    ("name", "network"),
    [("nnUNetTrainerCPS", "UNet"), ("nnUNetTrainerCPS_ANUNet", "ANUNet"), ("nnUNetTrainerCPS_CWCD", "UNet")],
)
def test_the_same_network_twice_is_cps_bit_for_bit(make_trainer, name, network):
    compare(make_trainer, name, network, 0)


def test_the_same_network_twice_is_cps_of_views_bit_for_bit(make_trainer):
    compare(make_trainer, "nnUNetTrainerCPS_CutMix_Confidence_ClassBalance", "UNet", 500)


def compare(make_trainer, name, network, epoch):
    """Losses and weights of some steps of a pair of one network are those of the trainer without a pair."""
    pair, loader = ready(make_trainer(cls=forced(name, network, network)), epoch)
    batches = [next(loader) for _ in range(3)]
    plain, loader = ready(make_trainer(name), epoch)
    assert pair.companion is not None
    assert plain.companion is None
    for batch in batches:
        other = next(loader)
        assert torch.equal(batch["unlabeled"], other["unlabeled"])
        first, second = pair.train_step(batch), plain.train_step(other)
        assert [first[key] for key in ("loss", "loss_2", "cps")] == [second[key] for key in ("loss", "loss_2", "cps")]
        assert first["cps"] != 0
    for one, two in zip(networks(pair), networks(plain), strict=True):
        assert same(weights(one), weights(two))


@pytest.mark.parametrize(
    ("name", "configuration", "kind"),
    [
        (PAIR, "3d_fullres", "labels"),
        ("nnUNetTrainerCPS_ANUNet_IFECurvature", "2d", "regions"),
        ("nnUNetTrainerCPS_CutMix_Confidence_ClassBalance_UNet_ANUNet", "3d_fullres", "ignore"),
        ("nnUNetTrainerCPS_BCP_CWCD_ANUNet_IFEEntropy", "2d", "labels"),
        ("nnUNetTrainerCPS_CWCD_UNet_IFEEntropy", "3d_fullres", "regions_ignore"),
        ("nnUNetTrainerCPS_TransUNet_DeepLabV3Plus", "2d", "labels"),
        ("nnUNetTrainerCPS_CutMix_Confidence_UNet_TransUNet", "2d", "regions"),
        ("nnUNetTrainerCPS_CWCD_ANUNet_DeepLabV3Plus", "2d", "ignore"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # a class that no patch has or gets
def test_trains_two_epochs_and_restores(make_trainer, name, configuration, kind):
    trainer = make_trainer(name + SHORT, configuration, kind)
    trainer.run_training()
    curves = trainer.logger.get_checkpoint()
    for key in ("supervised_loss_1", "supervised_loss_2", "cps_loss", "train_losses", "val_losses"):
        assert np.isfinite(curves[key]).all(), key
    assert type(trainer.network) is not type(trainer.network_2)
    restored = make_trainer(name + SHORT, configuration, kind)
    restored.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for before, after in zip(networks(trainer), networks(restored), strict=True):
        assert same(weights(before), weights(after))
    old, new = (one.optimizer_2.state_dict()["state"] for one in (trainer, restored))
    names = {name for name in old[0] if name != "step"}
    assert names in ({"momentum_buffer"}, {"exp_avg", "exp_avg_sq"})
    assert all(torch.equal(old[key][name], new[key][name]) for key in old for name in names)
    plans = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())["configurations"][configuration]
    kinds = [plans[key]["network_class_name"].rpartition(".")[2] for key in ("architecture", SECOND)]
    assert kinds == [type(network).__name__ for network in networks(trainer)]
    trainer.set_deep_supervision_enabled(False)
    predictor = Predictor(device=torch.device("cpu"), allow_tqdm=False, network="both")
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    image = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    with torch.no_grad():
        outputs = [[one.eval()(image) for one in both] for both in (members_of(predictor.network), networks(trainer))]
    assert all(torch.equal(found, expected) for found, expected in zip(*outputs, strict=True))


def test_a_training_goes_on_exactly_where_it_stopped(make_trainer):
    name = PAIR + "_3epochs_1iterations"

    def epoch(trainer):
        trainer.on_train_epoch_start()
        loader, _ = trainer.get_dataloaders()
        trainer.train_step(next(loader))

    whole, _ = ready(make_trainer(name), epoch=0)
    epoch(whole)
    file = str(Path(whole.output_folder) / "checkpoint_latest.pth")
    whole.save_checkpoint(file)
    whole.current_epoch = 1
    epoch(whole)
    again = make_trainer(name)
    again.load_checkpoint(file)
    again.set_deep_supervision_enabled(True)
    assert again.current_epoch == 1
    epoch(again)
    for one, two in zip(networks(whole), networks(again), strict=True):
        assert same(weights(one), weights(two))


def test_each_network_learns_at_its_own_scales_with_its_own_losses(make_trainer):
    trainer, loader = ready(make_trainer(PAIR))
    patch = tuple(trainer.configuration_manager.patch_size)
    batch = next(loader)
    sizes = [tuple(target.shape[2:]) for target in batch["target"]]
    assert sizes[0] == patch
    assert len(sizes) == 2
    nested, unet = trainer.network_2, trainer.network
    assert isinstance(nested, NestedAttentionUNet)
    targets = [deepcopy(batch["target"]), [batch["target"][0]] * 2]
    images = torch.cat([batch["data"], batch["unlabeled"]])
    outputs = [network(images) for network in (unet, nested)]
    assert [tuple(output.shape[2:]) for output in outputs[1]] == [patch] * 2
    labels = [[output.argmax(1, keepdim=True) for output in of_network] for of_network in outputs]
    half = torch.nn.functional.interpolate(labels[1][0].float(), sizes[1], mode="nearest-exact").long()
    learnt = [[labels[1][0], half], [labels[0][0], labels[0][0]]]
    losses = [trainer.loss, trainer.companion.loss]
    assert isinstance(trainer.companion.loss.losses[0], HybridLoss)
    criteria = [trainer.pseudo_criterion(), trainer.companion.pseudo_criterion()]
    assert criteria[0].weights == (1.0, 0.0)
    assert criteria[1].weights == (0.5, 0.5)
    expected = []
    for number, network in enumerate((unet, nested)):
        supervised = losses[number]([output[:2] for output in outputs[number]], targets[number])
        cps = criteria[number](outputs[number], learnt[number], batch["valid"])
        found = torch.autograd.grad(supervised + 0.5 * cps, list(network.parameters()), allow_unused=True)
        expected.append((float(supervised.detach()), float(cps.detach()), found))
    trainer.current_epoch = trainer.num_epochs - 1
    for optimizer in (trainer.optimizer, trainer.optimizer_2):
        optimizer.step = lambda: None
    trainer.cps_step.clip = float("inf")
    report = trainer.train_step(batch)
    assert [report["loss"], report["loss_2"]] == pytest.approx([expected[0][0], expected[1][0]])
    assert report["cps"] == pytest.approx((expected[0][1] + expected[1][1]) / 2)
    for network, (*_, gradients) in zip((unet, nested), expected, strict=True):
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            assert (parameter.grad is None) == (gradient is None)
            if gradient is not None:
                torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("flags", [(True, False), (False, True), (False, False)])
def test_deep_supervision_of_either_network_can_be_off(make_trainer, flags):
    class Off(find_trainer(PAIR)):
        def refuse_unsupported(self):
            super().refuse_unsupported()
            self.enable_deep_supervision, self.companion.enable_deep_supervision = flags

    Off.__name__ = PAIR
    trainer, loader = ready(make_trainer(cls=Off))
    batch = next(loader)
    assert isinstance(batch["target"], list) is any(flags)
    assert all(np.isfinite(value) for key, value in trainer.train_step(batch).items() if "loss" in key)
    for network, flag in zip(networks(trainer), flags, strict=True):
        assert isinstance(network(batch["data"]), (list, tuple)) is flag
    _, validation = trainer.get_dataloaders()
    with torch.no_grad():
        report = trainer.validation_step(next(validation))
    assert np.isfinite([report["loss"], report["loss_2"]]).all()


def test_every_second_step_without_unlabelled_patches(make_trainer):
    name = "nnUNetTrainerCPS_CutMix_UNet_ANUNet"
    trainer, loader = ready(make_trainer(name), epoch=500, unlabeled_every=2)
    reports = [trainer.train_step(next(loader)) for _ in range(2)]
    assert [report["cps"] is None for report in reports] == [False, True]
    assert all(np.isfinite([report["loss"], report["loss_2"]]).all() for report in reports)
    step = trainer.cps_step
    assert (step.unlabelled.weights, step.unlabelled_2.weights) == ((1.0, 0.0), (0.5, 0.5))
    assert step.supervised_2 is trainer.companion.loss


def test_each_network_learns_strong_views_with_its_own_loss(make_trainer):
    trainer, loader = ready(make_trainer("nnUNetTrainerCPS_Confidence_UNet_ANUNet"), epoch=500)
    batch = next(loader)
    learned, _ = trainer.cps_step.pseudo_labelled(batch)
    expected = []
    sides = zip(networks(trainer), (trainer, trainer.companion), learned, strict=True)
    for number, (network, side, own) in enumerate(sides):
        outputs = network(torch.cat([batch["data"], own.images]))
        target = trainer.target_choices()[number].of(deepcopy(batch["target"]))
        supervised = side.loss([output[:2] for output in outputs], target)
        pseudo = own.loss(unlabelled_criterion(side), [output[2:] for output in outputs], None)
        expected.append((float(supervised.detach()), float(pseudo.detach())))
    report = trainer.train_step(batch)
    assert [report["loss"], report["loss_2"]] == pytest.approx([one[0] for one in expected], rel=1e-5)
    assert report["cps"] == pytest.approx(np.mean([one[1] for one in expected]), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("nnUNetTrainerCPS_CWCD_UNet_ANUNet", (ContourWeightedLoss, ContourWeightedLoss)),
        ("nnUNetTrainerCPS_GDL_ANUNet_IFEEntropy", (GeneralisedDiceLoss, GeneralisedDiceLoss)),
    ],
)
def test_a_loss_in_the_name_is_that_of_both(make_trainer, name, kinds):
    trainer = make_trainer(name)
    if "CWCD" in name:
        trainer.contour_iterations, trainer.contour_pseudo_labels = 2, True
    trainer.initialize()
    for one, kind in zip((trainer, trainer.companion), kinds, strict=True):
        assert {type(loss) for loss in one.loss.losses} == {kind}
    if "CWCD" in name:
        assert trainer.companion.loss.losses[0].iterations == trainer.loss.losses[0].iterations
        assert trainer.companion.contour_iterations == 2
        kinds = [type(one.pseudo_criterion()).__name__ for one in (trainer, trainer.companion)]
        assert kinds == ["ContourPseudoCriterion"] * 2


def test_settings_of_the_users_class_reach_network_2(make_trainer):
    def set_defaults(self):
        find_trainer(PAIR).set_defaults(self)
        self.anu_gamma, self.anu_checkpointing, self.initial_lr, self.num_epochs = 1.0, True, 0.04, 7

    trainer = make_trainer(cls=subclass(PAIR, anu_depth=1, anu_gate_ratio=0.25, set_defaults=set_defaults))
    trainer.initialize()
    assert trainer.network_2.depth == 1
    assert trainer.network_2.checkpointing
    assert trainer.companion.loss.losses[0].gamma == 1.0
    assert [one.param_groups[0]["lr"] for one in (trainer.optimizer, trainer.optimizer_2)] == [0.04] * 2
    assert trainer.lr_scheduler_2.max_steps == 7
    kwargs = trainer.configuration_manager.configuration[SECOND]["arch_kwargs"]
    assert (kwargs["depth"], kwargs["gate_ratio"]) == (1, 0.25)
    settings = trainer.hyperparameters()
    assert "anu_depth" not in settings
    assert settings["network_2"]["anu_depth"] == 1
    assert settings["network_2"]["anu_gamma"] == 1.0


def test_settings_that_a_class_is_given_later_reach_network_2(make_trainer, monkeypatch):
    """As in a notebook, which sets them on a class that is there already, also on that of the name itself."""
    cls = subclass(PAIR)
    assert (
        make_trainer(cls=cls).plans_manager.plans["configurations"]["3d_fullres"][SECOND]["arch_kwargs"]["depth"] == 2
    )
    cls.anu_depth = 1
    monkeypatch.setattr(find_trainer(PAIR), "anu_gate_ratio", 0.25, raising=False)
    for made, expected in ((make_trainer(cls=cls), (1, 0.25)), (make_trainer(PAIR), (2, 0.25))):
        kwargs = made.plans_manager.plans["configurations"]["3d_fullres"][SECOND]["arch_kwargs"]
        assert (kwargs["depth"], kwargs["gate_ratio"]) == expected


def test_a_part_keeps_its_own_optimiser_in_a_pair(make_trainer, monkeypatch):
    """As a network has it that learns at another rate, by another optimiser."""
    from nnunet_ext.trainers.ife import IFEEntropyPart

    def set_defaults(self):
        super(IFEEntropyPart, self).set_defaults()
        self.initial_lr = 1e-4

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr)
        return optimizer, PlateauScheduler(optimizer)

    monkeypatch.setattr(IFEEntropyPart, "set_defaults", set_defaults, raising=False)
    monkeypatch.setattr(IFEEntropyPart, "configure_optimizers", configure_optimizers, raising=False)
    trainer, loader = ready(make_trainer("nnUNetTrainerCPS_UNet_IFEEntropy"))
    assert [type(one) for one in (trainer.optimizer, trainer.optimizer_2)] == [torch.optim.SGD, torch.optim.AdamW]
    assert [one.param_groups[0]["lr"] for one in (trainer.optimizer, trainer.optimizer_2)] == [1e-2, 1e-4]
    before = weights(trainer.network_2)
    trainer.train_step(next(loader))
    assert not same(before, weights(trainer.network_2))
    assert trainer.hyperparameters()["initial_lr"] == 1e-2
    assert trainer.hyperparameters()["network_2"]["initial_lr"] == 1e-4


@pytest.mark.parametrize(
    ("name", "kinds", "rates"),
    [
        ("nnUNetTrainerCPS_UNet_TransUNet", (torch.optim.SGD, torch.optim.AdamW), [1e-2, 1e-4]),
        ("nnUNetTrainerCPS_TransUNet_DeepLabV3Plus", (torch.optim.AdamW, torch.optim.AdamW), [1e-4, 1e-4]),
    ],
)
def test_networks_of_the_reference_module(make_trainer, name, kinds, rates):
    trainer, loader = ready(make_trainer(name, "2d"))
    optimizers = (trainer.optimizer, trainer.optimizer_2)
    assert tuple(type(one) for one in optimizers) == kinds
    assert [one.param_groups[0]["lr"] for one in optimizers] == rates
    batch = next(loader)
    sizes = [len(target[0, 0]) for target in batch["target"]]
    assert sizes == [32, 16, 8, 4]
    report = trainer.train_step(batch)
    assert np.isfinite([report["loss"], report["loss_2"], report["cps"]]).all()
    trainer.lr_scheduler_2.step(trainer.num_epochs // 2)
    assert trainer.optimizer_2.param_groups[0]["lr"] == pytest.approx(1e-4 * 0.5**0.9)


def test_each_network_has_a_learning_rate_of_its_own(make_trainer):
    rates = {"transunet_initial_lr": 2e-4, "deeplab_initial_lr": 3e-4}
    trainer = make_trainer(
        cls=type("Rates", (find_trainer("nnUNetTrainerCPS_TransUNet_DeepLabV3Plus"),), rates), configuration="2d"
    )
    trainer.initialize()
    assert [one.param_groups[0]["lr"] for one in (trainer.optimizer, trainer.optimizer_2)] == list(rates.values())


def test_what_both_parts_bring_alike_is_changed_for_both(make_trainer):
    """Of a setting that networks 1 and 2 have the same value of, a changed one is that of both."""
    trainer = make_trainer("nnUNetTrainerCPS_TransUNet_DeepLabV3Plus", "2d")
    trainer.adam_betas, trainer.weight_decay = (0.9, 0.99), 1e-3
    trainer.initialize()
    for optimizer in (trainer.optimizer, trainer.optimizer_2):
        group = optimizer.param_groups[0]
        assert (tuple(group["betas"]), group["weight_decay"], group["lr"]) == ((0.9, 0.99), 1e-3, 1e-4)
    assert not trainer.companion.enable_deep_supervision


def test_what_differs_between_the_parts_is_changed_for_network_1(make_trainer):
    trainer = make_trainer("nnUNetTrainerCPS_UNet_TransUNet", "2d")
    trainer.initial_lr, trainer.weight_decay = 0.05, 1e-3
    trainer.initialize()
    groups = [optimizer.param_groups[0] for optimizer in (trainer.optimizer, trainer.optimizer_2)]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.05, 1e-3), (1e-4, 1e-7)]


@pytest.mark.parametrize("base", [PAIR, "nnUNetTrainerCPS"])
def test_methods_that_are_those_of_network_1_alone_are_named(make_trainer, base):
    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.network.parameters(), 1e-3)
        return optimizer, PlateauScheduler(optimizer)

    def on_epoch_end(self):
        find_trainer(base).on_epoch_end(self)

    trainer = make_trainer(
        cls=subclass(base, configure_optimizers=configure_optimizers, on_epoch_end=on_epoch_end, anu_depth=1)
    )
    trainer.initialize()
    alike = base == "nnUNetTrainerCPS"
    assert type(trainer.optimizer) is torch.optim.Adam
    assert type(trainer.optimizer_2) is (torch.optim.Adam if alike else torch.optim.SGD)
    line = (
        f"WARNING: configure_optimizers of {base}_Mine is that of network 1 alone; network 2 (NestedAttentionUNet) has "
        "the one that its part of the name brings"
    )
    assert (line in Path(trainer.log_file).read_text()) != alike


def test_weights_of_network_2s_encoder(make_trainer, tmp_path):
    """They are taken from a file that the user's class names; a training that goes on needs it no more."""
    given = make_trainer("nnUNetTrainerTransUNet")
    given.seed = 7
    given.initialize()
    file = tmp_path / "encoder.pth"
    torch.save(given.network.encoder.state_dict(), file)
    name = "nnUNetTrainerCPS_UNet_TransUNet"

    def made():
        trainer = make_trainer(name, "2d")
        trainer.transunet_weights = str(file)
        return trainer

    trainer = made()
    trainer.initialize()
    taken = trainer.network_2.encoder.state_dict()
    key = next(key for key, value in taken.items() if value.ndim == 4 and value.shape[1] > 1)
    assert torch.equal(taken[key], given.network.encoder.state_dict()[key])
    checkpoint = str(tmp_path / "checkpoint_latest.pth")
    trainer.save_checkpoint(checkpoint)
    file.unlink()
    again = made()
    again.load_checkpoint(checkpoint)
    assert same(weights(again.network_2), weights(trainer.network_2))
    with pytest.raises(FileNotFoundError, match="transunet_weights"):
        made().initialize()


def test_a_2d_network_in_3d_is_refused(make_trainer):
    with pytest.raises(ValueError, match="TransUNet is a 2D network, but the patches of this configuration are 16 x"):
        make_trainer("nnUNetTrainerCPS_UNet_TransUNet")


def test_bad_settings_of_network_2_are_refused(make_trainer):
    trainer = make_trainer(PAIR)
    trainer.anu_output_weights = (1.0,)
    with pytest.raises(ValueError, match="anu_output_weights must hold 2 numbers of 0 or more"):
        trainer.initialize()
    with pytest.raises(ValueError, match="anu_depth must lie between 1 and 2 for these plans, got 9"):
        make_trainer(cls=subclass(PAIR, anu_depth=9))


def test_two_kinds_of_enhancement(make_trainer):
    trainer = make_trainer("nnUNetTrainerCPS_IFECurvature_IFEEntropy")
    trainer.initialize()
    for network, score in zip(networks(trainer), ("curvature", "entropy"), strict=True):
        assert isinstance(network, IFEPlainConvUNet)
        assert {layer.score for layer in network.enhancements.values()} == {score}


def test_plans_of_one_network_serve_the_other(make_trainer):
    """Plans that name a nested network, as ANUNetPlanner's do: network 2 is made from nnU-Net's own."""
    plans = make_trainer("nnUNetTrainerANUNet").plans_manager.plans
    trainer = make_trainer("nnUNetTrainerCPS_ANUNet_IFEEntropy", plans=deepcopy(plans))
    trainer.initialize()
    assert [type(network) for network in networks(trainer)] == [NestedAttentionUNet, IFEPlainConvUNet]
    with pytest.raises(ValueError, match="name a nested network.*; UNet in that name is the plans' own network"):
        make_trainer(cls=subclass(PAIR, anu_depth=2), plans=deepcopy(plans)).initialize()


def test_plans_of_a_pair_are_none_of_plain_cps(make_trainer):
    plans = make_trainer(PAIR).plans_manager.plans
    assert SECOND in plans["configurations"]["3d_fullres"]
    again = make_trainer(PAIR, plans=deepcopy(plans))
    assert again.plans_manager.plans == plans
    with pytest.raises(ValueError, match="the plans already name .* with depth = 2, but .* has 1; set one of both"):
        make_trainer(cls=subclass(PAIR, anu_depth=1), plans=deepcopy(plans))
    alone = make_trainer("nnUNetTrainerCPS", plans=deepcopy(plans)).plans_manager.plans
    assert SECOND not in alone["configurations"]["3d_fullres"]


def test_another_pair_is_refused(make_trainer):
    trainer = make_trainer(PAIR + SHORT)
    trainer.initialize()
    file = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    with pytest.raises(RuntimeError, match=f"was written by {PAIR}.*, but nnUNetTrainerCPS_UNet_IFEEntropy was"):
        make_trainer("nnUNetTrainerCPS_UNet_IFEEntropy").load_checkpoint(file)
    other = type(PAIR + SHORT, (find_trainer(PAIR + SHORT),), {"anu_depth": 1})
    with pytest.raises(RuntimeError, match="this checkpoint was trained with depth = 2, but .* has 1 now"):
        make_trainer(cls=other).load_checkpoint(file)
    content = torch.load(file, weights_only=False)
    content[SECOND_NETWORK]["network_weights"].popitem()
    torch.save(content, file)
    with pytest.raises(
        RuntimeError, match="has another network 2 than nnUNetTrainerCPS_UNet_ANUNet.*: it lacks decoder.*; continue"
    ):
        make_trainer(PAIR + SHORT).load_checkpoint(file)
    content[SECOND_NETWORK]["network_weights"] = content["network_weights"]
    torch.save(content, file)
    with pytest.raises(RuntimeError, match=r": it lacks [\w.]+; continue it"):
        make_trainer(PAIR + SHORT).load_checkpoint(file)


@pytest.mark.parametrize(
    ("source", "name", "line"),
    [
        (PAIR, PAIR, "Network 2 (NestedAttentionUNet) begins with the weights of network 2 in"),
        ("nnUNetTrainerCPS", PAIR, "Network 2 (NestedAttentionUNet) keeps its initial weights"),
        (
            "nnUNetTrainerCPS",
            "nnUNetTrainerCPS_UNet_IFEEntropy",
            "Network 2 (IFEPlainConvUNet) begins with the weights",
        ),
        ("nnUNetTrainerCPS", "nnUNetTrainerCPS_IFECurvature_IFEEntropy", "begins with the weights of network 2 in /"),
    ],
)
def test_pretrained_weights_go_where_they_fit(make_trainer, tmp_path, source, name, line):
    from nnunetv2.run import run_training

    from nnunet_ext.plugin.seam_training import _with_callback

    given = make_trainer(source)
    given.seed = 5
    given.initialize()
    file = str(tmp_path / "pretrained.pth")
    given.save_checkpoint(file)
    trainer = make_trainer(name)
    stock = run_training.maybe_load_checkpoint
    _with_callback(getattr(stock, "__wrapped__", stock))(trainer, False, False, file)
    assert line in Path(trainer.log_file).read_text()
    first, taken = weights(given.network), weights(trainer.network)
    body = {key: value for key, value in first.items() if ".seg_layers." not in key and taken[key].shape == value.shape}
    assert len(body) > 20
    assert same(body, {key: taken[key] for key in body})


def test_running_means_of_both_networks_label(make_trainer):
    name = "nnUNetTrainerCPS_Confidence_UNet_ANUNet"
    trainer, loader = ready(make_trainer(name), epoch=500, peer_ema=True)
    trainer.train_step(next(loader))
    for teacher, network in zip(trainer.cps_step.teachers, networks(trainer), strict=True):
        assert type(teacher.network) is type(network)
        assert same(weights(teacher.network), weights(network))  # the first update copies


def test_networks_of_two_kinds_differ():
    first, second = torch.nn.Conv2d(1, 2, 1), torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Conv2d(2, 2, 1))
    second_network.check_networks_differ(first, second)


def test_a_network_without_a_switch_is_left_alone():
    network = torch.nn.Conv2d(1, 2, 1)
    second_network.set_deep_supervision([network], True)
    with second_network.without_deep_supervision(network):
        assert not hasattr(network, "deep_supervision")
