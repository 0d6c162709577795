"""The hybrid loss of ANU-Net."""

import pytest
import torch
from torch.nn import functional

from nnunet_ext.losses import HybridLoss, literal_hybrid_loss

TRUTH = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
PROBS = torch.tensor([0.9, 0.6, 0.3, 0.45], dtype=torch.float64)


def data(shape=(2, 3, 6, 5), regions=False, ignored=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    if regions:
        target = torch.rand((shape[0], shape[1] + ignored, *shape[2:]), generator=generator) > 0.6
    else:
        target = torch.randint(0, shape[1] + ignored, (shape[0], 1, *shape[2:]), generator=generator)
    return logits, target


def naive(logits, target, regions=False, ignored=False, batch_dice=False, gamma=2.0, delta=0.1, smooth=1e-5):
    """The loss voxel by voxel."""
    channels = logits.shape[1]
    probs = logits.sigmoid() if regions else logits.softmax(1)
    total = weights = 0.0
    kept = probs.new_zeros(probs.shape[0], *probs.shape[2:])
    for place in torch.cartesian_prod(*[torch.arange(n) for n in kept.shape]):
        b, *s = place.tolist()
        values = target[(b, slice(None), *s)]
        if ignored and (values[-1] > 0 if regions else values[0] == channels):
            continue
        kept[(b, *s)] = 1
        found = probs[(b, slice(None), *s)]
        true = [p if t else 1 - p for p, t in zip(found, values, strict=False)] if regions else [found[int(values[0])]]
        for p in true:
            weight = (0.5 / max(abs(float(p) - 0.5), delta)) ** gamma
            total, weights = total - weight * p.log(), weights + weight
    truth = target[:, :channels].double() if regions else functional.one_hot(target[:, 0], channels + 1).movedim(-1, 1)
    truth = truth[:, :channels].double() * kept[:, None]
    probs = probs * kept[:, None]
    if not regions:
        truth, probs = truth[:, 1:], probs[:, 1:]
    axes = ([0] if batch_dice else []) + list(range(2, logits.ndim))
    dice = (2 * (probs * truth).sum(axes) + smooth) / (probs.square().sum(axes) + truth.sum(axes) + smooth)
    return total / weights + 1 - dice.mean()


def test_the_literal_form():
    focal = TRUTH * PROBS.log() / (PROBS - 0.5).square()
    assert focal.sum().item() == pytest.approx(-51.741066, abs=1e-6)
    assert literal_hybrid_loss(PROBS, TRUTH).item() == pytest.approx(51.844707, abs=1e-6)
    assert literal_hybrid_loss(PROBS, TRUTH, alpha=0).item() == pytest.approx(1 - 0.896359, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "value", "slope"),
    [
        (0.02, 16.9793, None),
        (0.083968, 14.31293, 0.0),
        (0.3, 30.0993, 217.66),
        (0.45, 319.4031, 11887.2),
        (0.6, 51.0826, -1188.3),
        (0.9, 0.6585, -10.237),
    ],
)
def test_the_literal_form_pushes_the_wrong_way(p, value, slope):
    """Without its Dice; a positive slope lowers the probability of what is foreground."""
    one = torch.tensor([p], dtype=torch.float64, requires_grad=True)
    dice = (2 * one + 1) / (one.square() + 2)
    loss = (literal_hybrid_loss(one, torch.ones(1)) - 1 + dice).sum()
    assert loss.item() == pytest.approx(value, abs=1e-3)
    loss.backward()
    assert slope is None or one.grad.item() == pytest.approx(slope, rel=1e-4, abs=1e-3)


def test_the_safe_form_on_the_same_numbers():
    logits = torch.logit(PROBS).reshape(1, 1, 2, 2)
    truth = TRUTH.reshape(1, 1, 2, 2)
    dice = HybridLoss(regions=True, weight_ce=0, smooth=1.0)(logits, truth)
    assert dice.item() == pytest.approx(0.103641, abs=1e-6)
    both = HybridLoss(regions=True, smooth=1.0)(logits, truth)
    assert both.item() - dice.item() == pytest.approx(0.520829, abs=1e-6)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 3, 3, 4, 2)])
def test_equals_a_naive_version(regions, ignored, batch_dice, shape):
    logits, target = data(shape, regions, ignored)
    loss = HybridLoss(regions, 3 if ignored else None, batch_dice)
    torch.testing.assert_close(loss(logits, target), naive(logits, target, regions, ignored, batch_dice))
    loss = HybridLoss(regions, 3 if ignored else None, batch_dice, gamma=1.0, delta=0.3, smooth=0.1)
    more = {"gamma": 1.0, "delta": 0.3, "smooth": 0.1}
    torch.testing.assert_close(loss(logits, target), naive(logits, target, regions, ignored, batch_dice, **more))


@pytest.mark.parametrize("regions", [False, True])
def test_without_gamma_it_is_plain_cross_entropy(regions):
    logits, target = data(regions=regions)
    loss = HybridLoss(regions, gamma=0.0)(logits, target) - HybridLoss(regions, weight_ce=0.0)(logits, target)
    plain = (
        functional.binary_cross_entropy_with_logits(logits, target.double())
        if regions
        else functional.cross_entropy(logits, target[:, 0])
    )
    torch.testing.assert_close(loss, plain)


@pytest.mark.parametrize("regions", [False, True])
def test_no_gradient_through_the_weight(regions):
    """The gradient of the cross-entropy alone is that of a mean with fixed weights, and always points to the truth."""
    logits, target = data(regions=regions)
    logits.requires_grad_()
    (HybridLoss(regions)(logits, target) - HybridLoss(regions, weight_ce=0.0)(logits, target)).backward()
    if regions:
        assert ((logits.grad < 0) == target).all()
    else:
        assert (logits.grad.gather(1, target) < 0).all()
        assert (logits.grad.scatter(1, target, 1.0) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("regions", [False, True])
def test_finite_on_the_fence(dtype, regions):
    """Two equal logits have a probability of 1/2 each."""
    logits = torch.zeros((1, 2, 4, 4), dtype=dtype, requires_grad=True)
    target = data((1, 2, 4, 4), regions)[1]
    loss = HybridLoss(regions)(logits, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("regions", [False, True])
def test_all_ignored(regions):
    logits, target = data(regions=regions, ignored=True)
    target = torch.ones_like(target) if regions else torch.full_like(target, 3)
    logits.requires_grad_()
    loss = HybridLoss(regions, 3)(logits, target)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)  # no truth and no prediction agree
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("batch_dice", [False, True])
def test_processes_average_to_the_joint_batch(batch_dice):
    logits, target = data(ignored=True)
    expected = HybridLoss(ignore_label=3, batch_dice=batch_dice)(logits, target)
    seen = [[], []]
    for n in (0, 1):  # what each process gives to the others

        def gather(tensor, n=n):
            seen[n].append(tensor)
            return torch.stack([tensor, tensor])

        HybridLoss(ignore_label=3, batch_dice=batch_dice, gather=gather)(logits[n : n + 1], target[n : n + 1])
    values = []
    for n in (0, 1):
        calls = iter(zip(*seen, strict=True))
        loss = HybridLoss(ignore_label=3, batch_dice=batch_dice, gather=lambda t, calls=calls: torch.stack(next(calls)))
        values.append(loss(logits[n : n + 1], target[n : n + 1]))
    torch.testing.assert_close(sum(values) / 2, expected)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("regions", [False, True])
def test_compiles_in_one_graph(regions, backend):
    logits, target = data(regions=regions, ignored=True)
    loss = HybridLoss(regions, 3)
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delta": 0}, "delta is a distance from a probability of 1/2, above 0 and at most 1/2, got 0"),
        ({"delta": 0.6}, "delta is a distance"),
        ({"gamma": -1}, "gamma must be a number of 0 or more, got -1"),
        ({"weight_ce": float("nan")}, "weight_ce must be a number"),
        ({"smooth": float("inf")}, "smooth must be a number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        HybridLoss(**arguments)


def test_the_literal_form_of_other_shapes():
    with pytest.raises(ValueError, match=r"must have one shape, got \(4,\) and \(1, 4\)"):
        literal_hybrid_loss(PROBS, TRUTH[None])


def test_a_compiled_loss_says_what_does_not_fit():
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    with pytest.raises(ValueError, match="exclusive classes need 2 output channels or more"):
        torch.compile(HybridLoss(), backend="eager")(torch.zeros(2, 1, 6, 7), torch.zeros(2, 1, 6, 7))
