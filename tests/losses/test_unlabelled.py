"""Losses of unlabelled and of mixed patches at one scale."""

import math

import pytest
import torch
from reference import naive_unlabelled

from nnunet_ext.losses import (
    bcp_loss,
    cross_pseudo_loss,
    cross_pseudo_region_loss,
    pseudo_labels,
    unlabelled_loss,
    unlabelled_region_loss,
)

SHAPES = [(2, 3, 4, 5), (2, 3, 2, 4, 3)]  # 2D, and 3D with unequal sides
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=["2d", "3d"])
EACH_KIND = pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])


def voxels(*values, dtype=torch.float64):
    """One sample, one channel, one row of voxels."""
    return torch.tensor(values, dtype=dtype).reshape(1, 1, -1)


def two_classes(*foreground):
    """Logits of a foreground, 0 for the background."""
    z = voxels(*foreground)
    return torch.cat([torch.zeros_like(z), z], 1)


def case(shape, regions=False, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=dtype)
    labels = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    if regions:
        labels = torch.rand(shape, generator=generator) > 0.5
    kept = torch.rand(labels.shape, generator=generator) > 0.4
    valid = torch.rand((shape[0], 1, *shape[2:]), generator=generator) > 0.2
    return logits, labels, kept, valid


def loss_of(regions):
    return unlabelled_region_loss if regions else unlabelled_loss


def weights_of(regions):
    return torch.tensor([[0.5, 1.0, 2.0], [3.0, 0.25, 1.5]] if regions else [0.5, 1.0, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("threshold", "valid", "entropy", "dice"),
    [
        (0.8, (1, 1, 1, 1), 0.043879, -0.913585),
        (0.0, (1, 1, 1, 1), 0.615714, -0.602018),
        (0.8, (1, 1, 1, 0), 0.042309, -0.936621),
    ],
)
def test_golden_gate(threshold, valid, entropy, dice):
    # log(1 + exp(-2)) + log(1 + exp(-3)) = 0.175515, divided by four valid voxels: 0.043879
    logits, confidence = two_classes(2, -1, 0.5, -3), voxels(0.97, 0.6, 0.7, 0.98)
    kept = confidence >= threshold
    assert unlabelled_loss(logits, voxels(1, 1, 0, 0).long(), kept, voxels(*valid)).item() == pytest.approx(
        entropy + dice, abs=2e-6
    )


def test_golden_gate_with_class_weights():
    logits, labels = two_classes(2, -1, 0.5, -3), voxels(1, 1, 0, 0).long()
    kept = voxels(1, 0, 0, 1)
    weighted = unlabelled_loss(logits, labels, kept, class_weights=torch.tensor([0.5, 2.0]))
    assert (weighted + 0.913585).item() == pytest.approx(0.069537, abs=2e-6)


@EACH_KIND
def test_nothing_kept_is_0_with_a_graph(regions):
    """A masked Dice alone would say -1."""
    logits, labels, kept, valid = case((2, 3, 4, 5), regions)
    for mask, there in ((torch.zeros_like(kept), valid), (kept, torch.zeros_like(valid))):
        logits = logits.detach().requires_grad_()
        loss = loss_of(regions)(logits, labels, mask, there)
        loss.backward()
        assert loss.item() == 0
        assert not logits.grad.any()


def test_golden_regions():
    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)[None]
    labels, kept = torch.tensor([[[True, False], [True, True]]]), torch.tensor([[[True, True], [False, True]]])
    assert unlabelled_region_loss(logits, labels, kept).item() == pytest.approx(0.122194 - 0.882967, abs=2e-6)


@pytest.mark.parametrize("mass", [1e-5, 1e-3, 1.0, 100.0])
def test_a_class_without_pseudo_label_has_no_slope(mass):
    """In the Dice of all classes its slope s / (mass + s)² would be 25000 at a mass of 1e-5."""
    smooth, n = 1e-5, 400
    p = mass / n
    logits = torch.zeros(1, 3, n, dtype=torch.float64)
    logits[:, 2] = math.log(p / (1 - p)) + math.log(2)
    logits.requires_grad_()
    labels = torch.zeros(1, 1, n, dtype=torch.long)
    labels[..., : n // 2] = 1
    everywhere = torch.ones(1, 1, n)
    stock = cross_pseudo_loss(logits, labels, batch_dice=True)
    own = unlabelled_loss(logits, labels, everywhere)
    # the Dice of class 1 is the mean of one class, not of two, and that of class 2 is s / (mass + s)
    absent = smooth / (mass + smooth)
    entropy = torch.nn.functional.cross_entropy(logits, labels[:, 0])
    assert (own - entropy).item() == pytest.approx(2 * (stock - entropy).item() + absent, rel=1e-6)
    golden = {1e-5: 0.5, 1e-3: 9.900990e-3, 1.0: 9.9999e-6, 100.0: 1e-7}[mass]
    assert absent == pytest.approx(golden, rel=1e-4)


@EACH_SHAPE
@EACH_KIND
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_naive_version(shape, regions, batch_dice, weighted):
    logits, labels, kept, valid = case(shape, regions)
    labels = labels.clone()
    labels[0][labels[0] == 2] = 1  # a class that one of the samples lacks
    weights = weights_of(regions) if weighted else None
    for there in (valid, None):
        expected = naive_unlabelled.unlabelled_loss(logits, labels, kept, there, weights, batch_dice, regions)
        value = loss_of(regions)(logits, labels, kept, there, weights, batch_dice)
        assert value.item() == pytest.approx(expected, rel=1e-9)


@EACH_SHAPE
@EACH_KIND
@pytest.mark.parametrize("batch_dice", [False, True])
def test_all_valid_voxels_kept_is_cross_pseudo_supervision(shape, regions, batch_dice):
    """With every class among the labels of each Dice."""
    logits, labels, _, valid = case(shape, regions)
    for sample in range(shape[0]):
        seen = labels[sample].flatten(1)[:, valid[sample].flatten()]
        assert seen.any(1).all() if regions else set(seen.flatten().tolist()) == set(range(shape[1]))
    kept = valid.expand_as(labels)
    stock = cross_pseudo_region_loss if regions else cross_pseudo_loss
    expected = stock(logits, labels, valid, batch_dice)
    torch.testing.assert_close(loss_of(regions)(logits, labels, kept, valid, batch_dice=batch_dice), expected)


def test_golden_mixed_patches():
    z, g, y = two_classes(1, -1, 2, -2, 0.5, -0.5), voxels(1, 0, 1, 0, 1, 0).long(), voxels(0, 0, 1, 1, 0, 1).long()
    outside = voxels(1, 1, 0, 0, 1, 1) > 0
    inward = bcp_loss(z, torch.where(outside, g, y), torch.ones_like(outside), outside)
    assert inward.item() == pytest.approx(-0.035307, abs=2e-6)
    outward = bcp_loss(z, torch.where(outside, y, g), torch.ones_like(outside), ~outside)
    assert outward.item() == pytest.approx(-0.288589, abs=2e-6)
    both = bcp_loss(
        torch.cat([z, z]),
        torch.cat([torch.where(outside, g, y), torch.where(outside, y, g)]),
        torch.ones(2, 1, 6),
        torch.cat([outside, ~outside]),
    )
    assert both.item() == pytest.approx((-0.035307 - 0.288589) / 2, abs=2e-6)


@EACH_SHAPE
@EACH_KIND
@pytest.mark.parametrize("weighted", [False, True])
def test_mixed_patches_equal_naive_version(shape, regions, weighted):
    logits, labels, kept, valid = case(shape, regions)
    labelled = torch.zeros_like(valid)
    labelled[0, ..., 1:3] = True
    labelled[1, ..., :2] = True
    weights = weights_of(regions) if weighted else None
    for there in (valid, None):
        expected = naive_unlabelled.bcp_loss(logits, labels, kept, labelled, there, weights, 0.5, regions)
        value = bcp_loss(logits, labels, kept, labelled, there, weights, 0.5, regions)
        assert value.item() == pytest.approx(expected, rel=1e-9)


@EACH_KIND
def test_labels_that_are_not_kept_may_be_any_number(regions):
    logits, labels, kept, valid = case((2, 3, 4, 5), regions)
    other = labels ^ ~kept if regions else torch.where(kept, labels, 99)
    assert loss_of(regions)(logits, other, kept, valid) == loss_of(regions)(logits, labels, kept, valid)
    labelled = valid.roll(1, -1)
    before = bcp_loss(logits, labels, kept, labelled, valid, weights_of(regions), regions=regions)
    assert bcp_loss(logits, other, kept, labelled, valid, weights_of(regions), regions=regions) == before


@EACH_KIND
def test_pooled_over_processes(regions):
    """Two processes of one sample each say what one process says of both samples."""
    logits, labels, kept, valid = case((2, 3, 4, 5), regions)
    expected = loss_of(regions)(logits, labels, kept, valid)
    recorded = []

    def note(tensor):
        recorded.append(tensor)
        return tensor[None]

    for sample in range(2):
        one = [tensor[sample : sample + 1] for tensor in (logits, labels, kept, valid)]
        loss_of(regions)(*one, gather=note)
    pairs = [torch.stack(pair) for pair in zip(recorded[:2], recorded[2:], strict=True)]

    def gather(tensor):
        return next(pair for pair in pairs if pair.shape[1:] == tensor.shape)

    values = []
    for sample in range(2):
        one = [tensor[sample : sample + 1] for tensor in (logits, labels, kept, valid)]
        values.append(loss_of(regions)(*one, gather=gather))
    # the cross-entropies are averaged over the processes, as gradients are
    torch.testing.assert_close(sum(values) / 2, expected)


@EACH_KIND
def test_compiles_without_graph_breaks(regions):
    logits, labels, kept, valid = case((2, 3, 4, 4), regions)
    compiled = torch.compile(loss_of(regions), backend="eager", fullgraph=True)
    arguments = (logits, labels, kept, valid, weights_of(regions))
    torch.testing.assert_close(compiled(*arguments), loss_of(regions)(*arguments))
    compiled = torch.compile(bcp_loss, backend="eager", fullgraph=True)
    arguments = (logits, labels, kept, valid.roll(1, -1), valid, weights_of(regions), 0.5, regions)
    torch.testing.assert_close(compiled(*arguments), bcp_loss(*arguments))


@EACH_KIND
def test_no_gradient_into_the_label_maker(regions):
    student, teacher = (case((2, 3, 4, 4), seed=seed)[0].requires_grad_() for seed in (0, 1))
    labels = pseudo_labels(teacher, regions)
    loss_of(regions)(student, labels, torch.ones_like(labels)).backward()
    assert student.grad.any()
    assert teacher.grad is None


@EACH_KIND
def test_a_small_network_fits_what_is_kept(regions):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 3, 1))
    image = torch.rand(1, 1, 8, 8)
    labels = (image * 3).long().clamp(0, 2)
    if regions:
        labels = torch.cat([labels > 0, labels == 1, labels == 2], 1)
    kept = (torch.rand(1, 1, 8, 8) > 0.3).expand_as(labels)
    wrong = labels ^ ~kept if regions else torch.where(kept, labels, 0)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss_of(regions)(network(image), wrong, kept).backward()
        optimizer.step()
    assert (pseudo_labels(network(image), regions) == labels).float().mean() > 0.9


def test_shapes_that_do_not_fit():
    logits, labels, kept, valid = case((2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"kept must have shape \(2, 1, 4, 5\), got \(2, 4, 5\)"):
        unlabelled_loss(logits, labels, kept[:, 0], valid)
    with pytest.raises(ValueError, match=r"valid must have shape \(2, 1, 4, 5\), got \(1, 1, 4, 5\)"):
        unlabelled_loss(logits, labels, kept, valid[:1])
    with pytest.raises(ValueError, match=r"class_weights must have shape \(3,\), got \(2,\)"):
        unlabelled_loss(logits, labels, kept, valid, torch.ones(2))
    with pytest.raises(ValueError, match=r"labelled must have shape \(2, 1, 4, 5\), got \(1, 1, 4, 5\)"):
        bcp_loss(logits, labels, kept, valid[:1])
    logits, labels, kept, valid = case((2, 3, 4, 5), regions=True)
    with pytest.raises(ValueError, match=r"kept must have shape \(2, 3, 4, 5\), got \(2, 1, 4, 5\)"):
        unlabelled_region_loss(logits, labels, valid)
    with pytest.raises(ValueError, match=r"class_weights must have shape \(2, 3\), got \(3,\)"):
        unlabelled_region_loss(logits, labels, kept, valid, torch.ones(3))


class TestSilence:
    """Classes that the labels say nothing of."""

    def test_golden(self):
        """Softmax (0.5, 0.3, 0.2): background without class 2 is 0.5 + 0.2; label 2 stands for itself.

        Dice of class 1 alone: 0.3 + 0.2 where it is the label, 0.3 elsewhere.
        """
        logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().reshape(1, 3, 1, 1).repeat(1, 1, 1, 3)
        labels = torch.tensor([0, 1, 2]).reshape(1, 1, 1, 3)
        everywhere, silent = torch.ones_like(labels), torch.tensor([False, False, True])
        entropy = -(math.log(0.7) + math.log(0.5) + math.log(0.2)) / 3
        found = unlabelled_loss(logits, labels, everywhere, silent=silent)
        assert found.item() == pytest.approx(entropy - 2 * 0.5 / (1.1 + 1), abs=1e-5)

    def test_what_is_silent_is_not_pushed_down(self):
        logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        labels = torch.zeros(2, 1, 4, 5, dtype=torch.int64)
        for silent, denied in ((torch.tensor([False, False, True]), False), (None, True)):
            outputs = logits.clone().requires_grad_()
            unlabelled_loss(outputs, labels, torch.ones_like(labels), silent=silent).backward()
            assert bool((outputs.grad[:, 2] > 0).any()) is denied
            assert (outputs.grad[:, 1] > 0).all()

    def test_the_dice_does_not_push_it_down_either(self):
        """A class of which one voxel is labelled, and another that is labelled where it may be the silent one."""
        logits = torch.randn(1, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        labels = torch.zeros(1, 1, 10, 10, dtype=torch.int64)
        labels[0, 0, 0, 0] = 2
        labels[0, 0, 5:] = 1
        box = torch.zeros(1, 1, 10, 10)
        for loss in (unlabelled_loss, lambda *arguments, **options: bcp_loss(*arguments, box, **options)):
            outputs = logits.clone().requires_grad_()
            loss(outputs, labels, torch.ones_like(labels), silent=torch.tensor([False, False, True])).backward()
            pushed = outputs.grad[:, 2]
            assert pushed[0, 0, 0] < 0
            assert (pushed <= 1e-12).all()

    def test_nobody_silent_is_the_loss_without(self):
        logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        labels = torch.randint(0, 3, (2, 1, 4, 5), generator=torch.Generator().manual_seed(1))
        kept = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(2)) > 0.5
        weights, nobody = torch.tensor([0.5, 1.0, 2.0]), torch.zeros(3, dtype=torch.bool)
        losses = [unlabelled_loss(logits, labels, kept, None, weights, silent=one) for one in (None, nobody)]
        gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*gradients)
        box = torch.zeros(2, 1, 4, 5)
        box[..., 2:] = 1
        pasted = [bcp_loss(logits, labels, kept, box, silent=one) for one in (None, nobody)]
        torch.testing.assert_close(*pasted)

    def test_true_labels_of_mixed_patches_deny(self):
        """Of a patch that is labelled everywhere silence changes nothing, of one that is labelled nowhere it does."""
        logits = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        labels = torch.zeros(1, 1, 4, 5, dtype=torch.int64)
        everywhere, silent = torch.ones_like(labels), torch.tensor([False, False, True])
        for labelled, equal in ((everywhere, True), (torch.zeros_like(labels), False)):
            one, two = (bcp_loss(logits, labels, everywhere, labelled, silent=s) for s in (None, silent))
            assert torch.equal(one, two) is equal
