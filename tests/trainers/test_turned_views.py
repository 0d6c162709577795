"""The second geometry of strong views in the trainers that have them."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from reference import tiny
from reference.gates import GateOf

from nnunet_ext.data.views import apply_turns, draw_turn
from nnunet_ext.training.checkpoints import SECOND_NETWORK, TEACHING

NAMES = ["nnUNetTrainerMeanTeacher_CutMix_4epochs_2iterations", "nnUNetTrainerCPS_CutMix_4epochs_2iterations"]
EACH = pytest.mark.parametrize("name", NAMES, ids=["MeanTeacher", "CPS"])
PLANE = {"3d_fullres": (3, (0, 1, 2), ((0, 2),)), "2d": (2, (0, 1), ((0, 1),))}  # patches of 16 x 12 x 16 and 16 x 16


def ready(trainer, on=True, epoch=2, boxes=0.0):
    trainer.second_geometry, trainer.cutmix_probability = on, boxes
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    trainer.current_epoch = epoch
    loader, _ = trainer.get_dataloaders()
    trainer.network.train()
    return trainer, loader


def step_of(trainer):
    return trainer.cps_step if hasattr(trainer, "cps_step") else trainer.teaching_step


def learned(trainer, batch):
    """What each network learns."""
    found = step_of(trainer).pseudo_labelled(batch)
    return found[0] if isinstance(found, tuple) else (found,)


def both_kept(trainer):
    """Half of the labels count, so that the mask is not that of the valid voxels."""

    def gate(logits, labels, confidence, valid, *_):
        return valid & (confidence >= confidence.median())

    step = step_of(trainer)
    if hasattr(step, "gates"):
        step.gates = (GateOf(gate), GateOf(gate))
    else:
        step.gate = GateOf(gate)


@EACH
@pytest.mark.parametrize(("configuration", "kind"), [("3d_fullres", "labels"), ("2d", "regions")])
def test_strong_views_labels_and_masks_are_turned_alike(make_trainer, name, configuration, kind):
    trainer, loader = ready(make_trainer(name, configuration, kind))
    both_kept(trainer)
    batch = next(loader)
    batch["valid"] = torch.ones(4, 1, *batch["data"].shape[2:], dtype=torch.uint8)
    batch["valid"][:, :, :3] = 0
    step, seen = step_of(trainer), []
    labeller = trainer.teacher.network if hasattr(trainer, "teacher") else trainer.network
    labeller.register_forward_pre_hook(lambda _, images: seen.append(images[0].clone()))
    generator = torch.Generator()
    generator.set_state(step.turner.state_dict()["generator"])
    turns = [draw_turn(*PLANE[configuration], generator) for _ in range(2)]
    assert any(turn.mirrored or turn.quarters for turn in turns)
    turned = learned(trainer, batch)
    assert torch.equal(seen[0], batch["unlabeled"])  # the weak view is not
    step.turner = None
    for before, after in zip(learned(trainer, batch), turned, strict=True):
        for part in ("images", "labels", "kept", "valid"):
            (expected,) = apply_turns(turns, getattr(before, part))
            assert torch.equal(getattr(after, part), expected), part
    assert all(torch.equal(one.valid, turned[0].valid) for one in turned)


@EACH
def test_turns_come_before_boxes(make_trainer, name):
    trainer, loader = ready(make_trainer(name), boxes=1.0)
    batch, step = next(loader), step_of(trainer)
    states = {part: getattr(step, part).state_dict() for part in ("turner", "mixer")}
    both = learned(trainer, batch)
    for part, state in states.items():
        getattr(step, part).load_state_dict(state)
    mixer, step.mixer = step.mixer, None
    turned = learned(trainer, batch)
    (expected, *_) = mixer(turned[0].images)
    assert torch.equal(both[0].images, expected)


@EACH
def test_without_it_steps_are_as_they_were(make_trainer, name):
    """Off is the default, and turns that turn nothing are the same steps, bit for bit."""
    assert make_trainer(name).second_geometry is False
    (off, loader), (still, _) = ready(make_trainer(name), on=False), ready(make_trainer(name))
    assert step_of(off).turner is None
    step_of(still).turner.mirror_axes = step_of(still).turner.planes = ()
    still.network.load_state_dict(off.network.state_dict())
    for _ in range(2):
        batch = next(loader)
        first, second = (trainer.train_step(deepcopy(batch)) for trainer in (off, still))
        assert first["loss"] == second["loss"]
    for key, value in off.network.state_dict().items():
        assert torch.equal(value, still.network.state_dict()[key]), key


@EACH
def test_a_training_that_goes_on_takes_the_same_next_step(make_trainer, tmp_path, name):
    trainer, loader = ready(make_trainer(name))
    batches = [next(loader) for _ in range(3)]
    trainer.train_step(deepcopy(batches[0]))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    saved = torch.load(tmp_path / "c.pth", weights_only=False)
    state = saved[SECOND_NETWORK]["step"] if "CPS" in name else saved[TEACHING]
    assert state["turner"].keys() == {"generator"}
    restored = make_trainer(name)
    restored.second_geometry, restored.cutmix_probability = True, 0.0
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    restored.current_epoch = trainer.current_epoch
    for network in [restored.network, getattr(restored, "network_2", restored.network)]:
        network.train()
    for batch in batches[1:]:
        first, second = (one.train_step(deepcopy(batch)) for one in (trainer, restored))
        assert all(first[key] == second[key] for key in first.keys() & {"loss", "loss_2", "cps", "unlabeled_loss"})


@EACH
def test_other_processes_draw_turns_of_their_own(make_trainer, tmp_path, name):
    """At the start, and when they go on."""
    trainer, _ = ready(make_trainer(name))
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    second = make_trainer(name)
    second.local_rank = 1
    ready(second)
    states = [step_of(one).turner.state_dict()["generator"] for one in (trainer, second)]
    assert not torch.equal(*states)
    second.load_checkpoint(str(tmp_path / "c.pth"))
    states = [step_of(one).turner.state_dict()["generator"] for one in (trainer, second)]
    assert not torch.equal(*states)


@EACH
def test_nothing_to_turn_is_said(make_trainer, name):
    base = type(make_trainer(name))

    class Unmirrored(base):
        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):
            rotation, dummy, initial, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            self.inference_allowed_mirroring_axes = None
            return rotation, dummy, initial, None

    plans = tiny.plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 1.0, 1.0]
    trainer = make_trainer(cls=Unmirrored, plans=plans)
    trainer.second_geometry = True
    trainer.initialize()
    assert step_of(trainer).turner is None
    assert "WARNING: second_geometry changes nothing" in Path(trainer.log_file).read_text()


@EACH
def test_a_checkpoint_without_turns_is_continued_with_them(make_trainer, tmp_path, name):
    trainer, _ = ready(make_trainer(name), on=False)
    trainer.save_checkpoint(str(tmp_path / "c.pth"))
    restored, _ = ready(make_trainer(name))
    before = step_of(restored).turner.state_dict()["generator"].clone()
    restored.load_checkpoint(str(tmp_path / "c.pth"))
    assert torch.equal(step_of(restored).turner.state_dict()["generator"], before)


def test_the_same_views_have_none(make_trainer):
    trainer = make_trainer("nnUNetTrainerCPS_4epochs_2iterations")
    trainer.second_geometry = True
    with pytest.raises(ValueError, match="second_geometry turns strong views.*set views to 'weak_strong'"):
        trainer.initialize()
