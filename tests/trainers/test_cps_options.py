"""Options of CPS with two views: running means that label, agreement, the schedule, and what is watched."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.gates import GateOf
from reference.taught import networks, ready, same, weights

from nnunet_ext.training import cps_monitor, cps_views_monitor
from nnunet_ext.training.checkpoints import SECOND_NETWORK
from nnunet_ext.training.confidence import agreeing, label_and_confidence
from nnunet_ext.training.schedules import linear_ramp

PLAIN = "nnUNetTrainerCPS_4epochs_2iterations"
VIEWS = "nnUNetTrainerCPS_Confidence_4epochs_2iterations"
LONG = "nnUNetTrainerCPS_Confidence_40epochs_2iterations"


def test_running_means_label_the_weak_view_in_place_of_the_networks(make_trainer):
    trainer, loader = ready(make_trainer(VIEWS), peer_ema=True)
    trainer.train_step(next(loader))
    step, batch, seen = trainer.cps_step, next(loader), []
    step.gates = (None, None)
    for network in (*(teacher.network for teacher in step.teachers), *networks(trainer)):
        network.register_forward_pre_hook(
            lambda module, images: seen.append((module, images[0].clone(), module.training, torch.is_grad_enabled()))
        )
    labels = [teacher(batch["unlabeled"]).argmax(1, keepdim=True) for teacher in step.teachers]
    seen.clear()
    (first, second), _ = step.pseudo_labelled(batch)
    assert [module for module, *_ in seen] == [teacher.network for teacher in step.teachers]
    assert all(torch.equal(images, batch["unlabeled"]) for _, images, *_ in seen)
    assert [rest for *_, rest in seen] == [False, False]
    assert [training for *_, training, _ in seen] == [False, False]
    assert torch.equal(first.labels, labels[1])
    assert torch.equal(second.labels, labels[0])
    assert not torch.equal(*labels)


def test_running_means_follow_the_networks_also_where_labels_alone_teach(make_trainer):
    trainer, loader = ready(make_trainer(VIEWS), peer_ema=True)
    means = [None, None]
    for number in range(4):
        trainer.current_epoch = 2 if number % 2 else 0
        trainer.train_step(next(loader))
        decay = min(0.99, 1 - 1 / (number + 1))
        for n, network in enumerate(networks(trainer)):
            now = weights(network)
            means[n] = {key: decay * means[n][key] + (1 - decay) * now[key] for key in now} if means[n] else now
    for teacher, mean in zip(trainer.cps_step.teachers, means, strict=True):
        assert teacher.t == 4
        assert all(parameter.grad is None for parameter in teacher.network.parameters())
        for key, value in weights(teacher.network).items():
            torch.testing.assert_close(value, mean[key], rtol=1e-5, atol=1e-6)


def test_the_network_that_labels_is_a_mean(make_trainer):
    """Whoever looks for classes in whole scans asks for it."""
    (means, _), (alone, _) = ready(make_trainer(VIEWS), peer_ema=True), ready(make_trainer(VIEWS))
    assert means.label_maker() == (means.cps_step.teachers[0].network, 0.5)
    assert alone.label_maker() == (alone.network, 0.5)


def test_running_means_follow_steps_without_unlabelled_patches(make_trainer):
    trainer, loader = ready(make_trainer(VIEWS), peer_ema=True, unlabeled_every=2)
    kept = [trainer.train_step(next(loader)).get("kept_counts") for _ in range(2)]
    assert sum(counts is None for counts in kept) == 1
    assert [teacher.t for teacher in trainer.cps_step.teachers] == [2, 2]
    reports = [trainer.train_step(next(loader)) for _ in range(2)]
    values = trainer.monitor.epoch(reports, 0.5, False)
    assert values["nothing_kept"] == 0
    assert 0 < values["kept_share"][0] <= 1


def test_means_of_the_last_step_label_as_the_networks_do(make_trainer):
    """With a decay of 0 a mean is its network: the same steps as without means, but for the mode of the layers."""
    (means, loader), (alone, _) = ready(make_trainer(VIEWS), peer_ema=True, ema_decay=0.0), ready(make_trainer(VIEWS))
    for _ in range(2):
        batch = next(loader)
        first, second = (trainer.train_step(deepcopy(batch)) for trainer in (means, alone))
        assert first["cps"] == pytest.approx(second["cps"], rel=1e-6)
    assert alone.cps_step.teachers is None


def test_a_training_with_means_goes_on_with_the_same_next_step(make_trainer, tmp_path):
    trainer, loader = ready(make_trainer(VIEWS), peer_ema=True)
    batches = [next(loader) for _ in range(4)]
    for batch in batches[:2]:
        trainer.train_step(deepcopy(batch))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    checkpoint = torch.load(tmp_path / "c.pth", weights_only=False)
    assert same(checkpoint["network_weights"], weights(trainer.network))  # network 1 is the model
    state = checkpoint[SECOND_NETWORK]["step"]
    assert state.keys() == {"gate", "gate_2", "teacher", "teacher_2"}
    assert not same(state["teacher"]["network_weights"], state["teacher_2"]["network_weights"])
    restored = make_trainer(VIEWS)
    restored.peer_ema = True
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    restored.current_epoch = trainer.current_epoch
    for network in networks(restored):
        network.train()
    for batch in batches[2:]:
        first, second = (one.train_step(deepcopy(batch)) for one in (trainer, restored))
        assert [first[key] for key in ("loss", "loss_2", "cps")] == [second[key] for key in ("loss", "loss_2", "cps")]
    for one, two in zip(trainer.cps_step.teachers, restored.cps_step.teachers, strict=True):
        assert one.t == two.t == 4
        assert same(weights(one.network), weights(two.network))


def test_means_begin_with_the_networks_of_a_checkpoint_without_them(make_trainer, tmp_path):
    trainer, loader = ready(make_trainer(VIEWS))
    trainer.train_step(next(loader))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    restored = make_trainer(VIEWS)
    restored.peer_ema = True
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    for teacher, network in zip(restored.cps_step.teachers, networks(trainer), strict=True):
        assert teacher.t == 0
        assert same(weights(teacher.network), weights(network))


def test_means_begin_with_pretrained_weights(make_trainer, tmp_path):
    source = make_trainer("nnUNetTrainer_1epochs_1iterations")
    source.initialize()
    source.save_checkpoint(str(tmp_path / "w.pth"))
    trainer, loader = ready(make_trainer(VIEWS), peer_ema=True)
    trainer.train_step(next(loader))
    trainer.network.load_state_dict(source.network.state_dict())
    trainer.after_pretrained_weights(str(tmp_path / "w.pth"))
    for teacher, network in zip(trainer.cps_step.teachers, networks(trainer), strict=True):
        assert teacher.t == 0
        assert same(weights(teacher.network), weights(network))


def test_labels_must_agree_where_asked(make_trainer):
    assert make_trainer(VIEWS).confidence_agree is False
    trainer, loader = ready(make_trainer(VIEWS), confidence_agree=True, confidence_threshold=0.0)
    assert trainer.cps_step.gates == (None, None)
    batch = next(loader)
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        found = [label_and_confidence(network(batch["unlabeled"])) for network in networks(trainer)]
    trainer.set_deep_supervision_enabled(True)
    (first, second), _ = trainer.cps_step.pseudo_labelled(batch)
    (one, sure_1), (two, sure_2) = found
    assert not torch.equal(one, two)
    assert torch.equal(first.kept, first.valid & agreeing(two, one, sure_2))
    assert torch.equal(second.kept, second.valid & agreeing(one, two, sure_1))


def test_agreement_alone_is_no_plain_cps(make_trainer):
    trainer, loader = ready(
        make_trainer(VIEWS), views="same", pseudo_on="both", confidence_threshold=0.0, confidence_agree=True
    )
    report = trainer.train_step(next(loader))
    assert report["kept_counts"].sum() < report["counts"][:2].sum()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (PLAIN, {"peer_ema": True}, "peer_ema has no place in plain 3D-CPS.*set views to 'weak_strong' or peer_ema to"),
        (VIEWS, {"ema_decay": 1.0}, r"ema_decay must be None or lie in \[0, 1\), got 1.0"),
        (
            VIEWS.replace("CPS", "MeanTeacher"),
            {"confidence_agree": True},
            "confidence_agree compares the labels of two networks, but .*MeanTeacher.* has one that labels",
        ),
        (LONG, {"warmup_fraction": 0.5}, "warmup_fraction 0.5 and ramp_fraction 0.4 overlap: of 40 epochs"),
        (LONG, {"ramp_fraction": 0.9}, "ramp_fraction 0.9 and ramp_down_fraction 0.15 overlap: of 40 epochs"),
        (PLAIN, {"ramp_down_end": 2.0}, "ramp_down_end must lie between 0 and 1, got 2.0"),
        (PLAIN, {"ramp_fraction": -0.1}, "ramp_fraction must lie between 0 and 1, got -0.1"),
    ],
)
def test_settings_that_make_no_sense(make_trainer, name, settings, message):
    trainer = make_trainer(name)
    for setting, value in settings.items():
        setattr(trainer, setting, value)
    with pytest.raises(ValueError, match=message):
        trainer.initialize()


def lambdas(trainer):
    found = []
    for epoch in range(trainer.num_epochs):
        trainer.current_epoch = epoch
        found.append(trainer.current_cps_weight())
    return found


@pytest.mark.parametrize("part", ["CutMix", "BCP", "Confidence", "ClassBalance"])
def test_with_a_part_the_weight_has_the_schedule_of_all_parts(make_trainer, part):
    """Warm-up 2, ramp to 8, ramp-down from 17 of 20 epochs."""
    ramp = [number / 12 for number in range(1, 7)]
    expected = [0, 0, *ramp, *[0.5] * 9, 0.35, 0.2, 0.05]
    assert lambdas(make_trainer(f"nnUNetTrainerCPS_{part}_20epochs")) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "settings", "epochs"),
    [
        ("nnUNetTrainerCPS_BCP_20epochs", {}, 2),
        ("nnUNetTrainerCPS_BCP_20epochs", {"cps_weight": 0.0}, 0),
        ("nnUNetTrainerCPS_20epochs", {}, 0),
    ],
)
def test_labels_teach_alone_in_the_warm_up(make_trainer, name, settings, epochs):
    """So long BCP mixes labelled patches with each other."""
    trainer, found = make_trainer(name), []
    for setting, value in settings.items():
        setattr(trainer, setting, value)
    for epoch in range(20):
        trainer.current_epoch = epoch
        found.append(trainer.labels_teach_alone())
    assert found == [True] * epochs + [False] * (20 - epochs)


def test_steps_of_bcp_with_means_and_turns(make_trainer):
    """In the warm-up, and after it."""
    name = "nnUNetTrainerCPS_BCP_Confidence_20epochs_2iterations"
    trainer, loader = ready(make_trainer(name), peer_ema=True, second_geometry=True)
    for epoch in (0, 10):
        trainer.current_epoch = epoch
        report = trainer.train_step(next(loader))
        assert np.isfinite([report["loss"], report["loss_2"]]).all()
        assert report["cps"] is None if epoch == 0 else np.isfinite(report["cps"])
    trainer.cps_step.gates = (GateOf(lambda logits, labels, *_: torch.zeros_like(labels, dtype=torch.bool)), None)
    report = trainer.train_step(next(loader))
    assert report["nothing_kept"].tolist() == [0, 1]  # true labels beside them are none of pseudo-labels


@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 20, 50])
@pytest.mark.parametrize("views", [None, "weak_strong"])
def test_plain_cps_keeps_its_ramp_bit_for_bit(make_trainer, length, views):
    trainer = make_trainer("nnUNetTrainerCPS")
    trainer.num_epochs, trainer.views = length, views
    assert lambdas(trainer) == [linear_ramp(epoch, length) for epoch in range(length)]


def report(counts=(80, 10, 10), kept=None, nothing=(0, 0)):
    counts = np.array([counts] * 3, float)
    kept = counts[:2] if kept is None else np.array(kept, float)
    losses = {"loss": 1.0, "loss_2": 1.0, "cps": 0.5, "labelled_counts": np.ones(3)}
    return losses | {"counts": counts, "kept_counts": kept, "nothing_kept": np.array(nothing, float)}


def epoch_of(trainer, number, **options):
    trainer.current_epoch = number
    trainer.on_train_epoch_end([report(**options)] * 2)


def test_what_is_kept_is_a_curve_and_in_the_log(make_trainer):
    trainer = make_trainer(LONG)
    trainer.initialize()
    trainer.monitor.first_class = 1
    epoch_of(trainer, 0, nothing=(1, 1))
    for number in range(1, 6):
        epoch_of(trainer, number, kept=[(80, 5, 0), (40, 10, 0)], nothing=(1, 0))
    curves = trainer.logger.get_checkpoint()
    assert curves["kept_share"][5] == pytest.approx([0.75, 0.75, 0.0])
    assert np.isnan(curves["nothing_kept"][0])  # in the warm-up nothing is learnt of pseudo-labels
    assert curves["nothing_kept"][5] == 2.0
    log = Path(trainer.log_file).read_text()
    assert "CPS share of the labels of network 1 that is kept background 1.000, left 0.500, right 0.000" in log
    assert "CPS steps in which a network learnt no pseudo-label: 2" in log
    names = [panel.curves[0][0] for panel in cps_views_monitor.PANELS]
    assert "kept_share" in names
    assert [name for name in names if name != "kept_share"] == [panel.curves[0][0] for panel in cps_monitor.PANELS]


def test_a_class_that_drifts_is_warned_of(make_trainer, tmp_path):
    trainer = make_trainer(LONG)
    trainer.initialize()
    for number in range(26):
        epoch_of(trainer, number)
    assert "the share of left (" not in Path(trainer.log_file).read_text()
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    restored = make_trainer(LONG)
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    for number in range(26, 30):
        epoch_of(restored, number, counts=(70, 20, 10))
    log = Path(restored.log_file).read_text()
    assert "the share of left (" in log
    assert "a smaller cps_weight or a longer ramp_down_fraction" in log


@pytest.mark.parametrize(("epochs", "warned"), [(range(4), False), (range(4, 7), True)])
def test_a_missing_class_is_warned_of_once_pseudo_labels_teach(make_trainer, epochs, warned):
    """The warm-up of 40 epochs takes 4."""
    trainer = make_trainer(LONG)
    trainer.initialize()
    for number in range(epochs.stop):
        epoch_of(trainer, number, counts=(90, 10, 0))
    assert ("WARNING: right missing from the pseudo-labels" in Path(trainer.log_file).read_text()) == warned


def test_plain_cps_logs_and_keeps_what_it_did(make_trainer):
    trainer = make_trainer(PLAIN)
    trainer.validate_second_network = False
    trainer.run_training()
    curves = trainer.logger.get_checkpoint()
    assert set(cps_monitor.KEYS) < curves.keys()
    assert not {"kept_share", "nothing_kept"} & curves.keys()
    log = Path(trainer.log_file).read_text()
    assert "is kept" not in log
    assert "no pseudo-label" not in log
    checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
    assert checkpoint[SECOND_NETWORK].keys() == {"network_weights", "optimizer_state", "lr_schedulers", "monitor"}
