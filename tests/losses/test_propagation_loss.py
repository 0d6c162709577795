"""Losses of mask propagation: hard pixels, bootstrapping, Lovasz, and their sum over frames."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from nnunet_ext.losses import (
    bootstrapped_cross_entropy,
    bootstrapped_fraction,
    lovasz_softmax,
    ohem_cross_entropy,
    propagation_loss,
)

# eight pixels of two classes: logit 0 of class 0 and z of class 1
Z = (-2.0, -1.0, -0.1, 1.0, 2.0, 3.0, -3.0, 0.5)
LABELS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])


def logits(z=Z):
    return torch.stack([torch.zeros(len(z)), torch.tensor(z)])[None].double().requires_grad_()


def test_hard_pixels_by_hand():
    """Of the eight, z = 1 with label 0 (log(1 + e) = 1.313262) and z = -3 with label 1 (log(1 + e^3)) are hard."""
    each = cross_entropy(logits(), LABELS, reduction="none")
    assert sorted(each[each > math.log(2)].tolist()) == pytest.approx([1.313262, 3.048587], rel=1e-6)
    assert ohem_cross_entropy(logits(), LABELS).item() == pytest.approx(2.180924, rel=1e-6)


def test_a_least_share_of_the_pixels_is_kept():
    """32 sure pixels: the hardest 32 // 16 = 2 of them; of 15 one, though 15 // 16 is none."""
    z = -torch.linspace(1, 4, 32)
    labels = torch.zeros((1, 32), dtype=torch.long)
    expected = torch.nn.functional.softplus(z[:2]).mean().item()
    assert ohem_cross_entropy(logits(z.tolist()), labels).item() == pytest.approx(expected, rel=1e-6)
    alone = torch.nn.functional.softplus(z[:1]).item()
    assert ohem_cross_entropy(logits(z[:15].tolist()), labels[:, :15]).item() == pytest.approx(alone, rel=1e-6)


def test_bootstrapping():
    steps = (19_999, 20_000, 30_000, 45_000, 60_000, 70_000, 99_999)
    assert [bootstrapped_fraction(step) for step in steps] == pytest.approx([1, 1, 0.83, 0.575, 0.32, 0.15, 0.15])
    fraction = bootstrapped_fraction(45_000)  # 0.575 of 8 pixels: 4
    assert bootstrapped_cross_entropy(logits(), LABELS, fraction).item() == pytest.approx(1.370081, rel=1e-6)
    assert bootstrapped_cross_entropy(logits(), LABELS).item() == pytest.approx(
        cross_entropy(logits(), LABELS).item(), rel=1e-9
    )


def test_lovasz_takes_the_softmax_once():
    probs = torch.tensor([0.9, 0.6, 0.4, 0.2])
    both = torch.stack([1 - probs, probs])[None]
    labels = torch.tensor([[1, 0, 1, 0]])
    assert lovasz_softmax(both.log(), labels).item() == pytest.approx(0.454167, rel=1e-5)
    assert lovasz_softmax(both, labels).item() == pytest.approx(0.479131, rel=1e-5)  # what probabilities would cost
    perfect = torch.eye(2)[labels].movedim(-1, 1)
    assert lovasz_softmax(100 * (perfect - 0.5), labels).item() == pytest.approx(0, abs=1e-6)
    assert lovasz_softmax(perfect, labels).item() == pytest.approx(0.268941, rel=1e-5)


def batch(dtype=torch.float32, samples=2, objects=2):
    generator = torch.Generator().manual_seed(1)
    odds = torch.randn((samples, 2, objects + 1, 6, 5), generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, objects + 1, (samples, 2, 6, 5), generator=generator)
    return odds, labels, torch.ones((samples, objects), dtype=torch.bool)


def test_sum_over_frames_and_mean_over_the_batch():
    odds, labels, present = batch()
    expected = sum(
        ohem_cross_entropy(odds[b, f][None], labels[b, f][None]) + lovasz_softmax(odds[b, f][None], labels[b, f][None])
        for b in range(2)
        for f in range(2)
    )
    assert propagation_loss(odds, labels, present).item() == pytest.approx(expected.item() / 2, rel=1e-6)


def test_an_absent_object_is_no_class():
    odds, labels, present = batch(samples=1)
    labels, present[0, 1] = labels.clamp(max=1), False
    loss = propagation_loss(odds, labels, present)
    without = propagation_loss(odds[:, :, :2], labels, present[:, :1])
    assert loss.item() == pytest.approx(without.item(), rel=1e-6)
    loss.backward()
    assert torch.isfinite(odds.grad).all()
    assert odds.grad[:, :, 2].abs().sum() == 0


def test_ignored_pixels_do_not_count():
    odds, labels, present = batch()
    labels[:, :, :2] = -1
    loss = propagation_loss(odds, labels, present)
    changed = odds.detach().clone()
    changed[:, :, :, :2] += 7
    assert propagation_loss(changed, labels, present).item() == pytest.approx(loss.item(), rel=1e-6)
    loss.backward()
    assert odds.grad[:, :, :, :2].abs().sum() == 0


@pytest.mark.parametrize("what", ["a sample", "all"])
def test_without_a_valid_pixel_it_is_finite(what):
    odds, labels, present = batch()
    present[:, 1] = False
    labels = labels.clamp(max=1)
    labels[0 if what == "a sample" else slice(None)] = -1
    loss = propagation_loss(odds, labels, present)
    loss.backward()
    assert torch.isfinite(odds.grad).all()
    assert (loss.item() == 0) == (what == "all")
    alone = propagation_loss(odds[1:], labels[1:], present[1:])
    assert loss.item() == pytest.approx(alone.item() / 2, rel=1e-6)
    assert torch.isfinite(bootstrapped_cross_entropy(odds[:, 0], labels[:, 0], 0.15))


def test_half_precision_is_computed_in_float32():
    odds, labels, present = batch()
    halved = odds.detach().to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = propagation_loss(halved, labels, present)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(propagation_loss(halved.float(), labels, present).item(), rel=1e-6)


def test_gradients():
    odds, labels, _ = batch(torch.float64)
    assert torch.autograd.gradcheck(
        lambda one: ohem_cross_entropy(one, labels[:, 0]), odds[:, 0].detach().requires_grad_()
    )
    assert torch.autograd.gradcheck(
        lambda one: bootstrapped_cross_entropy(one, labels[:, 0], 0.4), odds[:, 0].detach().requires_grad_()
    )


def test_shapes_that_do_not_belong_together():
    odds, labels, present = batch()
    with pytest.raises(ValueError, match=r"log_odds of shape \(2, 2, 3, 6, 5\) go with labels of \(2, 2, 6, 5\) and"):
        propagation_loss(odds, labels[:, :1], present)
