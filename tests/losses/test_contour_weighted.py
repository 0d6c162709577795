"""The contour-weighted loss at one scale."""

import math

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from reference import naive_cwcd
from torch.nn import functional

from nnunet_ext.losses import ContourWeightedLoss, contour_map

SHAPES = [(2, 3, 9, 8), (2, 3, 4, 8, 7)]  # 2D, and 3D with unequal sides
RELEASED = {"border": "outside", "reduction": "pooled", "background_contour": True, "smooth": 1e-3}


def golden():
    """Logits sin(0.1 n), n the flat index, plus 2 at the true class; two boxes in 8 x 8 x 8 voxels."""
    labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int16)
    labels[..., 1:6, 1:6, 1:6] = 1
    labels[..., 6:8, 2:7, 3:8] = 2
    logits = torch.sin(0.1 * torch.arange(1536.0)).reshape(1, 3, 8, 8, 8)
    return logits + 2 * functional.one_hot(labels[:, 0].long(), 3).movedim(-1, 1), labels


def blocks(shape, seed=0, classes=None, dtype=torch.float32, ignored=False):
    """Random logits, and labels in blocks of 3 voxels; the label K is to be ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=dtype)
    classes = (classes or shape[1]) + ignored
    labels = torch.randint(0, classes, (shape[0], 1, *(-(-n // 3) for n in shape[2:])), generator=generator)
    for axis, n in enumerate(shape[2:], 2):
        labels = labels.repeat_interleave(3, axis).narrow(axis, 0, n)
    return logits, labels.contiguous()


def regions_of(labels, ignored=False):
    """Overlapping regions {1, 2} and {2}, and {1}; the last channel of 3 marks ignored voxels."""
    parts = [torch.isin(labels, torch.tensor(values)) for values in ([1, 2], [2], [1])]
    return torch.cat([*parts, labels == 3] if ignored else parts, 1)


@pytest.mark.parametrize(("kernel", "iterations", "total"), [(3, 1, 2.147477), (2, 1, 1.731143), (3, 6, 2.434214)])
def test_value_of_the_released_code(kernel, iterations, total):
    assert 2 * ContourWeightedLoss(kernel, iterations, **RELEASED)(*golden()).item() == pytest.approx(total, abs=2e-6)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"dice_contour_weight": 0, "dice_complement_weight": 0, "weight_ce": 2}, 1.259955),
        ({"dice_contour_weight": 1, "dice_complement_weight": 0, "weight_ce": 0}, 0.134153),
        ({"dice_contour_weight": 0, "dice_complement_weight": 1, "weight_ce": 0}, 0.753369),
        (
            {
                "dice_contour_weight": 0,
                "dice_complement_weight": 0,
                "weight_ce": 2,
                "background_contour": False,
                "border": "inside",
            },
            2 * 0.400711,
        ),
        ({"dice_contour_weight": 0, "dice_complement_weight": 0, "ce_contour_weight": 0}, 0.323822),
        (
            {"dice_contour_weight": 1, "dice_complement_weight": 0, "weight_ce": 0, "reduction": "per_class"},
            (0.151945 + 0.100827) / 2,
        ),
        (
            {"dice_contour_weight": 0, "dice_complement_weight": 1, "weight_ce": 0, "reduction": "per_class"},
            (0.575774 + 0.999985) / 2,
        ),
    ],
)
def test_terms_of_the_released_code(options, value):
    assert ContourWeightedLoss(**(RELEASED | options))(*golden()).item() == pytest.approx(value, abs=2e-6)


def test_value_of_the_default():
    assert ContourWeightedLoss()(*golden()).item() == pytest.approx(0.801004, abs=1e-6)
    parts = {"weight_ce": 0, "dice_contour_weight": 1, "dice_complement_weight": 0}
    assert ContourWeightedLoss(**parts)(*golden()).item() == pytest.approx((0.151946 + 0.112988) / 2, abs=1e-6)
    parts = {"weight_ce": 0, "dice_contour_weight": 0, "dice_complement_weight": 1}
    assert ContourWeightedLoss(**parts)(*golden()).item() == pytest.approx((0.575780 + 0.760457) / 2, abs=1e-6)


def test_hand_computed_value():
    # A row 0 1 1 1 0 with probability 3/4 for class 1 everywhere (logits 0, log 3). The middle voxel is the interior.
    labels = torch.tensor([0, 1, 1, 1, 0]).reshape(1, 1, 1, 5)
    logits = torch.tensor([0.0, math.log(3)]).reshape(1, 2, 1, 1).expand(1, 2, 1, 5)
    ce = -((1 + 2 + 1) * math.log(0.75) + 2 * math.log(0.25) + math.log(0.75)) / 5  # contour voxels count twice
    contour = 1 - (2 * 1.5 + 1e-5) / (1.5 + 2 + 1e-5)  # two voxels, all true
    rest = 1 - (2 * 0.75 + 1e-5) / (2.25 + 1 + 1e-5)  # interior and both background voxels
    assert ContourWeightedLoss()(logits, labels).item() == pytest.approx(ce + (contour + rest) / 2, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("iterations", [1, 2])
def test_equals_naive_version(shape, batch_dice, ignored, iterations):
    logits, labels = blocks(shape, ignored=ignored)
    ignore = 3 if ignored else None
    expected = naive_cwcd.loss(logits, labels, 3, iterations, ignore, batch_dice)
    loss = ContourWeightedLoss(3, iterations, batch_dice=batch_dice, ignore_label=ignore)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.int16])
def test_regions_equal_naive_version(shape, batch_dice, ignored, kind):
    logits, labels = blocks(shape, ignored=ignored)
    target = regions_of(labels, ignored)
    mask = target[:, -1:] if ignored else None
    expected = naive_cwcd.region_loss(logits, target[:, :3], ignored=mask, batch_dice=batch_dice)
    loss = ContourWeightedLoss(regions=True, batch_dice=batch_dice, ignore_label=3 if ignored else None)
    assert loss(logits, target.to(kind)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("off", [{"iterations": 0}, {"kernel": 1}, {"ce_contour_weight": 0, "min_interior": 1.0}])
def test_without_contours_it_is_nnunets_loss_plus_one(shape, batch_dice, off):
    logits, labels = blocks(shape, ignored=True)
    if "min_interior" in off:  # no class may have a contour; absent ones are another matter
        logits, labels = blocks(shape)
        assert all(len(sample.unique()) == 3 for sample in labels)
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "ddp": False}
    ignore = None if "min_interior" in off else 3
    stock = DC_and_CE_loss(options | {"do_bg": False}, {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)
    ours = ContourWeightedLoss(**off, batch_dice=batch_dice, ignore_label=ignore)
    torch.testing.assert_close(ours(logits, labels), stock(logits, labels) + 1)
    if "min_interior" not in off:
        target = regions_of(labels, True)
        stock = DC_and_BCE_loss({}, options | {"do_bg": True}, use_ignore_label=True)
        value = stock(logits, target.float()) + 1
        # nnU-Net divides the masked cross-entropy by the voxels alone, not by the channels; ours is the mean
        bce = functional.binary_cross_entropy_with_logits(logits, target[:, :3].float(), reduction="none")
        value = value - (bce * ~target[:, 3:]).sum() / (~target[:, 3:]).sum() * (2 / 3)
        ours = ContourWeightedLoss(**off, regions=True, batch_dice=batch_dice, ignore_label=3)
        torch.testing.assert_close(ours(logits, target), value)


def test_contours_cost_more_than_the_rest():
    """The same mistake in one voxel, on the contour and in the interior."""
    labels = torch.zeros(1, 1, 9, 9, dtype=torch.int64)
    labels[..., 2:7, 2:7] = 1
    right = 8 * functional.one_hot(labels[:, 0], 2).movedim(-1, 1).float()
    values = []
    for place in ((2, 4), (4, 4)):
        logits = right.clone()
        logits[0, :, place[0], place[1]] = right[0, [1, 0], place[0], place[1]]
        values.append(ContourWeightedLoss(dice_contour_weight=0, dice_complement_weight=0)(logits, labels).item())
    assert values[0] == pytest.approx(2 * values[1], rel=1e-2)


@pytest.mark.parametrize("regions", [False, True])
def test_gradients_with_bands(regions):
    logits, labels = blocks((2, 3, 5, 4), dtype=torch.float64, ignored=True)
    target = regions_of(labels, True) if regions else labels
    loss = ContourWeightedLoss(iterations=2, min_interior=0.3, batch_dice=True, regions=regions, ignore_label=3)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_())


def test_an_ignored_rim_makes_no_contour():
    labels = torch.zeros(1, 1, 9, 9, dtype=torch.int64)
    labels[..., 2:7, 2:7] = 1
    logits = blocks((1, 2, 9, 9))[0]
    labels[labels == 0] = 2
    weighted, plain = (ContourWeightedLoss(ignore_label=2, ce_contour_weight=w)(logits, labels) for w in (5.0, 0.0))
    assert torch.equal(weighted, plain)


def test_a_thin_class_keeps_an_interior():
    """A plate of two voxels is all contour: false positives cost nothing unless the band is adapted."""
    labels = torch.zeros(1, 1, 12, 12, dtype=torch.int64)
    labels[..., 1:3, :] = 1
    labels[..., 4:11, 2:9] = 2
    truth = 6 * functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float()
    wrong = truth.clone()
    wrong[0, :, 11, :6] = torch.tensor([0.0, 6.0, 0.0])[:, None]  # six false positives of the plate
    dice = {"weight_ce": 0.0}
    fixed, adaptive = ContourWeightedLoss(**dice), ContourWeightedLoss(**dice, min_interior=0.2)
    assert (fixed(wrong, labels) - fixed(truth, labels)).abs() < 1e-3
    assert adaptive(wrong, labels) - adaptive(truth, labels) > 0.05
    # class 2, 49 voxels: the bands of 1, 2 and 3 iterations leave 25, 9 and 1 of them
    three = ContourWeightedLoss(**dice, iterations=3, min_interior=0.2)
    parts = {"dice_contour_weight": 1.0, "dice_complement_weight": 0.0}
    logits = blocks((1, 3, 12, 12))[0]
    probs = logits.softmax(1)
    two = contour_map(labels, iterations=2) & (labels == 2)
    on_contour, count = (probs[:, 2:] * two).sum(), two.sum()
    assert count == 40
    whole = (2 * (probs[:, 1:2] * (labels == 1)).sum() + 1e-5) / (probs[:, 1].sum() + 24 + 1e-5)
    expected = ((1 - whole) + (1 - (2 * on_contour + 1e-5) / (on_contour + count + 1e-5))) / 2
    three = ContourWeightedLoss(**dice, **parts, iterations=3, min_interior=0.15)
    assert three(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_regions_adapt_each_for_itself():
    labels = torch.zeros(1, 1, 12, 12, dtype=torch.int64)
    labels[..., 1:3, :] = 1
    labels[..., 4:11, 2:9] = 2
    logits = blocks((1, 2, 12, 12))[0]
    both = torch.cat([labels == 1, labels == 2], 1)
    options = {"regions": True, "weight_ce": 0.0, "iterations": 3, "min_interior": 0.15}
    parts = [ContourWeightedLoss(**options)(logits[:, n : n + 1], both[:, n : n + 1]) for n in (0, 1)]
    torch.testing.assert_close(ContourWeightedLoss(**options)(logits, both), sum(parts) / 2)


@pytest.mark.parametrize("regions", [False, True])
def test_two_halves_gathered_equal_the_whole_batch(regions):
    """What DDP does: sums of the Dice over all processes, the cross-entropy a mean over their voxels."""
    logits, labels = blocks((2, 3, 9, 8), ignored=True)
    target = regions_of(labels, True) if regions else labels
    options = {"regions": regions, "batch_dice": True, "ignore_label": 3}
    expected = ContourWeightedLoss(**options)(logits, target)

    class Recording:
        def __init__(self):
            self.calls, self.seen = [], []

        def __call__(self, tensor):
            self.seen.append(tensor)
            return torch.stack([call[len(self.seen) - 1] for call in self.calls]) if self.calls else tensor[None]

    recorders = [Recording(), Recording()]
    for n, recorder in enumerate(recorders):
        ContourWeightedLoss(**options, gather=recorder)(logits[n : n + 1], target[n : n + 1])
    values = []
    for n in (0, 1):
        joint = Recording()
        joint.calls = [recorder.seen for recorder in recorders]
        values.append(ContourWeightedLoss(**options, gather=joint)(logits[n : n + 1], target[n : n + 1]))
    torch.testing.assert_close(sum(values) / 2, expected)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("options", [{}, {"ignore_label": 3, "iterations": 2, "min_interior": 0.2, "batch_dice": True}])
def test_compiles_in_one_graph(regions, options, backend):
    logits, labels = blocks((2, 3, 9, 8), ignored="ignore_label" in options)
    target = regions_of(labels, "ignore_label" in options) if regions else labels
    loss = ContourWeightedLoss(**options, regions=regions)
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(logits, target), loss(logits, target))


@pytest.mark.gpu
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gpu_finds_the_same(regions, dtype):
    logits, labels = blocks((2, 3, 9, 8), ignored=True)
    target = regions_of(labels, True) if regions else labels
    loss = ContourWeightedLoss(ignore_label=3, iterations=2, min_interior=0.2, regions=regions)
    with torch.autocast("cuda", torch.float16, enabled=dtype == torch.float16):
        found = loss(logits.to(dtype).cuda(), target.cuda())
    torch.testing.assert_close(found.cpu(), loss(logits.to(dtype).float(), target), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("regions", [False, True])
def test_one_compiled_loss_serves_all_scales(regions):
    loss = ContourWeightedLoss(regions=regions, ignore_label=3, batch_dice=True)
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for shape in ((2, 3, 12, 16, 8), (2, 3, 6, 8, 4), (2, 3, 3, 4, 2)):
        logits, labels = blocks(shape, ignored=True)
        target = regions_of(labels, True) if regions else labels
        torch.testing.assert_close(compiled(logits, target), loss(logits, target))
        with torch.no_grad():
            torch.testing.assert_close(compiled(logits, target), loss(logits, target))


def test_processes_may_have_batches_of_different_sizes():
    """With batch Dice a sum over the batch is what travels, as nnU-Net may give 7 and 6 samples to two processes."""
    shapes = []
    for samples in (1, 2):
        logits, labels = blocks((samples, 3, 9, 8))
        loss = ContourWeightedLoss(batch_dice=True, gather=lambda t: (shapes.append(tuple(t.shape)), t[None])[1])
        loss(logits, labels)
    assert shapes[: len(shapes) // 2] == shapes[len(shapes) // 2 :]


def test_long_sums_keep_their_digits():
    """Sums of millions of equal numbers, which float32 cannot add up one after the other."""
    labels = torch.ones(1, 1, 160, 160, 100, dtype=torch.uint8)
    labels[..., :2, :, :] = 0
    logits = torch.full((1, 2, 160, 160, 100), -1.0)
    logits[:, 1] = 1.3
    options = {"weight_ce": 0, "dice_contour_weight": 0, "dice_complement_weight": 1}
    single, double = (ContourWeightedLoss(**options)(one, labels).item() for one in (logits, logits.double()))
    assert single == pytest.approx(double, abs=2e-4)


def test_a_tiny_network_overfits_a_patch():
    torch.manual_seed(0)
    _, labels = blocks((1, 3, 9, 9), seed=3)
    image = labels.float() + 0.1 * torch.randn(1, 1, 9, 9)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1))
    optimizer, loss = torch.optim.Adam(network.parameters(), 0.05), ContourWeightedLoss()
    for _ in range(200):
        optimizer.zero_grad()
        loss(network(image), labels).backward()
        optimizer.step()
    assert (network(image).argmax(1, keepdim=True) == labels).float().mean() > 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"border": "zero"}, "border must be one of"),
        ({"kernel": 0}, "kernel must be one integer from 1 on"),
        ({"iterations": -1}, "iterations must be one integer from 0 on"),
        ({"reduction": "sum"}, "reduction must be one of per_class, pooled, got 'sum'"),
        ({"min_interior": 1.5}, "min_interior is a share from 0 to 1, got 1.5"),
        ({"ce_contour_weight": -1}, "ce_contour_weight must be a number of 0 or more, got -1"),
        ({"dice_complement_weight": math.nan}, "dice_complement_weight must be a number of 0 or more, got nan"),
        ({"background_contour": True, "regions": True}, "background_contour needs exclusive classes"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ContourWeightedLoss(**options)
