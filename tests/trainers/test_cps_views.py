"""CPS with the parts CutMix, Confidence and ClassBalance: two views, labels of the peer."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import tiny
from reference.gates import GateOf
from reference.taught import networks, ready, same, weights

from nnunet_ext.training.checkpoints import SECOND_NETWORK
from nnunet_ext.training.cps_step import CPSStep
from nnunet_ext.training.cps_views_step import CPSViewsStep

SHORT = "nnUNetTrainerCPS_CutMix_Confidence_ClassBalance_4epochs_2iterations"
CUTMIX = "nnUNetTrainerCPS_CutMix_4epochs_2iterations"
PLAIN = "nnUNetTrainerCPS_4epochs_2iterations"


def switched_off(trainer):
    trainer.cutmix_probability, trainer.confidence_threshold, trainer.confidence_guard = 0.0, 0.0, False
    trainer.class_balance_gamma = 0.0
    trainer.warmup_fraction, trainer.ramp_fraction, trainer.ramp_down_fraction = 0.0, 0.5, 0.0
    return trainer


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [
        ("3d_fullres", "labels"),
        ("2d", "labels"),
        ("3d_fullres", "ignore"),
        ("2d", "regions"),
        ("3d_fullres", "regions_ignore"),
    ],
)
def test_trains_and_restores(make_trainer, configuration, kind):
    trainer = make_trainer(SHORT, configuration, kind)
    trainer.validate_second_network = False
    trainer.run_training()
    curves = trainer.logger.get_checkpoint()
    assert {len(values) for values in curves.values()} == {4}
    # warm-up round(0.4) = 0, ramp round(1.6) = 2 epochs, ramp-down round(0.6) = 1 epoch
    assert curves["cps_lambda"] == pytest.approx([0.25, 0.5, 0.5, 0.05])
    for name in ("supervised_loss_1", "supervised_loss_2", "cps_loss", "pseudo_label_share", "nothing_kept"):
        assert np.isfinite(curves[name]).all(), name
    assert {len(shares) for shares in curves["kept_share"]} == {trainer.label_manager.num_segmentation_heads}
    log = Path(trainer.log_file).read_text()
    assert "CPS with views 'weak_strong', pseudo-labels learnt on 'unlabelled'" in log
    assert "CPS share of the labels of network 2 that is kept" in log
    assert log.count("CPS steps in which a network learnt no pseudo-label: ") == 4
    restored = make_trainer(SHORT, configuration, kind)
    restored.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for before, after in zip(networks(trainer), networks(restored), strict=True):
        assert same(weights(before), weights(after))


@pytest.mark.parametrize(("configuration", "kind"), [("3d_fullres", "labels"), ("2d", "regions")])
def test_off_values_are_plain_cps(make_trainer, configuration, kind):
    """No box, no threshold, no guard, no weight, one view, both halves: batches and steps as without, bit for bit."""
    parts, alone = switched_off(make_trainer(SHORT, configuration, kind)), make_trainer(PLAIN, configuration, kind)
    parts.views, parts.pseudo_on = "same", "both"
    parts, loader = ready(parts)
    batches = [next(loader) for _ in range(2)]
    alone, loader = ready(alone)
    for batch in batches:
        plain = next(loader)
        assert batch.keys() == plain.keys()
        assert torch.equal(batch["unlabeled"], plain["unlabeled"])
        first, second = parts.train_step(batch), alone.train_step(plain)
        assert first["cps"] == second["cps"] != 0
    for one, two in zip(networks(parts), networks(alone), strict=True):
        assert same(weights(one), weights(two))
    for epoch in range(4):
        parts.current_epoch = alone.current_epoch = epoch
        assert parts.current_cps_weight() == alone.current_cps_weight()
    assert type(alone.cps_step) is CPSStep
    assert parts.extra_state()[SECOND_NETWORK].keys() == alone.extra_state()[SECOND_NETWORK].keys()


def test_networks_label_weak_views_and_learn_strong_ones_of_their_own(make_trainer):
    trainer, loader = ready(make_trainer(PLAIN.replace("CPS", "CPS_Confidence")))
    seen = ([], [])
    for network, images in zip(networks(trainer), seen, strict=True):
        network.register_forward_pre_hook(
            lambda module, args, images=images: images.append(
                (args[0].clone(), module.training, module.decoder.deep_supervision, torch.is_grad_enabled())
            )
        )
    batch = next(loader)
    trainer.train_step(batch)
    strong = ("unlabeled_strong", "unlabeled_strong_2")
    for (labels, learns), key in zip(seen, strong, strict=True):
        assert torch.equal(labels[0], batch["unlabeled"])
        assert labels[1:] == (True, False, False)
        assert torch.equal(learns[0], torch.cat([batch["data"], batch[key]]))
        assert learns[1:] == (True, True, True)
    assert not torch.equal(batch[strong[0]], batch[strong[1]])
    assert not torch.equal(batch[strong[0]], batch["unlabeled"])


def test_each_network_learns_the_labels_of_its_peer(make_trainer):
    """The loss is that of the unlabelled half against the peer's labels, the gradient that of one network alone."""
    trainer, loader = ready(make_trainer(PLAIN.replace("CPS", "CPS_Confidence")))
    trainer.cps_step.gates = (None, None)
    batch = next(loader)
    labels, losses, expected = [], [], []
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        labels = [network(batch["unlabeled"]).argmax(1, keepdim=True) for network in networks(trainer)]
    assert not torch.equal(*labels)
    trainer.set_deep_supervision_enabled(True)
    valid = torch.ones_like(labels[0], dtype=torch.bool) if batch["valid"] is None else batch["valid"][2:] > 0
    for network, peer, key in zip(networks(trainer), labels[::-1], ("", "_2"), strict=True):
        outputs = network(torch.cat([batch["data"], batch[f"unlabeled_strong{key}"]]))
        loss = trainer.loss([o[:2] for o in outputs], deepcopy(batch["target"]))
        pseudo = trainer.cps_step.unlabelled([o[2:] for o in outputs], peer, valid, valid)
        gradients = torch.autograd.grad(loss + 0.5 * pseudo, list(network.parameters()), allow_unused=True)
        expected.append([g for g in gradients if g is not None])
        losses += [loss.item(), pseudo.item()]
    trainer.cps_step.clip = 1e9
    report = trainer.train_step(batch)
    assert [report["loss"], report["loss_2"]] == pytest.approx(losses[::2], rel=1e-6)
    assert report["cps"] == pytest.approx(sum(losses[1::2]) / 2, rel=1e-6)
    for network, gradients in zip(networks(trainer), expected, strict=True):
        found = [p.grad for p in network.parameters() if p.grad is not None]
        for one, two in zip(found, gradients, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_boxes_are_the_same_for_both_networks_and_their_labels(make_trainer):
    trainer = make_trainer(CUTMIX)
    trainer.cutmix_probability = 1.0
    trainer, loader = ready(trainer)
    batch = next(loader)
    mixed, counts = trainer.cps_step.pseudo_labelled(batch)
    trainer.cps_step.mixer = None
    unmixed, before_mixing = trainer.cps_step.pseudo_labelled(batch)
    assert torch.equal(counts, before_mixing)
    exchanged = (mixed[0].images != unmixed[0].images).any(1, keepdim=True)
    assert 0.05 < exchanged.float().mean() < 0.5
    for before, after in zip(unmixed, mixed, strict=True):
        for name in ("images", "labels", "kept", "valid"):
            one, two = getattr(before, name), getattr(after, name)
            assert torch.equal(two, torch.where(exchanged, one.roll(-1, 0), one)), name


def test_each_network_has_a_gate_of_its_own_that_its_peer_learns_by(make_trainer):
    trainer, loader = ready(make_trainer(PLAIN.replace("CPS", "CPS_Confidence")))
    first, second = trainer.cps_step.gates
    assert first is not second
    trainer.cps_step.gates = (GateOf(lambda logits, labels, *_: torch.zeros_like(labels, dtype=torch.bool)), None)
    (one, two), _ = trainer.cps_step.pseudo_labelled(next(loader))
    assert torch.equal(one.kept, one.valid)
    assert not two.kept.any()


@pytest.mark.parametrize("pseudo_on", ["both", "unlabelled"])
def test_with_the_same_views_both_networks_learn_what_is_labelled(make_trainer, pseudo_on):
    trainer = make_trainer(PLAIN.replace("CPS", "CPS_Confidence_ClassBalance"))
    trainer.views, trainer.pseudo_on = "same", pseudo_on
    trainer, loader = ready(trainer)
    batch = next(loader)
    assert "unlabeled_strong" not in batch
    (first, second), counts = trainer.cps_step.pseudo_labelled(batch)
    expected = torch.cat([batch["data"], batch["unlabeled"]]) if pseudo_on == "both" else batch["unlabeled"]
    assert torch.equal(first.images, expected)
    assert torch.equal(second.images, expected)
    assert len(first.labels) == len(second.kept) == len(first.valid) == len(expected)
    assert counts[0].sum() <= batch["unlabeled"][:, 0].numel()
    report = trainer.train_step(batch)
    assert np.isfinite([report["loss"], report["loss_2"], report["cps"]]).all()


def test_without_deep_supervision(make_trainer):
    trainer = make_trainer(SHORT)
    trainer.enable_deep_supervision = False
    trainer.initialize()
    trainer.current_epoch = 2
    loader, _ = trainer.get_dataloaders()
    batch = next(loader)
    assert isinstance(batch["target"], torch.Tensor)
    assert trainer.train_step(batch)["cps"] != 0
    assert not any(network.decoder.deep_supervision for network in networks(trainer))


def test_both_halves_without_unlabelled_cases(make_trainer):
    trainer = make_trainer(PLAIN.replace("CPS", "CPS_Confidence"))
    trainer.views, trainer.use_unlabeled = "same", False
    trainer, loader = ready(trainer)
    assert trainer.views_and_halves() == ("same", "both")
    report = trainer.train_step(next(loader))
    assert report["counts"][0].sum() > 0


def test_without_weight_labels_alone_are_looked_at(make_trainer):
    trainer, alone = make_trainer(SHORT), make_trainer(PLAIN)
    trainer.cps_weight = alone.cps_weight = 0.0
    (trainer, loader), (alone, _) = ready(trainer), ready(alone)
    alone.use_unlabeled = False
    batch = next(loader)
    seen = []
    trainer.network.register_forward_hook(lambda module, images, output: seen.append(len(images[0])))
    assert trainer.train_step(deepcopy(batch))["counts"].sum() == 0
    assert seen == [trainer.batch_size]
    alone.train_step(batch)
    for one, two in zip(networks(trainer), networks(alone), strict=True):
        for key, value in weights(one).items():
            torch.testing.assert_close(value, weights(two)[key], rtol=1e-5, atol=1e-6)


def test_a_training_that_goes_on_takes_the_same_next_step(make_trainer, tmp_path):
    trainer, loader = ready(make_trainer(SHORT))
    batches = [next(loader) for _ in range(4)]
    for batch in batches[:2]:
        trainer.train_step(deepcopy(batch))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    state = torch.load(tmp_path / "c.pth", weights_only=False)[SECOND_NETWORK]["step"]
    assert state.keys() == {"gate", "gate_2", "mixer", "balance"}
    assert not torch.equal(state["gate"]["histogram"], state["gate_2"]["histogram"])
    restored = make_trainer(SHORT)
    restored.initialize()
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    restored.current_epoch = trainer.current_epoch
    for network in networks(restored):
        network.train()
    for batch in batches[2:]:
        first, second = (one.train_step(deepcopy(batch)) for one in (trainer, restored))
        assert [first[key] for key in ("loss", "loss_2", "cps")] == [second[key] for key in ("loss", "loss_2", "cps")]
    for one, two in zip(networks(trainer), networks(restored), strict=True):
        assert same(weights(one), weights(two))


@pytest.mark.parametrize("method", ["CPS", "MeanTeacher"])
def test_parts_that_were_switched_off_begin_anew(make_trainer, tmp_path, method):
    name = SHORT.replace("CPS", method)
    trainer = switched_off(make_trainer(name))
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    restored = make_trainer(name)
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    assert same(weights(trainer.network), weights(restored.network))


def test_off_values_alone_leave_two_views(make_trainer):
    trainer, loader = ready(switched_off(make_trainer(SHORT)))
    assert isinstance(trainer.cps_step, CPSViewsStep)
    assert trainer.cps_step.gates == (None, None)
    assert trainer.cps_step.mixer is trainer.cps_step.balance is None
    assert {"unlabeled_strong", "unlabeled_strong_2"} < next(loader).keys()


def test_plain_cps_may_have_two_views(make_trainer):
    trainer = make_trainer(PLAIN)
    trainer.views = "weak_strong"
    trainer, loader = ready(trainer)
    assert trainer.views_and_halves() == ("weak_strong", "unlabelled")
    assert trainer.train_step(next(loader))["cps"] != 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": "strong"}, "views must be None or one of same, weak_strong, got 'strong'"),
        ({"pseudo_on": "labelled"}, "pseudo_on must be None or one of both, unlabelled, got 'labelled'"),
        ({"pseudo_on": "both"}, "pseudo_on 'both' and views 'weak_strong' exclude each other: labelled patches have"),
        (
            {"pseudo_on": "both", "views": "same"},
            "pseudo_on 'both' goes without CutMix.*pseudo_on to 'unlabelled' or cutmix_probability to 0",
        ),
        ({"use_unlabeled": False}, "pseudo_on 'unlabelled' has nothing to learn from where use_unlabeled is False"),
        ({"confidence_gate": "none"}, "confidence_gate must be one of global, per_class, got 'none'"),
    ],
)
def test_settings_that_make_no_sense(make_trainer, settings, message):
    trainer = make_trainer(SHORT)
    for name, value in settings.items():
        setattr(trainer, name, value)
    with pytest.raises(ValueError, match=message):
        trainer.initialize()


def test_another_loss_of_pseudo_labels_is_not_left_out_in_silence(make_trainer):
    trainer = make_trainer("nnUNetTrainerCPS_Confidence_CWCD_4epochs_2iterations")
    trainer.contour_pseudo_labels = True
    with pytest.raises(ValueError, match="ContourPseudoCriterion goes with plain CPS alone.*leave contour_pseudo"):
        trainer.initialize()


def test_a_batch_of_one_is_not_mixed(make_trainer):
    plans = tiny.plans()
    plans["configurations"]["3d_fullres"]["batch_size"] = 1
    trainer, loader = ready(make_trainer(CUTMIX, plans=plans))
    assert trainer.cps_step.mixer is None
    assert Path(trainer.log_file).read_text().count("WARNING: CutMix exchanges boxes") == 1
    assert np.isfinite(trainer.train_step(next(loader))["cps"])


def test_a_checkpoint_of_plain_cps_is_refused(make_trainer, tmp_path):
    other = make_trainer(PLAIN)
    other.initialize()
    other.save_checkpoint(str(tmp_path / "c.pth"))
    with pytest.raises(RuntimeError, match=f"was written by {PLAIN}"):
        make_trainer(CUTMIX).load_checkpoint(str(tmp_path / "c.pth"))
