"""Labels with their confidence, and the gate."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_ext.losses import unlabelled_loss, unlabelled_region_loss
from nnunet_ext.training.confidence import ConfidenceGate, agreeing, class_thresholds, label_and_confidence

EACH_KIND = pytest.mark.parametrize("regions", [False, True], ids=["classes", "regions"])


def case(regions=False, seed=0, shape=(2, 3, 12, 10), sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(shape, generator=generator)
    valid = torch.rand((shape[0], 1, *shape[2:]), generator=generator) > 0.2
    return logits, *label_and_confidence(logits, regions), valid


def test_label_and_confidence_of_classes():
    logits = torch.tensor([[0.0, 2.0], [math.log(3), 0.0]]).reshape(1, 2, 2)
    labels, confidence = label_and_confidence(logits)
    assert labels.tolist() == [[[1, 0]]]
    torch.testing.assert_close(confidence, torch.tensor([[[0.75, 1 / (1 + math.exp(-2))]]]))
    assert not label_and_confidence(logits.requires_grad_())[1].requires_grad


def test_label_and_confidence_of_regions():
    logits = torch.tensor([[0.0, 2.0], [math.log(3), -math.log(3)]]).reshape(1, 2, 2)
    labels, confidence = label_and_confidence(logits, regions=True)
    assert labels.tolist() == [[[False, True], [True, False]]]
    torch.testing.assert_close(confidence, torch.tensor([[[0.5, 1 / (1 + math.exp(-2))], [0.75, 0.75]]]))


@EACH_KIND
def test_confidence_is_exact_in_half_precision(regions):
    """Near 1 the steps of bfloat16 are 1 / 256."""
    logits = torch.tensor([[0.0, 0.0], [6.0, 6.03125]], dtype=torch.bfloat16).reshape(1, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        _, confidence = label_and_confidence(logits, regions)
    assert confidence.dtype == torch.float32
    torch.testing.assert_close(confidence[0, -1], logits[0, 1].float().sigmoid())
    assert label_and_confidence(logits.double(), regions)[1].dtype == torch.float64


@EACH_KIND
def test_confidence_of_the_largest_logits_of_half_precision(regions):
    logits = (60000 * case()[0].sign()).half()
    assert torch.isfinite(label_and_confidence(logits, regions)[1]).all()


@pytest.mark.parametrize(("keep", "threshold"), [(0.5, 0.75), (0.8, 0.65), (0.95, 0.55), (1.0, 0.55)])
def test_golden_thresholds(keep, threshold):
    histogram = torch.zeros(2, 100, dtype=torch.float64)
    histogram[0, [55, 65, 75, 85, 95]] = torch.tensor([10, 20, 30, 25, 15.0], dtype=torch.float64)
    assert class_thresholds(histogram, 0.8, keep).tolist() == pytest.approx([threshold, 0.8])


def test_thresholds_do_not_exceed_the_global_one():
    histogram = torch.zeros(1, 100)
    histogram[0, 99] = 5
    assert class_thresholds(histogram, 0.8).item() == pytest.approx(0.8)
    assert class_thresholds(histogram, 0.995).item() == pytest.approx(0.99)
    assert class_thresholds(torch.zeros(1, 100), 0.995).item() == pytest.approx(0.995)


def test_golden_kept():
    logits = torch.tensor([0.97, 0.60, 0.30, 0.02]).logit().reshape(1, 1, 4)
    logits = torch.cat([torch.zeros_like(logits), logits], 1)
    labels, confidence = label_and_confidence(logits)
    assert labels.flatten().tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(confidence.flatten(), torch.tensor([0.97, 0.6, 0.7, 0.98]))
    assert ConfidenceGate(2)(logits, labels, confidence).flatten().tolist() == [True, False, False, True]
    valid = torch.tensor([True, True, True, False]).reshape(1, 1, 4)
    assert ConfidenceGate(2)(logits, labels, confidence, valid).flatten().tolist() == [True, False, False, False]


def test_golden_kept_regions():
    logits = torch.tensor([[0.9, 0.2], [0.55, 0.99]]).logit()[None]
    labels, confidence = label_and_confidence(logits, regions=True)
    kept = ConfidenceGate(2, regions=True, threshold=0.8 - 1e-6)(logits, labels, confidence)
    assert kept.tolist() == [[[True, True], [False, True]]]
    student = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)[None]
    assert unlabelled_region_loss(student, labels, kept).item() == pytest.approx(0.122194 - 0.882967, abs=2e-6)


@EACH_KIND
@pytest.mark.parametrize("gate", ["global", "per_class"])
def test_off_keeps_all_valid_voxels(regions, gate):
    logits, labels, confidence, valid = case(regions)
    kept = ConfidenceGate(3, threshold=0.0, gate=gate, regions=regions)(logits, labels, confidence, valid)
    assert kept.dtype == torch.bool
    assert torch.equal(kept, valid.expand_as(labels))
    assert ConfidenceGate(3, threshold=0.0, gate=gate, regions=regions)(logits, labels, confidence).all()
    loss = unlabelled_region_loss if regions else unlabelled_loss
    torch.testing.assert_close(loss(logits, labels, kept, valid), loss(logits, labels, torch.ones_like(labels), valid))


def test_histograms_decay():
    gate = ConfidenceGate(3, decay=0.5)
    first, second = case(seed=0), case(seed=1)
    expected = torch.zeros(3, 100)
    for share, (_, labels, confidence, valid) in ((0.5, first), (1.0, second)):
        for label, c in zip(labels[valid].tolist(), confidence[valid].tolist(), strict=True):
            expected[label, min(99, int(100 * c))] += share
    gate(*first)
    gate(*second)
    torch.testing.assert_close(gate.state_dict()["histogram"], expected)


def test_histograms_of_regions():
    gate = ConfidenceGate(3, regions=True)
    _, labels, confidence, valid = case(True)
    expected = torch.zeros(6, 100)
    for channel in range(3):
        there = valid[:, 0]
        for label, c in zip(labels[:, channel][there].tolist(), confidence[:, channel][there].tolist(), strict=True):
            expected[channel + 3 * label, min(99, int(100 * c))] += 1
    gate(*case(True))
    torch.testing.assert_close(gate.state_dict()["histogram"], expected)


@EACH_KIND
def test_per_class_keeps_its_share_of_every_class(regions):
    logits, labels, confidence, valid = case(regions, shape=(2, 3, 40, 50), sharpness=1.0)
    if not regions:
        logits[:, 2] -= 0.7  # a class that is never sure
        labels, confidence = label_and_confidence(logits)
    gate = ConfidenceGate(3, threshold=0.9, gate="per_class", keep=0.7, regions=regions)
    kept = gate(logits, labels, confidence, valid)
    there = valid.expand_as(labels)
    for channel in range(3):
        masks = (
            [labels == channel] if not regions else [labels & _only(labels, channel), ~labels & _only(labels, channel)]
        )
        for mask in masks:
            share = (kept & mask).sum() / (there & mask).sum()
            assert 0.7 <= share < 0.75
    assert (gate.thresholds() < 0.9).all()
    strict = ConfidenceGate(3, threshold=0.9, regions=regions)(logits, labels, confidence, valid)
    assert strict.sum() < kept.sum()
    assert (gate.kept_share() >= 0.7).all()
    assert gate.kept_share().shape == ((2, 3) if regions else (3,))


def _only(labels, channel):
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, channel] = True
    return mask


@EACH_KIND
def test_shares(regions):
    logits, labels, confidence, valid = case(regions)
    gate = ConfidenceGate(3, regions=regions)
    kept = gate(logits, labels, confidence, valid)
    there = valid.expand_as(labels)
    for channel in range(3):
        if regions:
            share = (labels[:, channel] & valid[:, 0]).sum() / valid.sum()
            mask = labels & _only(labels, channel)
            kept_share = gate.kept_share()[1, channel]
        else:
            mask = labels == channel
            share = (mask & valid).sum() / valid.sum()
            kept_share = gate.kept_share()[channel]
        torch.testing.assert_close(gate.class_share()[channel], share)
        torch.testing.assert_close(kept_share, (kept & mask).sum() / (there & mask).sum())


def test_kept_shares_decay():
    """Of 10 labels 10 are kept, then of 10 none: 5 of 15 with half the weight for the first."""
    gate = ConfidenceGate(2, decay=0.5)
    for confidence in (0.9, 0.7):
        labels = torch.ones(1, 1, 10, dtype=torch.long)
        gate(torch.zeros(1, 2, 10), labels, torch.full((1, 1, 10), confidence))
    assert gate.kept_share()[1].item() == pytest.approx(1 / 3)
    assert gate.kept_share()[0].isnan()


def guarded(share_of_2, regions):
    """Logits of 100 voxels: as many of class 2 as asked for, the others background, half of which suspect."""
    probs = torch.full((1, 3, 100), 0.01)
    probs[:, 0] = 0.98
    probs[:, :, 50:] = torch.tensor([0.75, 0.05, 0.2])[:, None]
    probs[:, :, :share_of_2] = torch.tensor([0.01, 0.01, 0.98])[:, None]
    logits = probs[:, 1:].logit() if regions else probs.log()
    return logits, *label_and_confidence(logits, regions)


def share_of(regions, *of_classes):
    """Shares in labelled scans, as the gate gets them: of classes, or of two regions."""
    return torch.tensor(of_classes[1:] if regions else of_classes)


@EACH_KIND
def test_guard_against_losing_a_class(regions):
    """The labelled scans have 50 % of class 2: it is missing below 10 %, and back at 20 %."""
    channel, outputs = (1, 2) if regions else (0, 3)
    expected = share_of(regions, 0.5, 0.0, 0.5)
    gate = ConfidenceGate(outputs, 0.0, guard=True, regions=regions, decay=0.0, labelled_share=expected)
    for share, missing in ((20, False), (9, True), (15, True), (19, True), (20, False), (15, False)):
        logits, labels, confidence = guarded(share, regions)
        kept = gate(logits, labels, confidence)
        assert gate.missing().tolist() == ([False, missing] if regions else [False, False, missing]), share
        suspect = torch.arange(100) >= 50
        assert torch.equal(kept[0, channel], ~suspect if missing else torch.ones(100, dtype=torch.bool))
        if regions:
            assert kept[0, 0].all()  # the other region
    without = ConfidenceGate(outputs, 0.0, regions=regions, decay=0.0)
    assert without(*guarded(0, regions)).all()


@EACH_KIND
def test_a_small_object_under_a_perfect_labeller_is_not_missing_until_it_vanishes(regions):
    """0.01 % of the scans, in one patch of nine; nnU-Net's labelled patches would show it ten times as often."""
    generator = torch.Generator().manual_seed(0)

    def draw(*limits):
        return [int(torch.randint(low, high, (1,), generator=generator)) for low, high in limits]

    scans = torch.zeros(20, 48, 48, 48, dtype=torch.bool)
    for scan in scans:
        z, y, x = draw(*[(4, 40)] * 3)
        scan[z : z + 2, y : y + 2, x : x + 3] = True
    inside = float(scans.float().mean())
    assert 1.0e-4 < inside < 1.1e-4
    expected = torch.tensor([inside] if regions else [1 - inside, inside])
    gate = ConfidenceGate(len(expected), 0.0, guard=True, regions=regions, labelled_share=expected)
    missing = []
    for step in range(800):
        patches = []
        for _ in range(2):
            case, z, y, x = draw((0, 20), *[(0, 33)] * 3)
            patches.append(scans[case, z : z + 16, y : y + 16, x : x + 16])
        true = torch.stack(patches)[:, None] & (step < 400)
        logits = torch.where(true, 20.0, -20.0)
        gate(logits if regions else torch.cat([-logits, logits], 1), true if regions else true.long(), true * 0.0 + 1)
        missing.append(bool(gate.missing()[-1]))
    assert not any(missing[:400])
    assert all(missing[700:])


def test_few_steps_say_nothing_of_a_class():
    """After 68 steps the counts hold 0.495 of what they ever do, after 69 of them 0.5002."""
    gate = ConfidenceGate(3, 0.0, guard=True, labelled_share=torch.tensor([0.5, 0.0, 0.5]))
    found = []
    for _ in range(69):
        gate(*guarded(0, False))
        found.append(bool(gate.missing()[2]))
    assert found == [False] * 68 + [True]


def test_guard_without_shares():
    with pytest.raises(ValueError, match="guard compares with whole labelled scans: give labelled_share"):
        ConfidenceGate(3, guard=True)


@EACH_KIND
def test_a_state_without_the_steps_seen_is_of_many(regions):
    """And what older ones hold beside it is passed over."""
    arguments = {"guard": True, "regions": regions, "labelled_share": torch.full((3,), 0.3)}
    gate = ConfidenceGate(3, **arguments)
    gate(*case(regions))
    state = gate.state_dict() | {"labelled": torch.zeros(4)}
    del state["window"]
    other = ConfidenceGate(3, **arguments)
    other.load_state_dict(state)
    assert float(other.state_dict()["window"]) == pytest.approx(100)


@EACH_KIND
def test_two_processes_see_what_one_sees(regions):
    """Each adds what the other counts."""
    options = {"guard": True, "regions": regions, "labelled_share": torch.tensor([0.3, 0.3, 0.4])}
    one = ConfidenceGate(3, gate="per_class", **options)
    arguments = case(regions)
    kept = one(*arguments)
    notes = [[], []]
    for sample in (0, 1):
        alone = [argument[sample : sample + 1] for argument in arguments]
        observing = ConfidenceGate(3, 0.0, sum_over_processes=_noting(notes[sample]), **options)
        observing(*alone)
    for sample in (0, 1):
        others = iter(notes[1 - sample][:1])
        zero = torch.zeros(6 if regions else 3)
        gate = ConfidenceGate(
            3,
            gate="per_class",
            sum_over_processes=lambda counts, others=others, zero=zero: counts + next(others, zero),
            **options,
        )
        part = gate(*[argument[sample : sample + 1] for argument in arguments])
        assert torch.equal(part, kept[sample : sample + 1])
        torch.testing.assert_close(gate.class_share(), one.class_share())
        assert torch.equal(gate.missing(), one.missing())


def _noting(notes):
    def note(counts):
        notes.append(counts)
        return counts

    return note


@EACH_KIND
def test_a_checkpoint_continues(regions):
    share = torch.tensor([0.3, 0.3, 0.4])
    arguments = {"gate": "per_class", "guard": True, "regions": regions, "labelled_share": share}
    gate = ConfidenceGate(3, **arguments)
    gate(*case(regions, 0))
    state = gate.state_dict()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    expected = gate(*case(regions, 1))
    assert all(torch.equal(state[name], copy) for name, copy in copies.items())
    other = ConfidenceGate(3, **arguments)
    other.load_state_dict(state)
    assert torch.equal(other(*case(regions, 1)), expected)
    torch.testing.assert_close(other.state_dict(), gate.state_dict())
    torch.testing.assert_close(other.kept_share(), gate.kept_share())
    alone = ConfidenceGate(3, **arguments)
    alone(*case(regions, 1))
    assert not torch.allclose(alone.kept_share(), gate.kept_share())


@EACH_KIND
@pytest.mark.parametrize("gate", ["global", "per_class"])
def test_no_call_waits_for_the_device(regions, gate):
    """A tensor without values cannot be copied to the host."""
    with FakeTensorMode():
        logits, valid = torch.empty(2, 3, 6, 5), torch.empty(2, 1, 6, 5)
        labels, confidence = label_and_confidence(logits, regions)
        arguments = {"gate": gate, "guard": True, "regions": regions, "labelled_share": torch.full((3,), 0.3)}
        kept = ConfidenceGate(3, **arguments)(logits, labels, confidence, valid)
    assert kept.shape == ((2, 3, 6, 5) if regions else (2, 1, 6, 5))


def test_agreement_or_certainty():
    labels, peer = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
    confidence = torch.tensor([0.2, 0.94, 0.95, 0.9])
    assert agreeing(labels, peer, confidence).tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gate": "class"}, "gate of pseudo-labels must be one of global, per_class, got 'class'"),
        ({"threshold": 80}, "threshold of confidence must lie between 0 and 1, got 80"),
        ({"keep": -0.1}, "share to keep must lie between 0 and 1, got -0.1"),
        ({"decay": 1.1}, "decay must lie between 0 and 1, got 1.1"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConfidenceGate(3, **arguments)


def labelled_with(share, outputs=3, size=1000):
    """Labels of which class 2 has a share, and everything that a gate needs of them."""
    labels = torch.zeros(1, 1, size, dtype=torch.int64)
    labels[..., : round(share * size)] = 2
    labels[..., -100:] = 1
    return torch.zeros(1, outputs, size), labels, torch.ones(1, 1, size)


def test_labels_say_nothing_of_a_class_until_half_of_it_is_seen():
    gate = ConfidenceGate(3, 0.0, decay=0.0, silence=True, labelled_share=torch.tensor([0.86, 0.1, 0.04]))
    assert gate.silent().tolist() == [False, True, True]
    found = []
    for share in (0, 0.01, 0.019, 0.021, 0.011, 0.009, 0.015, 0.021):
        assert gate(*labelled_with(share)).all()
        found.append(gate.silent().tolist()[1:])
    assert [second for _, second in found] == [True, True, True, False, False, True, True, False]
    assert not any(first for first, _ in found)
    other = ConfidenceGate(3, 0.0, silence=True, labelled_share=torch.tensor([0.86, 0.1, 0.04]))
    other.load_state_dict(gate.state_dict())
    assert torch.equal(other.silent(), gate.silent())


def test_outsides_of_a_region_that_is_not_seen_are_dropped():
    gate = ConfidenceGate(2, 0.0, regions=True, decay=0.0, silence=True, labelled_share=torch.tensor([0.5, 0.1]))
    labels = torch.zeros(1, 2, 100, dtype=torch.bool)
    labels[:, 0, :50] = True
    labels[:, 1, :2] = True
    kept = gate(torch.zeros(1, 2, 100), labels, torch.ones(1, 2, 100))
    assert kept[:, 0].all()
    assert torch.equal(kept[:, 1], labels[:, 1])
    assert gate.silent() is None


def test_silence_needs_the_shares_of_labelled_scans():
    with pytest.raises(ValueError, match="the silence compares with whole labelled scans: give labelled_share"):
        ConfidenceGate(3, silence=True)
