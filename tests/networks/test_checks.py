"""What networks say of inputs that do not fit."""

import warnings

import pytest
import torch

from nnunet_ext.networks import AttentionGate, InstructiveFeatureEnhancement
from nnunet_ext.networks._checks import check_features, check_gating, check_image, divisors_of


def test_divisors_are_products_of_strides():
    assert divisors_of([[1, 1], [2, 2], [2, 1]]) == (4, 2)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 2, 15, 24), r"shape \(15, 24\) does not fit .* multiples of \(8, 4\); pad it to \(16, 24\)"),
        ((1, 2, 16, 22), r"shape \(16, 22\) does not fit .* multiples of \(8, 4\); pad it to \(16, 24\)"),
        ((1, 2, 17, 1), r"shape \(17, 1\) does not fit .* multiples of \(8, 4\); pad it to \(24, 4\)"),
        ((2, 2, 0, 24), r"shape \(0, 24\) does not fit .* pad it to \(8, 24\)"),
        ((2, 2, 4, 16, 24), r"images must have shape \(B, 2, H, W\), got \(2, 2, 4, 16, 24\)$"),
        ((2, 16, 24), r"got \(2, 16, 24\); add the axis of the batch by image\[None\]$"),
        ((1, 16, 24), r"got \(1, 16, 24\)$"),
        ((2, 3, 16, 24), r"images must have shape \(B, 2, H, W\), got \(2, 3, 16, 24\)$"),
        ((), r"got \(\)$"),
    ],
)
def test_images(shape, message):
    """On the device without memory, where nothing can be read but shapes."""
    with pytest.raises(ValueError, match=message):
        check_image(torch.empty(shape, device="meta"), 2, (8, 4))


def test_images_that_fit():
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        check_image(torch.empty(2, 2, 16, 24, dtype=dtype, device="meta"), 2, (8, 4))
    with pytest.raises(TypeError, match=r"of a floating-point type, got torch.int16; convert them with .float\(\)"):
        check_image(torch.empty(2, 2, 16, 24, dtype=torch.int16), 2, (8, 4))


def test_features():
    features = torch.empty(2, 4, 6, 5, device="meta")
    check_features(features, 4, 2)
    check_gating(features, features)
    with pytest.raises(ValueError, match=r"shape \(B, C, H, W\) or \(B, C, D, H, W\), got \(4, 6, 5\)"):
        check_features(features[0])
    with pytest.raises(ValueError, match=r"features must have shape \(B, 4, D, H, W\), got \(2, 4, 6, 5\)"):
        check_features(features, 4, 3)
    with pytest.raises(ValueError, match=r"features must have 3 channels, got shape \(2, 4, 6, 5\)"):
        check_features(features, 3)
    check_gating(features, features[:1])
    check_gating(features, features[..., :1, :1])
    for gating in (features[:, :1], features[..., :2], features[0]):
        with pytest.raises(ValueError, match=r"\(2, 4, 6, 5\), got \("):
            check_gating(features, gating)


def test_a_gate_can_be_scripted():
    gate = AttentionGate(4)
    features, gating = torch.randn(2, 2, 4, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(gate)
    torch.testing.assert_close(scripted(features, gating), gate(features, gating))


def test_enhancements_of_other_axes():
    with pytest.raises(
        ValueError, match=r"features must have shape \(B, 6, H, W\) or \(B, 6, D, H, W\), got \(2, 6, 7\)"
    ):
        InstructiveFeatureEnhancement(6, 0.0)(torch.zeros(2, 6, 7))
