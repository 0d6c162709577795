"""Instructive feature enhancement of one feature map."""

import pytest
import torch

from nnunet_ext.networks import InstructiveFeatureEnhancement, curvature_scores, entropy_scores


def features(shape=(2, 6, 7, 8), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 6, 7, 8), (2, 6, 5, 6, 7)])
@pytest.mark.parametrize("score", ["curvature", "entropy"])
def test_the_highest_channels_follow_the_raw_ones(shape, score):
    x = features(shape)
    enhance = InstructiveFeatureEnhancement(6, 0.5, score)
    scores = curvature_scores(x) if score == "curvature" else entropy_scores(x)
    expected = torch.stack(
        [sample[sorted(range(6), key=lambda c: -s[c])[:3]] for sample, s in zip(x, scores, strict=True)]
    )
    found = enhance(x)
    assert enhance.selected == 3
    assert torch.equal(found[:, :6], x)
    assert torch.equal(found[:, 6:], expected)


@pytest.mark.parametrize(
    ("ratio", "channels", "selected"), [(0.75, 64, 48), (0.29, 100, 28), (0, 4, 0), (1, 4, 4), (0.5, 3, 1)]
)
def test_number_of_selected_channels(ratio, channels, selected):
    enhance = InstructiveFeatureEnhancement(channels, ratio)
    assert enhance.selected == selected
    assert enhance(features((1, channels, 4, 4))).shape == (1, channels + selected, 4, 4)


def test_equal_scores_come_in_the_order_of_their_channels():
    x = features((1, 1, 6, 6)).expand(1, 40, 6, 6)
    for score in ("curvature", "entropy"):
        assert InstructiveFeatureEnhancement(40, 0.5, score).ranking(x)[0].tolist() == list(range(20))


def test_gradient_flows_through_the_selected_values_only():
    x = features().double().requires_grad_()
    enhance = InstructiveFeatureEnhancement(6, 0.5)
    enhance(x)[:, 6:].sum().backward()
    chosen = torch.zeros(2, 6).scatter_(1, enhance.ranking(x), 1.0)
    assert torch.equal(x.grad, chosen[..., None, None].expand_as(x).double())
    assert torch.autograd.gradcheck(enhance, features((1, 6, 4, 4)).double().requires_grad_())


@pytest.mark.parametrize("score", ["curvature", "entropy"])
@pytest.mark.parametrize("dims", [[2], [3], [2, 3]])
def test_mirroring_selects_the_same_channels(score, dims):
    x = features((1, 32, 9, 10))
    enhance = InstructiveFeatureEnhancement(32, 0.5, score)
    assert torch.equal(enhance.ranking(x.flip(dims)), enhance.ranking(x))


@pytest.mark.parametrize("score", ["curvature", "entropy"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_type_and_scores_in_float32(score, dtype):
    x = (700 * features()).to(dtype)
    enhance = InstructiveFeatureEnhancement(6, 0.5, score)
    assert enhance(x).dtype == dtype
    assert torch.isfinite(enhance.scores(x)).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(enhance.scores(x), enhance.scores(x.float()))


def test_nothing_is_stored_and_one_graph_compiles():
    for score in ("curvature", "entropy"):
        enhance = InstructiveFeatureEnhancement(6, 0.5, score)
        assert not enhance.state_dict()
        compiled = torch.compile(enhance, fullgraph=True, backend="eager")
        assert torch.equal(compiled(features()), enhance(features()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"score": "texture"}, "score must be one of curvature, entropy, got 'texture'"),
        ({"ratio": 1.5}, "ratio is a share of the channels from 0 to 1, got 1.5"),
        ({"bins": 1}, "bins must be at least 2 and step at least 1, got 1 and 1"),
        ({"step": 0}, "bins must be at least 2 and step at least 1, got 64 and 0"),
        ({"axes": (1,)}, r"curvature looks along at least two axes, got \[1\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        InstructiveFeatureEnhancement(6, **arguments)
    with pytest.raises(ValueError, match=r"features must have 6 channels, got shape \(2, 5, 7, 8\)"):
        InstructiveFeatureEnhancement(6)(features((2, 5, 7, 8)))
