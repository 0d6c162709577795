"""The driver: who is found how often, from what, and what becomes of it."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from propagation.toy import Toy, square, volume
from torch.nn import functional

from nnunet_ext.networks import SpaceTimeNetwork
from nnunet_ext.propagation import Memory, NoReferenceError, PropagationSettings, driver, propagate

CPU = torch.device("cpu")
LAST_ONLY = PropagationSettings(top_k=1, every=1000)
NARROW = {
    "key_stages": (4, 4, 8),
    "key_blocks": (1, 1, 1),
    "value_stages": (4, 4, 8),
    "value_blocks": (1, 1, 1),
    "key_dim": 6,
    "value_dim": 8,
    "decoder_channels": (8, 8, 4),
}


def narrow(channels=1, seed=0, **more):
    torch.manual_seed(seed)
    network = SpaceTimeNetwork(channels, 2, **NARROW, **more)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return network


@pytest.mark.parametrize(
    ("slices", "references", "order"),
    [
        (10, (3, 6), [2, 1, 0, 4, 5, 5, 4, 7, 8, 9]),
        (6, (4,), [3, 2, 1, 0, 5]),
        (6, (0, 5), [1, 2, 3, 4, 4, 3, 2, 1]),
        (6, (0,), [1, 2, 3, 4, 5]),
        (6, (5,), [4, 3, 2, 1, 0]),
        (6, (1, 3, 5), [0, 2, 2, 4, 4]),
        (4, (1, 2), [0, 3]),
        (3, (1,), [0, 2]),
        (2, (1,), [0]),
        (3, (0, 1, 2), []),
        (1, (0,), []),
    ],
)
def test_each_pass_comes_once_to_each_slice(slices, references, order):
    """References are added once, as they are, before all else, and are never found anew."""
    network, maps = Toy(), {index: square(1) for index in references}
    result = propagate([network], volume(slices), maps, CPU, LAST_ONLY)
    there = list(references) if order else []
    assert network.asked == there + order
    assert [index for index, _ in network.encoded[: len(there)]] == there
    for _, masks in network.encoded[: len(there)]:
        assert set(masks.unique().tolist()) == {0, 1}
    assert not {index for index, _ in network.encoded[len(there) :]} & set(references)
    for index in range(slices):
        above, below = any(r > index for r in references), any(r < index for r in references)
        expected = [False, False] if index in references else [below, above]
        assert result.directions[index].tolist() == expected
        assert Counter(order)[index] == sum(expected)
        assert torch.isnan(result.agreement[index]) == (index in references)


def test_the_square_is_carried_to_where_it_was():
    result = propagate([Toy()], volume(12), {3: square(7), 6: square(7)}, CPU, LAST_ONLY)
    assert result.classes == (7,)
    assert result.probabilities.shape == (2, 12, 20, 24)
    assert result.probabilities.dtype == torch.float16
    for index in range(12):
        assert torch.equal(result.labels[index], square(7))
    assert torch.equal(result.forward[4], square(7))
    assert not result.forward[2].any()
    assert not result.backward[8].any()
    assert not result.forward[3].any()
    assert not result.backward[3].any()
    torch.testing.assert_close(result.probabilities.float().sum(0), torch.ones(12, 20, 24), atol=2e-3, rtol=0)


def test_what_is_found_stays_a_probability():
    """Masks in memory are of one slice: nothing is summed up over passes."""
    network = Toy()
    propagate([network], volume(30), {10: square(1), 20: square(2)}, CPU, PropagationSettings(top_k=3))
    assert len(network.encoded) > 20
    for _, masks in network.encoded:
        assert masks.min() >= 0
        assert masks.sum(1)[:, 0].max() <= 1 + 1e-5


@pytest.mark.parametrize("include_last", [True, False])
def test_values_are_made_of_slices_that_stay_only(include_last):
    network = Toy()
    settings = PropagationSettings(top_k=1, every=5, include_last=include_last)
    propagate([network], volume(14), {1: square(1), 12: square(1)}, CPU, settings)
    up, down = list(range(2, 11)), list(range(11, 2, -1))  # the last slice of a pass is of use to no other one
    if not include_last:
        up, down = [5, 10], [10, 5]
    assert [index for index, _ in network.encoded] == [1, 12, *up, *down]


def test_the_memory_of_a_pass_holds_references_and_its_own_slices(monkeypatch):
    seen = []

    class Seen(Memory):
        def read(self, key):
            seen.append((round(float(key[0, 0].max())), self.indices, self.nbytes))
            return super().read(key)

    monkeypatch.setattr(driver, "Memory", Seen)
    settings = PropagationSettings(every=3, most=2)
    propagate([Toy()], volume(24), {4: square(1), 8: square(1), 20: square(1)}, CPU, settings)
    by_pass = {}
    for index, there, _ in seen[:-3]:
        by_pass.setdefault(index, []).append(there)
    refs = [4, 8, 20]
    assert by_pass[3] == [refs]
    assert by_pass[0] == [[*refs, 3, 1]]
    assert by_pass[5] == [refs, [*refs, 6]]
    assert by_pass[7] == [[*refs, 6], refs]
    assert by_pass[17] == [[*refs, 15, 12, 16], [*refs, 18]]  # 9 has given way
    assert by_pass[9] == [refs, [*refs, 12, 15, 10]]  # 18 has
    (size,) = {size for _, _, size in seen}  # room for 3 references, 2 slices that stay and the last one, at once
    assert size == (3 + 2 + 1) * 4 * (3 + 256) * 4


def test_references_come_back_as_they_were():
    first, second = square(3), square(5, left=9)
    first[0], second[1] = -1, -7
    given = first.clone(), second.clone()
    result = propagate([Toy()], volume(9), {2: first, 6: second}, CPU)
    assert torch.equal(first, given[0])
    assert torch.equal(result.labels[2], first)
    assert torch.equal(result.labels[6], second)
    assert result.classes == (3, 5)
    onehot = result.probabilities[:, 2]
    assert torch.equal(onehot[1], (first == 3).half())
    assert torch.equal(onehot[0], (first <= 0).half())  # where it says ignore, too
    assert not (result.labels[[0, 1, 3, 4, 5, 7, 8]] < 0).any()


def test_ignored_voxels_are_no_object():
    network, reference = Toy(), square(3)
    reference[:2] = -1
    propagate([network], volume(3), {1: reference}, CPU)
    (_, masks), *_ = network.encoded
    assert masks.shape[1:3] == (1, 2)
    assert masks[0, 0, 0].sum() == 64
    assert masks[0, 0, 1].sum() == 0


def test_a_class_of_one_reference_only():
    """The other reference says where it is not."""
    network = Toy()
    references = {2: square(1), 6: square(1) + square(2, left=13)}
    result = propagate([network], volume(9), references, CPU, LAST_ONLY)
    (_, first), (_, second), *_ = network.encoded
    assert first[0, :, 0].sum((1, 2)).tolist() == [64, 0]
    assert first[0, :, 1].sum((1, 2)).tolist() == [0, 64]
    assert second[0, :, 0].sum((1, 2)).tolist() == [64, 64]
    assert torch.equal(result.forward[4], references[2])
    assert torch.equal(result.backward[4], references[6])
    assert result.agreement[4] == pytest.approx(0.5)  # classes 1 and 2: 1 and 0
    assert torch.equal(result.labels[8], references[6])


def test_networks_are_averaged_in_each_slice():
    """By hand: a gain of 2 finds sigmoid(1) where the object is, with odds p / (1 - p), background's the inverse."""
    result = propagate([Toy(2.0), Toy(6.0)], volume(3), {0: square(1)}, CPU, LAST_ONLY)

    def aggregated(gain, read):
        p = torch.sigmoid(torch.tensor(gain * (read - 0.5)))
        odds = p / (1 - p)
        return float(odds / (odds + 1 / odds))

    first = (aggregated(2.0, 1) + aggregated(6.0, 1)) / 2
    assert float(result.probabilities[1, 1, 4, 5]) == pytest.approx(first, abs=1e-3)
    second = (aggregated(2.0, first) + aggregated(6.0, first)) / 2
    assert float(result.probabilities[1, 2, 4, 5]) == pytest.approx(second, abs=1e-3)


@pytest.mark.parametrize(("weighting", "weight"), [("mean", 0.5), ("distance", 0.75)])
def test_passes_are_averaged(weighting, weight):
    """Slice 2 is at 1/4 of the way from reference 1 to reference 5; the second finds nothing where the first does."""
    settings = PropagationSettings(top_k=1, every=1, weighting=weighting)
    references = {1: square(1), 5: square(2)}
    result = propagate([Toy(1e3)], volume(6), references, CPU, settings)
    assert float(result.probabilities[1, 2, 4, 5]) == pytest.approx(weight, abs=1e-3)
    assert float(result.probabilities[2, 2, 4, 5]) == pytest.approx(1 - weight, abs=1e-3)
    assert float(result.probabilities[1, 3, 4, 5]) == pytest.approx(0.5, abs=1e-3)
    assert float(result.probabilities[1, 4, 4, 5]) == pytest.approx(1 - weight, abs=1e-3)


def test_many_objects_in_parts_are_the_same():
    """104 classes; of a part, all others are in the second mask."""
    labels = torch.zeros(32, 32, dtype=torch.int32)
    labels[:26, :32] = torch.arange(104).view(26, 4).repeat_interleave(8, 1) * 10 + 5
    sizes, network, image = [], narrow(), torch.randn(1, 4, 32, 32)
    encode_value, decode = network.encode_value, network.decode
    network.encode_value = lambda features, masks: sizes.append(masks.shape[1]) or encode_value(features, masks)
    network.decode = lambda features, readout: sizes.append(readout.shape[1]) or decode(features, readout)
    results = [
        propagate([network], image, {1: labels}, CPU, PropagationSettings(objects_at_once=count)) for count in (16, 200)
    ]
    assert len(results[0].classes) == 104
    assert max(sizes[: len(sizes) // 2]) == 16
    assert max(sizes) == 104
    torch.testing.assert_close(results[0].probabilities, results[1].probabilities, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("size", [(20, 24), (32, 32), (17, 15), (1, 40)])
def test_any_size_is_padded_at_both_sides(size):
    network, reference = Toy(), torch.ones(size, dtype=torch.int16)
    result = propagate([network], volume(3, size), {0: reference}, CPU, LAST_ONLY)
    padded = tuple(-(-length // 16) * 16 for length in size)
    assert network.shape == (1, 1, *padded)
    _, masks = network.encoded[0]
    top, left = ((whole - length) // 2 for whole, length in zip(padded, size, strict=True))
    assert masks.sum() == size[0] * size[1]
    assert masks[0, 0, 0, top : top + size[0], left : left + size[1]].all()
    assert result.labels.shape == (3, *size)
    assert (result.labels == 1).all()


def test_a_network_that_enlarges_gets_slices_as_they_are():
    """As one that does not, of images and masks that were enlarged by hand and whose logits are reduced."""

    class ByHand(torch.nn.Module):
        divisors, input_channels = (16, 16), 1

        def __init__(self):
            super().__init__()
            self.inner = narrow()

        def encode_key(self, image):
            return self.inner.encode_key(functional.interpolate(image, scale_factor=2, mode="bilinear"))

        def encode_value(self, features, masks):
            flat = functional.interpolate(masks.flatten(1, 2), scale_factor=2, mode="bilinear")
            return self.inner.encode_value(features, flat.unflatten(1, masks.shape[1:3]))

        def decode(self, features, readout):
            return functional.avg_pool2d(self.inner.decode(features, readout), 2)

    image = torch.randn(1, 6, 20, 24, generator=torch.Generator().manual_seed(0))
    references = {1: square(1), 4: square(1) + square(2, left=13)}
    settings = PropagationSettings(top_k=None)  # which are best could change with rounding
    found, expected = (
        propagate([network.eval()], image, references, CPU, settings) for network in (narrow(enlarge=2), ByHand())
    )
    assert found.labels.shape == (6, 20, 24)
    torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=1e-2, atol=1e-3)
    plain = propagate([narrow()], image, references, CPU, settings)
    assert not torch.allclose(found.probabilities, plain.probabilities, rtol=1e-2, atol=1e-2)
    both = propagate([narrow(enlarge=2), narrow()], image, references, CPU, settings)  # each has a memory of its own
    assert both.labels.shape == (6, 20, 24)


def test_arrays_of_any_kind():
    image, reference = volume(4), square(300).numpy()
    expected = propagate([Toy()], image, {1: square(300)}, CPU)
    for kind in (np.uint16, np.int64):
        given = image.numpy()[:, ::-1].copy()[:, ::-1]  # strides below 0
        result = propagate([Toy()], given, {np.int64(1): reference.astype(kind)}, CPU)
        assert torch.equal(result.labels, expected.labels)
    for given in (image.numpy().astype(">f4"), image.numpy().astype(np.float64), image.numpy().copy()):
        given.flags.writeable = False
        result = propagate([Toy()], given, {1: square(300)}, CPU)  # warnings are errors here
        assert torch.equal(result.labels, expected.labels)
    high = square(1).int() * 70000
    assert propagate([Toy()], image, {1: high}, CPU).labels.max() == 70000


def test_networks_are_left_as_they_were():
    network = Toy().train()
    network.dropout.eval()
    propagate([network], volume(3), {1: square(1)}, CPU)
    assert network.training
    assert not network.dropout.training
    network.decode = None
    with pytest.raises(TypeError):
        propagate([network], volume(3), {1: square(1)}, CPU)
    assert network.training


def test_results_can_be_changed_and_are_on_the_cpu():
    result = propagate([narrow()], torch.randn(1, 3, 32, 32), {1: square(1, size=(32, 32))}, CPU)
    for tensor in (result.probabilities, result.labels, result.forward, result.backward, result.agreement):
        assert not tensor.is_inference()
        assert not tensor.requires_grad
        assert tensor.device == CPU


def test_the_position_of_the_slice_may_be_there():
    torch.manual_seed(0)
    network = SpaceTimeNetwork(1, 2, position=True, **NARROW)
    result = propagate([network], torch.rand(2, 3, 20, 24), {1: square(1)}, CPU)
    assert result.labels.shape == (3, 20, 24)


def test_a_bar_counts_slices_as_they_are_found(capsys):
    propagate([Toy()], volume(10), {3: square(1), 6: square(1)}, CPU)
    assert capsys.readouterr().err == ""
    propagate([Toy()], volume(10), {3: square(1), 6: square(1)}, CPU, progress=True)
    assert "10/10" in capsys.readouterr().err


@pytest.mark.parametrize("slices", [1, 3])
def test_no_class_in_any_reference(slices):
    message = "at least one reference must have a class to be carried to other slices, got 1 without"
    with pytest.raises(NoReferenceError, match=message) as error:
        propagate([Toy()], volume(slices), {0: -square(1)}, CPU)
    assert isinstance(error.value, ValueError)
    with pytest.raises(NoReferenceError, match="got 0 without"):
        propagate([Toy()], volume(slices), {}, CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": []}, "at least one network must be given, got none"),
        ({"image": volume(3)[0]}, "an image must have shape (1, T, H, W), got (3, 20, 24)"),
        ({"image": volume(3, channels=2)}, "an image must have shape (1, T, H, W), got (2, 3, 20, 24)"),
        ({"references": {3: square(1)}}, "references must be slices 0 to 2 of the image, got 3"),
        ({"references": {-1: square(1)}}, "references must be slices 0 to 2 of the image, got -1"),
        (
            {"references": {1: square(1).T}},
            "references must have the shape (20, 24) of the image's slices, got (24, 20) for slice 1",
        ),
        ({"references": {1: square(1).float()}}, "references must be integers, got float32 for slice 1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"networks": [Toy()], "image": volume(3), "references": {1: square(1)}, "device": CPU}
    with pytest.raises(ValueError, match=re.escape(message)):
        propagate(**given | change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "sum"}, "weighting must be one of mean, distance, got 'sum'"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"most": 0}, "most must be at least 1, got 0"),
        ({"objects_at_once": 0}, "objects_at_once must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        PropagationSettings(**settings)


@pytest.mark.gpu
def test_a_gpu_finds_what_a_cpu_finds():
    """But for half precision; all elements are read, as which are best may change with it."""
    network, image = narrow(), torch.randn(1, 12, 32, 48, generator=torch.Generator().manual_seed(0))
    references = {3: square(1, size=(32, 48)), 8: square(2, size=(32, 48))}
    settings = PropagationSettings(top_k=None)
    expected, found = (
        propagate([network], image, references, torch.device(name), settings).probabilities for name in ("cpu", "cuda")
    )
    assert found.device == CPU
    assert float((found.float() - expected.float()).abs().mean()) < 0.02
