"""The part BCP inside nnU-Net's trainer, with a teacher and with two networks."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from reference import tiny
from reference.gates import GateOf
from reference.taught import networks, ready, same, step_of, weights

from nnunet_ext.training.checkpoints import SECOND_NETWORK, TEACHING
from nnunet_ext.training.copy_paste import CopyPasted

LENGTH = "_4epochs_2iterations"
METHODS = pytest.mark.parametrize("method", ["MeanTeacher", "CPS"])
LOSSES = {"MeanTeacher": ("loss", "unlabeled_loss"), "CPS": ("loss", "loss_2", "cps")}


def with_batches(trainer, number):
    """An initialised trainer and its first batches, which are drawn from the streams of random numbers of all."""
    trainer, loader = ready(trainer)
    return trainer, [next(loader) for _ in range(number)]


def with_warmup(trainer):
    """Let the first of four epochs be one in which the labels teach alone."""
    trainer.warmup_fraction = 0.25
    return trainer


def images_of_each_step(network):
    seen = []
    network.register_forward_pre_hook(lambda _, images: seen.append(images[0].clone()))
    return seen


@pytest.mark.parametrize(
    ("method", "configuration", "kind"),
    [
        ("MeanTeacher", "3d_fullres", "labels"),
        ("CPS", "3d_fullres", "labels"),
        ("CPS", "2d", "labels"),
        ("MeanTeacher", "3d_fullres", "ignore"),
        ("MeanTeacher", "2d", "regions"),
        ("CPS", "3d_fullres", "regions_ignore"),
    ],
)
def test_trains_and_restores(make_trainer, method, configuration, kind):
    name = f"nnUNetTrainer{method}_BCP_Confidence_ClassBalance{LENGTH}"
    trainer = with_warmup(make_trainer(name, configuration, kind))
    trainer.validate_second_network = trainer.validate_student = False
    trainer.run_training()
    curves = trainer.logger.get_checkpoint()
    assert {len(values) for values in curves.values()} == {4}
    loss = "unlabeled_loss" if method == "MeanTeacher" else "cps_loss"
    assert np.isfinite(curves[loss][1:]).all()
    assert np.isfinite(curves["pseudo_label_share"][1:]).all()
    assert trainer.copy_paste.steps == 6  # not those of the warm-up
    restored = make_trainer(name, configuration, kind)
    restored.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    for before, after in zip(networks(trainer), networks(restored), strict=True):
        assert same(weights(before), weights(after))
    assert restored.copy_paste.steps == trainer.copy_paste.steps


@METHODS
@pytest.mark.parametrize(("configuration", "kind"), [("3d_fullres", "labels"), ("2d", "regions")])
def test_the_off_value_is_the_trainer_without_the_part(make_trainer, method, configuration, kind):
    """The same batches and steps bit for bit, those of the warm-up included, and the same checkpoint."""
    parts = with_warmup(make_trainer(f"nnUNetTrainer{method}_BCP_Confidence{LENGTH}", configuration, kind))
    alone = with_warmup(make_trainer(f"nnUNetTrainer{method}_Confidence{LENGTH}", configuration, kind))
    parts.bcp_probability = 0.0
    (parts, batches), (alone, batches_alone) = with_batches(parts, 4), with_batches(alone, 4)
    for epoch, batch, batch_alone in zip((0, 0, 2, 2), batches, batches_alone, strict=True):
        parts.current_epoch = alone.current_epoch = epoch
        first, second = parts.train_step(batch), alone.train_step(batch_alone)
        for key in LOSSES[method]:
            assert first[key] == second[key]
    assert first[LOSSES[method][-1]] != 0
    for one, two in zip(networks(parts), networks(alone), strict=True):
        assert same(weights(one), weights(two))
    key = TEACHING if method == "MeanTeacher" else SECOND_NETWORK
    states = [trainer.extra_state()[key] for trainer in (parts, alone)]
    assert states[0].keys() == states[1].keys()
    assert states[0].get("step", {}).keys() == states[1].get("step", {}).keys()


def test_the_off_value_may_be_plain_cps(make_trainer):
    parts, alone = (make_trainer(f"nnUNetTrainerCPS{part}{LENGTH}") for part in ("_BCP", ""))
    parts.bcp_probability, parts.views = 0.0, "same"
    (parts, (batch,)), (alone, (batch_alone,)) = with_batches(parts, 1), with_batches(alone, 1)
    assert parts.views_and_halves() == ("same", "both")
    assert parts.train_step(batch)["cps"] == alone.train_step(batch_alone)["cps"] != 0
    for one, two in zip(networks(parts), networks(alone), strict=True):
        assert same(weights(one), weights(two))


@METHODS
def test_networks_learn_labelled_and_mixed_patches_in_one_pass(make_trainer, method):
    trainer, loader = ready(make_trainer(f"nnUNetTrainer{method}_BCP{LENGTH}"))
    seen = [images_of_each_step(network) for network in networks(trainer)]
    batch = next(loader)
    state = trainer.copy_paste.state_dict()
    report = trainer.train_step(deepcopy(batch))
    trainer.copy_paste.load_state_dict(state)
    outside = trainer.copy_paste.generator.bcp_box(batch["data"].shape[2:])
    assert (~outside).sum() == 10 * 8 * 10  # of a patch of 16 x 12 x 16
    part = torch.cat([outside, ~outside])
    for images, key in zip(seen, ("unlabeled_strong", "unlabeled_strong_2")[: len(seen)], strict=True):
        mixed = torch.where(part, batch["data"], batch[key])
        assert torch.equal(images[-1], torch.cat([batch["data"], mixed]))
        assert len(images) == (1 if method == "MeanTeacher" else 2)  # two networks label weak views, too
    assert torch.isfinite(torch.tensor(report[LOSSES[method][-1]]))


@METHODS
def test_labels_of_the_mixed_patches(make_trainer, method):
    """True labels in the labelled part, those of the teacher or of the peer in the other, gated there alone."""
    trainer, loader = ready(make_trainer(f"nnUNetTrainer{method}_BCP_Confidence{LENGTH}"))
    step, batch = step_of(trainer), next(loader)
    if method == "CPS":
        step.gates = (GateOf(half_of_the_labels), GateOf(half_of_the_labels))
    else:
        step.gate = GateOf(half_of_the_labels)
    mixed = learned_by_each(step, batch)
    step.mixer = None
    unmixed = learned_by_each(step, batch)
    assert all(torch.equal(one.labelled, mixed[0].labelled) for one in mixed)
    for before, after in zip(unmixed, mixed, strict=True):
        part = after.labelled
        assert torch.equal(after.labels, torch.where(part, batch["target"][0].long(), before.labels))
        assert torch.equal(after.kept, torch.where(part, True, before.kept))
        assert torch.equal(after.valid, torch.where(part, True, before.valid))
        assert 0 < after.of_pseudo_labels(after.kept).sum() < after.of_pseudo_labels(after.valid).sum()


def half_of_the_labels(logits, labels, confidence, valid):
    """A gate without memory."""
    return valid & (confidence >= confidence.median())


def learned_by_each(step, batch):
    """What each network learns of a batch."""
    found = step.pseudo_labelled(batch)
    return found[0] if isinstance(found, tuple) else (found,)


@METHODS
def test_a_training_that_goes_on_takes_the_same_next_step(make_trainer, tmp_path, method):
    """With a batch of one, so that the direction counts, and steps that are mixed now and then."""
    name = f"nnUNetTrainer{method}_BCP_ClassBalance{LENGTH}"
    plans = tiny.plans()
    plans["configurations"]["3d_fullres"]["batch_size"] = 1
    trainer, restored = (make_trainer(name, plans=plans) for _ in range(2))
    trainer.bcp_probability = restored.bcp_probability = 0.7
    trainer, loader = ready(trainer)
    batches = [next(loader) for _ in range(8)]
    for batch in batches[:3]:
        trainer.train_step(deepcopy(batch))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    restored.initialize()
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    restored.current_epoch = trainer.current_epoch
    for network in networks(restored):
        network.train()
    assert restored.copy_paste.steps == 3
    for batch in batches[3:]:
        first, second = (one.train_step(deepcopy(batch)) for one in (trainer, restored))
        assert [first[key] for key in LOSSES[method]] == [second[key] for key in LOSSES[method]]
    for one, two in zip(networks(trainer), networks(restored), strict=True):
        assert same(weights(one), weights(two))


@METHODS
def test_other_processes_draw_boxes_of_their_own_when_they_go_on(make_trainer, tmp_path, method):
    name = f"nnUNetTrainer{method}_BCP{LENGTH}"
    trainer, _ = ready(make_trainer(name))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    second = make_trainer(name)
    second.initialize()
    second.local_rank = 1
    second.load_checkpoint(str(tmp_path / "c.pth"))
    first, other = (one.copy_paste for one in (trainer, second))
    assert torch.equal(first.decisions.get_state(), other.decisions.get_state())
    assert not torch.equal(first.generator.bcp_box((30, 30, 30)), other.generator.bcp_box((30, 30, 30)))


@pytest.mark.parametrize(
    ("configuration", "kind"), [("3d_fullres", "labels"), ("3d_fullres", "ignore"), ("2d", "regions_ignore")]
)
def test_while_labels_teach_alone_their_patches_are_mixed(make_trainer, configuration, kind):
    """Every step is nnU-Net's on what the network saw; after the warm-up labelled patches stay as they are."""
    trainer = with_warmup(make_trainer(f"nnUNetTrainerMeanTeacher_BCP{LENGTH}", configuration, kind))
    trainer, loader = ready(trainer, epoch=0)
    plain = make_trainer(configuration=configuration, kind=kind, cls=nnUNetTrainer)
    plain.initialize()
    plain.set_deep_supervision_enabled(True)
    plain.network.load_state_dict(trainer.network.state_dict())
    seen, batches = images_of_each_step(trainer.network), [next(loader) for _ in range(8)]
    moved = []
    for batch in batches:
        report = trainer.train_step(deepcopy(batch))
        box = (seen[-1] != batch["data"]).any(1, keepdim=True)
        moved.append(bool(box.any()))
        assert torch.equal(seen[-1], torch.where(box, batch["data"].roll(-1, 0), batch["data"]))
        # The targets of all scales follow from the one at full resolution, which nnU-Net's loader has made them from.
        state = trainer.copy_paste.state_dict()
        target = mixed_targets(batch["target"], box)
        expected = plain.train_step({"data": seen[-1], "target": target})
        assert report["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
        assert report["unlabeled_loss"] is None
        assert state["steps"] == 0
    assert 0 < sum(moved) < 8
    trainer.current_epoch = 1
    for batch in batches[:4]:
        assert trainer.train_step(deepcopy(batch))["unlabeled_loss"]
        assert torch.equal(seen[-1][:2], batch["data"][:2])


def mixed_targets(target, box):
    """Each scale of a target, by the voxels that its own voxels are."""
    found = []
    for scale in target:
        steps = [whole // size for whole, size in zip(box.shape[2:], scale.shape[2:], strict=True)]
        here = box[(..., *(slice(step // 2, None, step) for step in steps))]
        found.append(torch.where(here, scale.roll(-1, 0), scale))
    return found


@pytest.mark.parametrize("setting", [("unlabeled_weight", 0.0), ("use_unlabeled", False)])
def test_without_pseudo_labels_the_student_is_nnunets_network(make_trainer, setting):
    trainer = with_warmup(make_trainer(f"nnUNetTrainerMeanTeacher_BCP{LENGTH}"))
    setattr(trainer, *setting)
    trainer, loader = ready(trainer, epoch=0)
    seen = images_of_each_step(trainer.network)
    for _ in range(6):
        batch = next(loader)
        trainer.train_step(batch)
        assert torch.equal(seen[-1], batch["data"])


def test_a_batch_of_one_takes_turns(make_trainer):
    plans = tiny.plans()
    plans["configurations"]["3d_fullres"]["batch_size"] = 1
    trainer, loader = ready(with_warmup(make_trainer(f"nnUNetTrainerMeanTeacher_BCP{LENGTH}", plans=plans)))
    labelled = []
    for _ in range(4):
        batch = next(loader)
        labelled.append(trainer.teaching_step.pseudo_labelled(batch).labelled.float().mean().item())
    assert labelled == pytest.approx([1 - 800 / 3072, 800 / 3072] * 2)
    trainer.current_epoch = 0
    seen = images_of_each_step(trainer.network)
    trainer.train_step(batch)
    assert torch.equal(seen[0], batch["data"])  # there is no next patch


@METHODS
def test_steps_with_one_unlabelled_patch_now_and_then(make_trainer, method):
    """Its turns are those of the steps that have it; between, labelled patches stay as they are."""
    trainer = make_trainer(f"nnUNetTrainer{method}_BCP_4epochs_4iterations")
    trainer.unlabeled_every, trainer.unlabeled_batch_size = 2, 1
    trainer, loader = ready(trainer)
    seen = images_of_each_step(trainer.network)
    shares = []
    for step in range(8):
        batch = next(loader)
        report = trainer.train_step(batch)
        assert torch.equal(seen[-1][:2], batch["data"])
        assert (report[LOSSES[method][-1]] is None) == (step % 2 == 1)
        if step % 2 == 0:
            assert len(seen[-1]) == 3
            shares.append((seen[-1][2] == batch["data"][0]).float().mean().item())
    assert shares == pytest.approx([1 - 800 / 3072, 800 / 3072] * 2, abs=0.05)
    assert trainer.copy_paste.steps == 4


@METHODS
def test_unmixed_steps_have_the_loss_of_unmixed_patches(make_trainer, method):
    parts, alone = (make_trainer(f"nnUNetTrainer{method}{part}_Confidence{LENGTH}") for part in ("_BCP", ""))
    parts.bcp_probability = 1e-9
    (parts, loader), (alone, _) = ready(parts), ready(alone)
    batch = next(loader)
    assert not isinstance(learned_by_each(step_of(parts), batch)[0], CopyPasted)
    step_of(alone).pseudo_labelled(batch)  # which the gate remembers
    first, second = (trainer.train_step(deepcopy(batch)) for trainer in (parts, alone))
    assert [first[key] for key in LOSSES[method]] == [second[key] for key in LOSSES[method]]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("bcp_probability", -0.1, "bcp_probability must lie between 0 and 1, got -0.1"),
        ("bcp_warmup_probability", 1.5, "bcp_warmup_probability must lie between 0 and 1, got 1.5"),
        ("bcp_warmup_probability", float("nan"), "bcp_warmup_probability must lie between 0 and 1, got nan"),
        ("bcp_pseudo_weight", -1, "bcp_pseudo_weight must be 0 or more, got -1"),
        ("bcp_pseudo_weight", float("inf"), "bcp_pseudo_weight must be 0 or more, got inf"),
    ],
)
def test_settings_that_make_no_sense(make_trainer, setting, value, message):
    trainer = make_trainer(f"nnUNetTrainerMeanTeacher_BCP{LENGTH}")
    setattr(trainer, setting, value)
    with pytest.raises(ValueError, match=message):
        trainer.initialize()


@pytest.mark.parametrize("views", ["same", None])
def test_cps_learns_mixed_patches_of_the_unlabelled_half_alone(make_trainer, views):
    trainer = make_trainer(f"nnUNetTrainerCPS_BCP{LENGTH}")
    trainer.views = views
    assert trainer.views_and_halves() == (views or "weak_strong", "unlabelled")
    trainer.pseudo_on = "both"
    message = "goes without BCP.*or bcp_probability to 0" if views else "'weak_strong' exclude each other"
    with pytest.raises(ValueError, match=f"pseudo_on 'both'.*{message}"):
        trainer.initialize()
