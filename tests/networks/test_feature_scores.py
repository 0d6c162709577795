"""Curvature and entropy of feature maps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import naive_ife

from nnunet_ext.networks import curvature_scores, entropy_scores, feature_scores

SHAPES = [(2, 3, 7, 6), (2, 3, 5, 6, 4)]


def grid():
    """1 x 16 x 8 x 8: sin(0.37 (c + 1) n) (c + 1) / 16, n = 8 row + column."""
    n, c = torch.arange(64, dtype=torch.float64), torch.arange(1, 17, dtype=torch.float64)[:, None]
    return (torch.sin(0.37 * c * n) * c / 16).reshape(1, 16, 8, 8)


def features(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("image", "total"),
    [
        (lambda y, x: (y == 2) * (x == 2), 2.5),
        (lambda y, x: x, 0.0),
        (lambda y, x: x**2, 6.0),
        (lambda y, x: x**2 + y**2, 12.0),
        (lambda y, x: x * y, 0.0),
        (lambda y, x: x >= 3, 1.5),
    ],
)
def test_curvature_of_simple_maps(image, total):
    size = 5 if total == 2.5 else 6
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    score = curvature_scores((image(y, x) * torch.ones(size, size))[None, None])
    assert score.item() * (size - 2) ** 2 == pytest.approx(total, abs=1e-5)


def test_curvature_of_the_golden_tensor():
    expected = [1.0766, 0.3431, 4.9670, 2.8136, 11.2647, 8.7596, 18.0211, 16.4912]
    expected += [19.6210, 24.8767, 16.3074, 26.3961, 9.6304, 22.7701, 2.8148, 16.1329]
    score = curvature_scores(grid())
    np.testing.assert_allclose(score[0] * 36, expected, atol=6e-5)
    assert score.sort(1, descending=True).indices[0, :8].tolist() == [11, 9, 13, 8, 6, 7, 10, 15]


def test_curvature_in_3d_by_hand():
    ramp = torch.arange(5.0).reshape(1, 1, 5, 1, 1).expand(1, 1, 5, 5, 5)
    assert curvature_scores(ramp).item() == pytest.approx(0, abs=1e-6)
    assert curvature_scores(ramp**2).item() == pytest.approx(0.25, rel=1e-6)
    impulse = torch.zeros(1, 1, 5, 5, 5)
    impulse[..., 2, 2, 2] = 1
    # one centre, six faces of 5/24, twelve edges of 1/48, corners 0
    assert curvature_scores(impulse).item() * 27 == pytest.approx(1 + 6 * 5 / 24 + 12 / 48, rel=1e-6)


def test_packed_entropy_of_the_golden_tensor():
    expected = [2.8248, 3.1382, 3.4419, 3.5819, 3.6219, 3.6084, 3.9570, 3.9970]
    expected += [3.7370, 3.8721, 3.9645, 4.2121, 4.1521, 4.1521, 3.9645, 4.1645]
    np.testing.assert_allclose(entropy_scores(grid(), packed=True)[0], expected, atol=6e-5)
    np.testing.assert_allclose(entropy_scores(grid().float(), packed=True)[0], expected, atol=6e-5)


def test_joint_entropy_of_the_golden_tensor():
    expected = [1.9874, 4.0269, 3.9976, 4.4274, 4.0142, 4.7329, 4.7089, 5.1034]
    expected += [5.1952, 5.2124, 5.4436, 5.5195, 5.6952, 5.6757, 5.6757, 5.8750]
    np.testing.assert_allclose(entropy_scores(grid())[0], expected, atol=6e-5)


def test_packed_entropy_depends_on_the_batch_and_the_joint_one_does_not():
    n, c = torch.arange(36, dtype=torch.float64), torch.arange(1, 17, dtype=torch.float64)[:, None]
    sample = torch.sin(0.1 * c * n).reshape(1, 16, 6, 6)
    both = torch.cat([sample, 10 * sample])
    assert entropy_scores(sample, packed=True)[0, 0].item() == pytest.approx(3.3125, abs=1e-4)
    assert entropy_scores(both, packed=True)[0, 0].item() == pytest.approx(2.6403, abs=1e-4)
    assert torch.equal(entropy_scores(both)[:1], entropy_scores(sample))
    assert not torch.allclose(entropy_scores(both, packed=True)[:1], entropy_scores(sample, packed=True))


def test_packed_entropy_of_constant_maps():
    constant = torch.full((1, 16, 4, 4), 0.5, dtype=torch.float64)
    constant[:, 0] = 0
    found = entropy_scores(constant, packed=True)[0]
    assert found[0].item() == pytest.approx(0.519967, abs=1e-6)
    np.testing.assert_allclose(found[1:], 0.880535, atol=1e-6)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 2, 3, 9, 3), (2, 2, 1, 6, 5), (1, 2, 2, 6, 5)])
@pytest.mark.parametrize("axes", [None, "last two"])
def test_scores_equal_naive_versions(shape, axes):
    x = features(shape)
    axes = None if axes is None else (len(shape) - 4, len(shape) - 3)
    np.testing.assert_allclose(curvature_scores(x, axes), naive_ife.curvature(x.numpy(), axes), rtol=1e-4)
    x = x.double()  # a value on the border of two bins falls where rounding puts it
    for step in (1, 2):
        expected = naive_ife.joint_entropy(x.numpy(), 16, axes, step)
        np.testing.assert_allclose(entropy_scores(x, 16, axes, step), expected, rtol=1e-6, atol=1e-12)


def test_packed_entropy_equals_naive_version():
    for shape in SHAPES:
        x = features(shape).double()
        np.testing.assert_allclose(entropy_scores(x, packed=True), naive_ife.packed_entropy(x.numpy()), rtol=1e-6)


SCORES = {
    "curvature": curvature_scores,
    "entropy": entropy_scores,
    "every second": lambda x: entropy_scores(x, step=2),
    "packed": lambda x: entropy_scores(x, packed=True),
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from(SHAPES))
def test_permuted_channels_have_permuted_scores(score, seed, shape):
    x = features(shape, seed)
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))
    assert torch.equal(score(x[:, order]), score(x)[:, order])


@pytest.mark.parametrize("name", ["curvature", "entropy", "every second"])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_neighbours_change_nothing(name, shape):
    x = features(shape)
    assert torch.equal(SCORES[name](x)[:1], SCORES[name](x[:1]))


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("constant", [0.0, 0.5, -2.0])
def test_a_constant_channel_is_lowest_and_a_textured_one_highest(score, shape, constant):
    x = features((1, 3, *(2 * n for n in shape[2:])))
    x[:, 0] = constant
    ramp = torch.linspace(-1, 1, x.shape[-1]).expand_as(x[0, 1])
    x[:, 1] = ramp + 1e-3 * x[:, 1]
    assert score(x)[0].argsort().tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["curvature", "entropy", "every second"])
def test_2d_equals_3d_with_one_slice(name):
    x = features(SHAPES[0])
    torch.testing.assert_close(SCORES[name](x[:, :, None]), SCORES[name](x), rtol=1e-6, atol=1e-7)
    in_plane = features(SHAPES[1])
    slices = torch.stack([curvature_scores(one) for one in in_plane.unbind(2)]).mean(0)
    torch.testing.assert_close(curvature_scores(in_plane, (1, 2)), slices, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(score, dtype):
    x = (700 * features(SHAPES[1])).to(dtype)
    assert score(x).dtype == torch.float32
    assert torch.equal(score(x), score(x.float()))


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_no_gradient_and_one_graph(score):
    x = features(SHAPES[1]).requires_grad_()
    assert not score(x).requires_grad
    torch._dynamo.reset()
    compiled = torch.compile(score, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), score(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_values_that_are_not_finite_do_not_stop_a_training(score, value):
    """A half precision step may overflow; the gradient scaler then skips it."""
    x = features(SHAPES[1])
    x[0, 0, 0, 0, 0] = value
    assert score(x).shape == (2, 3)


def test_a_positive_factor_does_not_change_the_entropy():
    x = features(SHAPES[1]).double()
    torch.testing.assert_close(entropy_scores(8 * x), entropy_scores(x))


def test_features_are_not_changed():
    x = features(SHAPES[1])
    for score in SCORES.values():
        score(x)
    assert torch.equal(x, features(SHAPES[1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: curvature_scores(torch.zeros(2, 3, 4)), r"features must have shape .* got \(2, 3, 4\)"),
        (lambda: curvature_scores(torch.zeros(2, 3, 4, 4), (0, 2)), r"different ones of 0 to 1, got \[0, 2\]"),
        (lambda: curvature_scores(torch.zeros(2, 3, 4, 4), (1, 1)), r"different ones of 0 to 1, got \[1, 1\]"),
        (lambda: entropy_scores(torch.zeros(2, 3, 4, 4), bins=1), "bins must be at least 2 and step at least 1, got 1"),
        (lambda: entropy_scores(torch.zeros(2, 3, 4, 4), step=0), "got 64 and 0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", sorted(SCORES))
def test_blocks_change_nothing(monkeypatch, name):
    x = features((2, 5, 6, 7, 8))
    whole = SCORES[name](x)
    monkeypatch.setattr(feature_scores, "_BLOCK", {"cpu": 2 * 6 * 7 * 8})
    assert torch.equal(SCORES[name](x), whole)


# elsewhere sums have another order, and a value at the border of a bin may fall into the next one
NEAR = {"curvature": 1e-5, "entropy": 0.02, "every second": 0.02, "packed": 0.02}


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(SCORES))
@pytest.mark.parametrize("block", [1, 2**25])
def test_a_gpu_finds_the_same(monkeypatch, name, block):
    monkeypatch.setattr(feature_scores, "_BLOCK_ELSEWHERE", block)
    x = features((2, 16, 12, 20, 16))
    torch.testing.assert_close(SCORES[name](x.cuda()).cpu(), SCORES[name](x), rtol=0, atol=NEAR[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SCORES))
def test_inductor_finds_the_same(name):
    x = features((2, 16, 12, 20, 16))
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    compiled = torch.compile(SCORES[name], fullgraph=True)
    torch.testing.assert_close(compiled(x), SCORES[name](x), rtol=0, atol=NEAR[name])
