"""Labelled and unlabelled patches put together by a box, and the loss of what comes out."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from torch import nn

from nnunet_ext.losses import bcp_loss
from nnunet_ext.training.class_balance import ClassBalance
from nnunet_ext.training.confidence import label_and_confidence
from nnunet_ext.training.copy_paste import BCPCriterion, BCPMixer, CopyPasted
from nnunet_ext.training.cps_views_step import CPSViewsStep
from nnunet_ext.training.mean_teacher_step import MeanTeacherStep, PseudoLabelled
from nnunet_ext.training.unlabelled import UnlabelledCriterion

CPU = torch.device("cpu")


def mixer(regions=False, weights=(1.0,), pseudo_weight=0.5, **options):
    return BCPMixer(BCPCriterion(weights, regions, pseudo_weight), **options)


def patches(number=2, size=(6, 9, 8), channels=1, seed=0):
    """Images of which every voxel is another one, labels, masks, all at random."""
    generator = torch.Generator().manual_seed(seed)
    shape = (number, channels, *size)
    return PseudoLabelled(
        images=torch.rand((number, 2, *size), generator=generator),
        labels=torch.randint(0, 3, shape, generator=generator) if channels == 1 else torch.rand(shape) > 0.5,
        kept=torch.rand(shape, generator=generator) > 0.3,
        valid=torch.rand((number, 1, *size), generator=generator) > 0.3,
    )


def labelled_batch(number=2, size=(6, 9, 8), channels=1, highest=3):
    generator = torch.Generator().manual_seed(9)
    target = torch.randint(0, highest, (number, channels, *size), generator=generator).short()
    return {"data": 10 + torch.rand((number, 2, *size), generator=generator), "target": target}


@pytest.mark.parametrize(
    ("size", "box"),
    [((40, 56, 40), 26 * 37 * 26), ((112, 112, 80), 74 * 74 * 53), ((96, 96, 96), 64**3), ((256, 256), 170**2)],
)
def test_golden_boxes(size, box):
    """Outside of the box the first patch is labelled, inside the second one."""
    learned = PseudoLabelled(*(torch.zeros((2, 1, *size), dtype=torch.bool) for _ in range(4)))
    target = torch.zeros((2, 1, *size), dtype=torch.int16)
    (found,) = mixer().mixed([learned], {"data": torch.ones((2, 1, *size)), "target": target})
    whole = int(np.prod(size))
    assert found.labelled.sum((1, 2, *range(3, found.labelled.ndim))).tolist() == [whole - box, box]
    assert torch.equal(found.images > 0, found.labelled)


def test_golden_loss():
    z = torch.tensor([1, -1, 2, -2, 0.5, -0.5], dtype=torch.float64).reshape(1, 1, 6).expand(2, 1, 6)
    g, y = (torch.tensor(v).expand(2, 1, 6) for v in ((1, 0, 1, 0, 1, 0), (0, 0, 1, 1, 0, 1)))
    everywhere = torch.ones(2, 1, 6, dtype=torch.bool)
    mixes = mixer()
    box = torch.tensor([True, True, False, False, True, True])[None, None]
    mixes.generator = SimpleNamespace(bcp_box=lambda size, device: box)
    (learned,) = mixes.mixed([PseudoLabelled(z, y, everywhere, everywhere)], {"data": z, "target": [g]})
    logits = torch.cat([torch.zeros_like(z), z], 1)
    for patch, expected in ((slice(0, 1), -0.035307), (slice(1, 2), -0.288589)):
        names = ("images", "labels", "kept", "valid", "labelled")
        one = CopyPasted(*(getattr(learned, name)[patch] for name in names), learned.criterion)
        assert one.loss(None, [logits[patch]], None).item() == pytest.approx(expected, abs=2e-6)
    assert learned.loss(None, [logits], None).item() == pytest.approx((-0.035307 - 0.288589) / 2, abs=2e-6)


@pytest.mark.parametrize("size", [(9, 8), (6, 9, 8)])
def test_images_labels_and_masks_move_together(size):
    learned, batch = patches(3, size), labelled_batch(3, size)
    (found,) = mixer().mixed([learned], batch)
    part = found.labelled
    assert torch.equal((found.images >= 10).all(1, keepdim=True), part)
    # The first patch is labelled outside the box, the second one inside, the third one as the first.
    assert torch.equal(part[0], ~part[1])
    assert torch.equal(part[0], part[2])
    assert part[0].float().mean() > 0.5
    assert torch.equal(found.images, torch.where(part, batch["data"], learned.images))
    assert torch.equal(found.labels, torch.where(part, batch["target"].long(), learned.labels))
    assert torch.equal(found.kept, part | learned.kept)
    assert torch.equal(found.valid, part | learned.valid)


def test_the_position_stays_that_of_the_patch_around_the_box():
    """The labelled one of the first and third patch, the unlabelled one of the second; all else as without."""
    learned, batch = patches(3, (9, 8)), labelled_batch(3, (9, 8))
    (plain,), (made,) = (mixer(position=position).mixed([learned], batch) for position in (False, True))
    for number, around in enumerate((batch["data"], learned.images, batch["data"])):
        assert torch.equal(made.images[number, -1], around[number, -1])
    assert torch.equal(made.images[:, :-1], plain.images[:, :-1])
    assert not torch.equal(made.images, plain.images)
    assert torch.equal(made.labelled, plain.labelled)


def test_the_position_stays_in_the_warmup_too():
    batch = labelled_batch(3, (9, 8))
    plain, made = (
        mixer(position=position, warmup_probability=1.0).in_warmup(batch, CPU)["data"] for position in (False, True)
    )
    assert torch.equal(made[:, -1], batch["data"][:, -1])
    assert torch.equal(made[:, :-1], plain[:, :-1])
    assert not torch.equal(made, plain)


def test_every_scale_has_nnunets_voxels():
    """The loss of a scale is that of what nnU-Net's own transform makes of the mixed labels and masks."""
    size, factors = (8, 12), [[1.0, 1.0], [0.5, 0.5], [0.25, 0.5]]
    (learned,) = mixer(weights=(0.5, 0.3, 0.2)).mixed([patches(2, size)], labelled_batch(2, size))
    scaled = []
    for name in ("labels", "kept", "labelled", "valid"):
        samples = [
            DownsampleSegForDSTransform(factors)(segmentation=s.short())["segmentation"] for s in getattr(learned, name)
        ]
        scaled.append([torch.stack([sample[number] for sample in samples]) for number in range(3)])
    outputs = [torch.randn((2, 3, *labels.shape[2:])) for labels in scaled[0]]
    expected = sum(
        weight * bcp_loss(logits, labels.long(), kept, part, valid)
        for weight, logits, labels, kept, part, valid in zip((0.5, 0.3, 0.2), outputs, *scaled, strict=True)
    )
    torch.testing.assert_close(learned.loss(None, outputs, None), expected)


def test_outputs_without_weight_are_skipped():
    (learned,) = mixer(weights=(1.0, 0.0)).mixed([patches(2, (8, 8))], labelled_batch(2, (8, 8)))
    logits = torch.randn(2, 3, 8, 8)
    assert learned.loss(None, [logits, torch.full((2, 3, 4, 4), torch.nan)], None).isfinite()
    with pytest.raises(ValueError, match="at least one deep supervision weight must differ from 0"):
        BCPCriterion((0.0, 0.0), False)


def test_class_weights_are_those_of_pseudo_labels_alone():
    weights, logits = torch.tensor([0.5, 1.0, 4.0]), torch.randn(2, 3, 8, 8)
    for pseudo_weight, same in ((0.0, True), (0.5, False)):
        (learned,) = mixer(pseudo_weight=pseudo_weight).mixed([patches(2, (8, 8))], labelled_batch(2, (8, 8)))
        losses = [learned.loss(None, [logits], w) for w in (None, weights)]
        assert torch.equal(*losses) == same


def test_ignored_voxels_teach_nothing():
    """Neither by the label that is not there, nor by that of the teacher."""
    batch, learned = labelled_batch(highest=4), patches()
    (found,) = mixer(ignore_label=3).mixed([learned], batch)
    ignored = found.labelled & (batch["target"] == 3)
    assert ignored.any()
    assert torch.equal(found.kept, torch.where(found.labelled, ~ignored, learned.kept))
    assert found.labels.max() == 2
    assert found.valid[ignored].all()  # and count in the divisor, as patches of few labels count less
    logits = torch.randn(2, 3, 6, 9, 8, requires_grad=True)
    found.loss(None, [logits], None).backward()
    assert not logits.grad[ignored.expand_as(logits)].any()


@pytest.mark.parametrize("ignore", [False, True])
def test_regions_have_a_mask_for_each_channel(ignore):
    learned, batch = patches(channels=2), labelled_batch(channels=2 + ignore, highest=2)
    batch["target"] = batch["target"] > 0
    (found,) = mixer(regions=True, ignore_label=3 if ignore else None).mixed([learned], batch)
    part = found.labelled
    there = ~batch["target"][:, 2:] if ignore else torch.ones_like(part)
    assert torch.equal(found.labels, torch.where(part, batch["target"][:, :2], learned.labels))
    assert torch.equal(found.kept, torch.where(part, there, learned.kept))
    assert found.loss(None, [torch.randn(2, 2, 6, 9, 8)], None).isfinite()


def directions(mixes, number, steps=4):
    found = []
    for _ in range(steps):
        (one,) = mixes.mixed([patches(number, (9, 9))], labelled_batch(number, (9, 9)))
        inward = one.labelled.float().mean((1, 2, 3)) > 0.5  # the box has 36 of 81 voxels
        found.append(inward.tolist())
    return found


def test_directions_take_turns():
    assert directions(mixer(), 3) == [[True, False, True]] * 4
    assert directions(mixer(), 1) == [[True], [False]] * 2
    assert directions(mixer(rank=1), 1) == [[False], [True]] * 2
    assert directions(mixer(rank=1), 2) == [[True, False]] * 4


@pytest.mark.parametrize(("labelled", "unlabelled"), [(3, 2), (2, 5)])
def test_pairs_of_unequal_numbers(labelled, unlabelled):
    batch, learned = labelled_batch(labelled, (9, 9)), patches(unlabelled, (9, 9))
    (found,) = mixer().mixed([learned], batch)
    assert len(found.images) == unlabelled
    for number in range(unlabelled):
        expected = torch.where(found.labelled[number], batch["data"][number % labelled], learned.images[number])
        assert torch.equal(found.images[number], expected)


def test_all_processes_decide_alike_and_draw_boxes_of_their_own():
    learned, batch = patches(2, (30, 30)), labelled_batch(2, (30, 30))
    first, second = mixer(probability=0.5, seeds=(1, 5)), mixer(probability=0.5, seeds=(2, 5), rank=1)
    found = [[one.mixed([learned], batch)[0] for _ in range(60)] for one in (first, second)]
    mixed = [[isinstance(one, CopyPasted) for one in process] for process in found]
    assert mixed[0] == mixed[1]
    assert 18 <= sum(mixed[0]) <= 42
    assert all(one is learned for one, by_box in zip(found[0], mixed[0], strict=True) if not by_box)
    pairs = [pair for pair in zip(*found, strict=True) if isinstance(pair[0], CopyPasted)]
    assert not all(torch.equal(one.labelled, two.labelled) for one, two in pairs)


def test_a_checkpoint_continues_boxes_directions_and_decisions():
    def course(mixes):
        found = (mixes.mixed([patches(1, (30, 30))], labelled_batch(1, (30, 30)))[0] for _ in range(12))
        return [one.labelled if isinstance(one, CopyPasted) else torch.zeros(1) for one in found]

    first, other = mixer(probability=0.6), mixer(probability=0.6, seeds=(7, 8))
    for _ in range(3):
        first.mixed([patches(1, (30, 30))], labelled_batch(1, (30, 30)))
    state = first.state_dict()
    expected = course(first)
    other.load_state_dict(state)
    assert all(map(torch.equal, expected, course(other)))
    other.load_state_dict(state)
    other.reseed(11)  # as other processes do: the same decisions, other boxes
    found = course(other)
    assert [len(one.shape) for one in found] == [len(one.shape) for one in expected]
    assert not all(map(torch.equal, expected, found))


@pytest.mark.parametrize("scales", [True, False])
def test_while_labels_teach_alone_their_patches_are_mixed(scales):
    batch = labelled_batch(3, (8, 12))
    factors = [[1.0, 1.0], [0.5, 0.5], [0.25, 0.5]]

    def scaled(target):
        samples = [DownsampleSegForDSTransform(factors)(segmentation=sample)["segmentation"] for sample in target]
        return [torch.stack(scale) for scale in zip(*samples, strict=True)]

    given = batch | {"target": scaled(batch["target"]) if scales else batch["target"]}
    mixes, moved = mixer(), []
    for _ in range(40):
        found = mixes.in_warmup(given, CPU)
        box = (found["data"] != batch["data"]).all(1, keepdim=True)
        moved.append(bool(box.any()))
        target = torch.where(box, batch["target"].roll(-1, 0), batch["target"])
        assert torch.equal(found["data"], torch.where(box, batch["data"].roll(-1, 0), batch["data"]))
        assert box.sum().item() in (0, 3 * 5 * 8)
        for one, two in zip(found["target"] if scales else [found["target"]], scaled(target), strict=False):
            assert torch.equal(one, two)
    assert 10 <= sum(moved) <= 30


@pytest.mark.parametrize(("number", "probability"), [(1, 1.0), (3, 0.0)])
def test_where_labelled_patches_are_not_mixed_nothing_is_drawn(number, probability):
    mixes, batch = mixer(warmup_probability=probability), labelled_batch(number)
    before = mixes.state_dict()["generator"].clone()
    assert mixes.in_warmup(batch, CPU) is batch
    assert torch.equal(mixes.state_dict()["generator"], before)


class Net(nn.Module):
    """Two scales, or the larger one alone; notes what it sees."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.large, self.small = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 3, 2, stride=2)
        self.decoder = SimpleNamespace(deep_supervision=True)
        self.seen = []

    def forward(self, image):
        self.seen.append(image)
        large = self.large(image)
        return [large, self.small(image)] if self.decoder.deep_supervision else large


def supervised(outputs, target):
    return sum(nn.functional.cross_entropy(o, t[:, 0]) for o, t in zip(outputs, target, strict=True))


def whole_batch():
    generator = torch.Generator().manual_seed(2)
    names = ("data", "unlabeled", "unlabeled_strong", "unlabeled_strong_2")
    batch = {name: torch.randn(2, 1, 8, 8, generator=generator) for name in names}
    batch["target"] = [torch.randint(0, 3, (2, 1, s, s), generator=generator) for s in (8, 4)]
    return batch | {"valid": (torch.rand(4, 1, 8, 8, generator=generator) > 0.2).byte()}


def settings(regions=False):
    return {
        "supervised": supervised,
        "unlabelled": UnlabelledCriterion((2 / 3, 1 / 3), regions),
        "autocast": nullcontext,
        "device": CPU,
        "number_of_outputs": 3,
        "mixer": mixer(regions, (2 / 3, 1 / 3)),
        "balance": ClassBalance(torch.tensor([90.0, 9.0, 1.0])),
    }


def expected_mix(batch, box, labels, strong):
    """Images, labels, kept, labelled and valid of the method, written out for two patches and one box."""
    outside = torch.ones(1, 8, 8, dtype=torch.bool)
    outside[0, box[0], box[1]] = False
    part = torch.stack([outside, ~outside])
    valid = part | (batch["valid"][2:] > 0)
    images = torch.where(part, batch["data"], strong)
    return images, torch.where(part, batch["target"][0], labels), valid.clone(), part, valid


def loss_of(outputs, mixed, weights):
    _, labels, kept, part, valid = mixed
    total = 0.0
    for weight, logits in zip((2 / 3, 1 / 3), outputs, strict=True):
        step = 8 // logits.shape[-1]
        first = step // 2
        scaled = [t[..., first::step, first::step] for t in (labels, kept, part, valid)]
        total = total + weight * bcp_loss(logits, *scaled, weights)
    return total


def test_the_step_of_a_teacher():
    """One pass over labelled and mixed patches; the reports count pseudo-labels alone."""
    student, teacher = Net(0), Net(1)
    teacher.decoder.deep_supervision = False
    step = MeanTeacherStep(
        network=student, optimizer=torch.optim.SGD(student.parameters(), 0.0), teacher=teacher, **settings()
    )
    step.mixer.generator = SimpleNamespace(bcp_box=lambda size, device: middle())
    batch = whole_batch()
    report = step(batch, 0.5)
    labels, _ = label_and_confidence(teacher(batch["unlabeled"]))
    mixed = expected_mix(batch, (slice(1, 6), slice(2, 7)), labels, batch["unlabeled_strong"])
    assert len(student.seen) == 1
    assert torch.equal(student.seen[0], torch.cat([batch["data"], mixed[0]]))
    pseudo = ~mixed[3] & mixed[4]
    counts = torch.bincount(labels[pseudo], minlength=3).numpy()
    assert np.array_equal(report["counts"][0], counts)
    assert np.array_equal(report["kept_counts"], counts)
    assert report["counts"][1].sum() == pseudo.sum()
    assert torch.equal(step.balance.state_dict()["pseudo"], torch.from_numpy(counts).float())
    outputs = [scale[2:] for scale in student(student.seen[0])]
    expected = loss_of(outputs, mixed, step.balance.weights())
    assert report["unlabeled_loss"] == pytest.approx(expected.item(), rel=1e-6)


def middle():
    outside = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    outside[..., 1:6, 2:7] = False
    return outside


def test_the_step_of_two_networks():
    """The same box for both, the labels of the peer."""
    networks = (Net(0), Net(1))
    optimizers = tuple(torch.optim.SGD(network.parameters(), 0.0) for network in networks)
    step = CPSViewsStep(networks=networks, optimizers=optimizers, **settings())
    step.mixer.generator = SimpleNamespace(bcp_box=lambda size, device: middle())
    batch = whole_batch()
    report = step(batch, 0.5)
    labels = [label_and_confidence(network(batch["unlabeled"])[0])[0] for network in networks]
    pseudo, losses = torch.zeros(3), []
    for number, (network, key) in enumerate(zip(networks, ("", "_2"), strict=True)):
        mixed = expected_mix(batch, (slice(1, 6), slice(2, 7)), labels[1 - number], batch[f"unlabeled_strong{key}"])
        assert torch.equal(network.seen[1], torch.cat([batch["data"], mixed[0]]))
        pseudo += torch.bincount(labels[1 - number][~mixed[3] & mixed[4]], minlength=3)
        losses.append(loss_of([scale[2:] for scale in network(network.seen[1])], mixed, step.balance.weights()).item())
    assert torch.equal(step.balance.state_dict()["pseudo"], pseudo)
    assert report["cps"] == pytest.approx(sum(losses) / 2, rel=1e-6)
