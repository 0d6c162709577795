"""Reading from a memory and aggregation: by hand, against naive versions, and at the ends of their ranges."""

import math
import re

import pytest
import torch

from nnunet_ext.networks import memory_reading
from nnunet_ext.networks.memory_reading import aggregate, read, similarity

KEYS = torch.tensor([[[1.0, 0, 1], [0, 1, 1]]])
QUERIES = torch.tensor([[[1.0, 0.5], [0, 2]]])
VALUES = torch.tensor([[[[10.0, 20, 30]]]])


def drawn(batch=2, objects=3, channels=5, elements=40, queries=7, key_channels=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, key_channels, elements), (batch, objects, channels, elements), (batch, key_channels, queries)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def naive(keys, values, queries, top_k):
    """One query, object and sample after the other, as the formula says, in float64."""
    keys, values, queries = keys.double(), values.double(), queries.double()
    out = torch.zeros(*values.shape[:3], queries.shape[2], dtype=torch.float64)
    for b in range(len(keys)):
        for q in range(queries.shape[2]):
            s = -(keys[b] - queries[b, :, q, None]).square().sum(0) / math.sqrt(keys.shape[1])
            best = s.argsort(descending=True)[:top_k]
            weights = (s[best] - s[best].max()).exp()
            weights = weights / weights.sum()
            out[b, :, :, q] = (values[b][:, :, best] * weights).sum(-1)
    return out


def test_by_hand():
    # (2 k.q - |k|^2) / sqrt(2), e.g. the first element and the first query: (2 - 1) / 1.414214
    expected = torch.tensor([[0.707107, 0], [-0.707107, 2.121320], [0, 2.121320]])
    torch.testing.assert_close(similarity(KEYS, QUERIES)[0], expected, rtol=1e-4, atol=1e-6)
    affinity = similarity(KEYS, QUERIES).softmax(1)[0]
    expected = torch.tensor([[0.575975, 0.056547], [0.140029, 0.471726], [0.283995, 0.471726]])
    torch.testing.assert_close(affinity, expected, rtol=1e-4, atol=1e-6)
    found = read(KEYS, VALUES, QUERIES)
    torch.testing.assert_close(found, torch.tensor([[[[17.080200, 24.151789]]]]), rtol=1e-4, atol=1e-6)
    best = read(KEYS, VALUES, QUERIES, top_k=2)
    torch.testing.assert_close(best, torch.tensor([[[[16.604769, 25.0]]]]), rtol=1e-4, atol=1e-6)
    for element, (first, second) in enumerate(((0.669762, 0), (0, 0.5), (0.330238, 0.5))):
        alone = torch.eye(3)[element].view(1, 1, 1, 3)
        expected = torch.tensor([[[[first, second]]]])
        torch.testing.assert_close(read(KEYS, alone, QUERIES, top_k=2), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("top_k", [None, 1, 6, 40, 1000])
def test_equals_the_naive_version(top_k):
    """With more than there are: all of them."""
    keys, values, queries = drawn()
    found = read(keys, values, queries, top_k)
    assert found.shape == (2, 3, 5, 7)
    torch.testing.assert_close(found.double(), naive(keys, values, queries, top_k), rtol=1e-4, atol=1e-5)


def test_all_elements_or_as_many_best_ones_are_the_same():
    keys, values, queries = drawn()
    torch.testing.assert_close(read(keys, values, queries), read(keys, values, queries, 40))


def test_queries_in_parts_are_the_same(monkeypatch):
    keys, values, queries = drawn()
    whole = read(keys, values, queries, 6)
    monkeypatch.setattr(memory_reading, "_SIMILARITIES_AT_ONCE", 2 * 40 * 3)
    sizes = []
    similarities = memory_reading._similarity
    monkeypatch.setattr(memory_reading, "_similarity", lambda k, q: sizes.append(q.shape[2]) or similarities(k, q))
    torch.testing.assert_close(read(keys, values, queries, 6), whole)
    assert sizes == [3, 3, 1]
    monkeypatch.setattr(memory_reading, "_SIMILARITIES_AT_ONCE", 1)
    torch.testing.assert_close(read(keys, values, queries, 6), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("top_k", [None, 2])
def test_long_keys_are_finite(dtype, top_k):
    """Without the largest similarity subtracted, |q|^2 / 8 above 88.7 would leave the range of float32's exp."""
    direction = torch.ones(1, 64, 1, dtype=dtype)
    keys = torch.cat([40 * direction, 39 * direction, -40 * direction], 2)  # |k|^2 = 102,400, above float16's range
    values = torch.tensor([10, 20, 30], dtype=dtype).view(1, 1, 1, 3)
    found = read(keys, values, keys[:, :, :1], top_k)
    assert found.dtype == dtype
    # distances 0 and 64 make e^-8 : 1
    assert float(found) == pytest.approx((10 + 20 * math.exp(-8)) / (1 + math.exp(-8)), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    keys, values, queries = (tensor * 10 for tensor in drawn())
    probabilities = torch.rand(2, 3, 4)
    expected = similarity(keys, queries), read(keys, values, queries), read(keys, values, queries, 6)
    with torch.autocast("cpu", dtype):
        found = similarity(keys, queries), read(keys, values, queries), read(keys, values, queries, 6)
        assert all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
        assert aggregate(probabilities.to(dtype)).dtype == torch.float32
        halves = [tensor.to(dtype) for tensor in (keys, values, queries)]
        for top_k in (None, 6):
            exact = read(*(half.float() for half in halves), top_k).to(dtype)
            torch.testing.assert_close(read(*halves, top_k), exact, rtol=2e-2, atol=2e-1)
            assert read(*halves, top_k).dtype == dtype


@pytest.mark.parametrize("top_k", [None, 3])
def test_gradients(top_k):
    keys, values, queries = drawn(1, 2, 3, 5, 4)
    leaves = [tensor.requires_grad_() for tensor in (keys, values, queries)]
    read(*leaves, top_k).square().sum().backward()
    expected = [tensor.grad.clone() for tensor in leaves]
    again = [tensor.detach().double().requires_grad_() for tensor in leaves]
    distances = -(again[0][:, :, :, None] - again[2][:, :, None]).square().sum(1) / 2
    if top_k is not None:
        worst = distances.topk(top_k, 1).values.amin(1, keepdim=True)
        distances = distances.masked_fill(distances < worst, -torch.inf)
    torch.einsum("bkcn,bnq->bkcq", again[1], distances.softmax(1)).square().sum().backward()
    for gradient, tensor in zip(expected, again, strict=True):
        torch.testing.assert_close(gradient.double(), tensor.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("single", "expected"),
    [
        ([0.8, 0.6], [0.015564, 0.715953, 0.268482]),
        ([0.3, 0.2, 0.1], [0.562699, 0.237329, 0.138442, 0.061530]),
    ],
)
def test_aggregation_by_hand(single, expected):
    """E.g. (0.8, 0.6): background 0.08; odds 0.086957, 4 and 1.5, whose sum is 5.586957."""
    probabilities = torch.tensor(single).view(1, -1, 1, 1)
    log_odds = aggregate(probabilities)
    assert log_odds.shape == (1, len(expected), 1, 1)
    torch.testing.assert_close(log_odds.softmax(1).flatten(), torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_aggregation_at_the_ends_is_finite(dtype):
    probabilities = torch.tensor([[0.0, 1, 1, 0, 1e-9], [0, 0, 1, 1, 0.5]], dtype=dtype)[None].requires_grad_()
    log_odds = aggregate(probabilities)
    assert torch.isfinite(log_odds).all()
    # 1 - 1e-7 is a step of float32 from 1, so its odds are rounded
    assert float(log_odds.detach().abs().max()) == pytest.approx(math.log(1e7), abs=0.3)
    assert log_odds.softmax(1).argmax(1)[0].tolist()[:2] == [0, 1]
    log_odds.sum().backward()
    assert torch.isfinite(probabilities.grad).all()


def test_what_does_not_fit_is_refused():
    keys, values, queries = drawn()
    shapes = "must have shapes (B, CK, N), (B, K, CV, N) and (B, CK, Q), got (2, 4, 40), (2, 3, 5, 39) and (2, 4, 7)"
    with pytest.raises(ValueError, match=re.escape(shapes)):
        read(keys, values[..., :39], queries)
    for wrong in ((keys[:1], values, queries), (keys, values, queries[:, :3]), (keys, values[:, 0], queries)):
        with pytest.raises(ValueError, match="must have shapes"):
            read(*wrong)
    with pytest.raises(ValueError, match="at least 1 element to be read, got none; add a reference first"):
        read(keys[..., :0], values[..., :0], queries)
    with pytest.raises(ValueError, match="top_k must be at least 1, or None for all elements, got 0"):
        read(keys, values, queries, 0)
