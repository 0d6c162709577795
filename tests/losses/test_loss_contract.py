"""What every loss of the table in contract.py keeps to."""

import copy
import pickle
import re
import warnings

import pytest
import torch
from losses.contract import (
    CLASSES,
    EACH,
    EACH_KIND,
    EACH_SHAPE,
    EACH_VARIANT,
    IGNORED,
    LOSSES,
    MODULES,
    as_target,
    case,
    hidden,
    make,
)
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn
from torch.nn import functional

import nnunet_ext.losses


def gradient(loss, logits, target):
    logits = logits.detach().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


@EACH_VARIANT
@EACH_KIND
@pytest.mark.parametrize("content", ["empty", "full", "ignored", "one voxel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_edge_cases_stay_finite(name, variant, regions, content, dtype):
    labels = torch.full((2, 1, 5, 4), {"empty": 0, "full": 1, "ignored": IGNORED, "one voxel": 0}[content])
    if content == "one voxel":
        labels[0, 0, 2, 2] = 2
    loss = make(name, regions, ignored=True, **LOSSES[name].variants[variant])
    logits = (20 * case((2, CLASSES, 5, 4))[0]).to(dtype)
    value, slope = gradient(loss, logits, as_target(labels, regions, ignored=True))
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert torch.isfinite(value)
    assert slope.dtype == dtype
    assert torch.isfinite(slope).all()
    if content == "ignored":
        assert slope.abs().max() == 0


@EACH
@EACH_KIND
def test_the_largest_logits_of_half_precision(name, regions):
    logits, target = case(regions=regions)
    value, slope = gradient(make(name, regions), (60000 * logits.sign()).half(), target)
    assert torch.isfinite(value)
    assert torch.isfinite(slope).all()


@EACH_VARIANT
@EACH_KIND
@EACH_SHAPE
def test_ignored_voxels_change_nothing(name, variant, regions, shape):
    logits, target = case(shape, regions, ignored=True)
    ignored = hidden(target, regions)
    assert ignored.any()
    loss = make(name, regions, ignored=True, **LOSSES[name].variants[variant])
    expected, slope = gradient(loss, logits, target)
    assert slope[ignored.expand_as(slope)].abs().max() == 0
    assert (slope != 0).any()
    noise = 7 * torch.randn(shape, generator=torch.Generator().manual_seed(1)) * ignored
    assert loss(logits + noise, target).item() == expected.item()
    if regions:
        other = torch.cat([target[:, :-1] ^ ignored, target[:, -1:]], 1)
        assert loss(logits, other).item() == expected.item()


@EACH
@EACH_KIND
def test_without_ignored_voxels_the_ignore_label_changes_nothing(name, regions):
    logits, target = case(regions=regions)
    marked = torch.cat([target, torch.zeros_like(target[:, :1])], 1) if regions else target
    torch.testing.assert_close(make(name, regions, ignored=True)(logits, marked), make(name, regions)(logits, target))


@EACH
def test_one_channel_is_a_region(name):
    """Exclusive classes in one channel would give NaN, or nothing to learn from."""
    logits, target = torch.zeros(2, 1, 6, 7), torch.zeros(2, 1, 6, 7)
    message = r"exclusive classes need 2 output channels or more.*shape \(2, 1, 6, 7\); for one structure.*regions"
    with pytest.raises(ValueError, match=message):
        make(name)(logits, target)
    target[:, :, 2:4] = 1
    value, slope = gradient(make(name, regions=True), logits, target)
    assert torch.isfinite(value)
    assert (slope != 0).any()


@EACH
@EACH_KIND
@EACH_SHAPE
def test_equal_samples_cost_what_one_of_them_costs(name, regions, shape):
    logits, target = (tensor[:1] for tensor in case(shape, regions))
    expected = make(name, regions)(logits, target)
    twice = make(name, regions)(torch.cat([logits, logits]), torch.cat([target, target]))
    torch.testing.assert_close(twice, expected)


@EACH
@EACH_KIND
def test_deep_supervision(name, regions):
    """nnU-Net's wrapper gives each output to the loss of one scale; a list is no output."""
    loss = make(name, regions)
    sizes = ((2, CLASSES, 12, 8), (2, CLASSES, 6, 4), (2, CLASSES, 3, 2))
    outputs, targets = zip(*(case(shape, regions, seed=n) for n, shape in enumerate(sizes)), strict=True)
    expected = sum(
        weight * loss(logits, target) for weight, logits, target in zip((0.6, 0.3, 0.1), outputs, targets, strict=True)
    )
    torch.testing.assert_close(DeepSupervisionWrapper(loss, (0.6, 0.3, 0.1))(list(outputs), list(targets)), expected)
    with pytest.raises(TypeError, match="logits must be one tensor, got list; .* loss of its own, as nnU-Net's Deep"):
        loss(list(outputs), targets[0])


@EACH
@EACH_KIND
def test_gradients(name, regions):
    logits, target = case((2, CLASSES, 5, 4), regions, ignored=True, dtype=torch.float64)
    loss = make(name, regions, ignored=True, **LOSSES[name].differentiable)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_())


@EACH
@EACH_KIND
def test_autocast_changes_nothing(name, regions):
    logits, target = case(regions=regions)
    with torch.autocast("cpu", torch.bfloat16):
        value = make(name, regions)(logits, target)
    assert torch.equal(value, make(name, regions)(logits, target))


@EACH
@EACH_KIND
def test_falls_as_a_prediction_approaches_the_truth(name, regions):
    logits, target = case(regions=regions)
    truth = 2 * target.float() - 1 if regions else functional.one_hot(target[:, 0], CLASSES).movedim(-1, 1).float()
    values = [make(name, regions)(logits + step * truth, target).item() for step in range(0, 40, 4)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(LOSSES[name].least, abs=1e-3)


@EACH
@EACH_KIND
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int32, torch.float32])
def test_types_of_targets(name, regions, dtype):
    logits, target = case(regions=regions)
    if dtype == torch.bool and not regions:
        logits, target = logits[:, :2], (target == 1).long()
    loss = make(name, regions)
    assert torch.equal(loss(logits, target.to(dtype)), loss(logits, target))


@EACH
@EACH_KIND
def test_targets_that_do_not_fit(name, regions):
    loss, called = make(name, regions), LOSSES[name].target
    logits, target = case(regions=regions)
    one_hot = torch.zeros(2, CLASSES, 9, 8)
    wanted = (2, CLASSES if regions else 1, 9, 8)
    remedies = {
        target[:, :, :5]: "",
        target[:1]: "",
        torch.zeros(2, 9, 8): "" if regions else f"; add the axis of the channel by {called}[:, None]",
    }
    if regions:
        remedies[one_hot[:, :1]] = "; each region has a channel of its own"
    else:
        remedies[one_hot] = f"; make classes of channels by {called}.argmax(1, keepdim=True)"
    for other, remedy in remedies.items():
        message = f"{called} must have shape {wanted}, got {tuple(other.shape)}{remedy}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            loss(logits, other)
    with pytest.raises(TypeError, match=f"{called} must be a tensor, got ndarray; .*torch.from_numpy"):
        loss(logits, target.numpy())
    with pytest.raises(TypeError, match=f"{called} must be integers, bool or real numbers, got torch.complex64"):
        loss(logits, target.to(torch.complex64))


@pytest.mark.parametrize("name", MODULES)  # a function is told what to ignore by a mask of its own
def test_channels_of_ignored_voxels(name):
    logits, marked = case(regions=True, ignored=True)
    with pytest.raises(ValueError, match=r"\(2, 4, 9, 8\), got \(2, 3, 9, 8\); with an ignore_label the last channel"):
        make(name, regions=True, ignored=True)(logits, marked[:, :-1])
    with pytest.raises(ValueError, match=r"\(2, 3, 9, 8\), got \(2, 4, 9, 8\); a channel of voxels to ignore needs an"):
        make(name, regions=True)(logits, marked)


@EACH
@EACH_KIND
def test_logits_that_do_not_fit(name, regions):
    loss = make(name, regions)
    logits, target = case(regions=regions)
    with pytest.raises(ValueError, match=re.escape("logits must have shape (B, K, *S), got (2, 3)")):
        loss(logits[:, :, 0, 0], target)
    with pytest.raises(TypeError, match="floating-point type, got torch.int64; give what the network returns"):
        loss(logits.long(), target)


@EACH
@EACH_KIND
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shapes_are_not_looked_at_while_tracing(name, regions):
    """A look at a shape warns, because it would be part of no trace."""
    logits, target = case(regions=regions)
    loss = make(name, regions)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", torch.jit.TracerWarning)
        traced = torch.jit.trace(lambda x: loss(x, target), (logits,), check_trace=False)
    assert not [warning for warning in caught if warning.filename.endswith("_common.py")]
    torch.testing.assert_close(traced(logits), loss(logits, target))


@pytest.mark.parametrize("name", MODULES)
def test_copies_and_pickles_are_equal(name):
    logits, target = case()
    loss = make(name)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(logits, target), loss(logits, target))
    assert not loss.state_dict()


def test_every_loss_of_the_package_is_in_the_table():
    public = {getattr(nnunet_ext.losses, name) for name in nnunet_ext.losses.__all__}
    modules = {loss for loss in public if isinstance(loss, type) and issubclass(loss, nn.Module)}
    assert modules == {LOSSES[name].make for name in MODULES}
