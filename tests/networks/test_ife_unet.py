"""U-Nets with enhanced skips, beyond what test_network_contract.py asks of every network."""

from functools import partial

import pytest
import torch
from networks import contract

from nnunet_ext.networks.ife_unet import zero_added_channels

STOCK = "dynamic_network_architectures.architectures.unet."


def build(dimensions=3, residual=False, enhanced=True, **more):
    """An enhanced network, or nnU-Net's own with the same arguments."""
    name = "enhanced residual" if residual else "enhanced plain"
    stock = STOCK + ("ResidualEncoderUNet" if residual else "PlainConvUNet")
    return contract.build(name, dimensions, class_path=None if enhanced else stock, **more)


image = partial(contract.image, "enhanced plain")

KINDS = pytest.mark.parametrize(("dimensions", "residual"), [(2, False), (3, False), (2, True), (3, True)])


@KINDS
def test_only_the_matching_decoder_convolutions_are_wider(dimensions, residual):
    network = build(dimensions, residual)
    enhanced, plain = network.state_dict(), build(dimensions, residual, enhanced=False).state_dict()
    changed = {k: v.shape[1] - plain[k].shape[1] for k, v in enhanced.items() if v.shape != plain[k].shape}
    # stage 1 has 8 channels and 6 of them twice, stage 2 has 12 and 6 of them twice
    expected = {f"decoder.stages.{n}.convs.0.{name}.weight": 6 for n in (0, 1) for name in ("conv", "all_modules.0")}
    assert changed == expected == network.added_input_channels
    assert list(enhanced) == list(plain)


@KINDS
def test_without_ratio_it_is_the_plain_network(dimensions, residual):
    network, plain = build(dimensions, residual, ife_ratios=[0, 0]), build(dimensions, residual, enhanced=False)
    plain.load_state_dict(network.state_dict())
    for one, other in zip(network(image(dimensions)), plain(image(dimensions)), strict=True):
        assert torch.equal(one, other)


@KINDS
def test_plain_weights_with_zeros_are_the_plain_function(dimensions, residual):
    network, plain = build(dimensions, residual, seed=1), build(dimensions, residual, enhanced=False)
    network.load_state_dict(zero_added_channels(plain.state_dict(), network.added_input_channels))
    for one, other in zip(network(image(dimensions)), plain(image(dimensions)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_encoder_is_untouched_and_samples_do_not_mix():
    network = build()
    x = image()
    seen = []
    network.encoder.register_forward_hook(lambda *a: seen.append([s.clone() for s in a[2]]))
    network(x)
    network.enhancements.clear()
    for one, other in zip(seen[0], network.encoder(x), strict=True):
        assert torch.equal(one, other)
    network = build()
    torch.testing.assert_close(network(x)[0][:1], network(x[:1])[0], rtol=1e-4, atol=1e-5)


@KINDS
def test_size_of_the_feature_maps(dimensions, residual):
    size = image(dimensions).shape[2:]
    enhanced, plain = build(dimensions, residual), build(dimensions, residual, enhanced=False)
    half = [n // 2 for n in size] if dimensions == 2 else [size[0], size[1] // 2, size[2] // 2]
    quarter = [n // 2 for n in half]
    added = 6 * torch.tensor(half).prod().item() + 6 * torch.tensor(quarter).prod().item()
    assert enhanced.compute_conv_feature_map_size(size) == plain.compute_conv_feature_map_size(size) + added


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ife_stages": [3], "ife_ratios": [0.5]}, r"stages must lie between 0 and 2, .* got \[3\]"),
        (
            {"ife_stages": [1], "ife_ratios": [0.5, 0.5]},
            r"one entry of axes are needed for each of the stages \[1\], got \[0.5, 0.5\] and",
        ),
        ({"ife_stages": [1, 1]}, r"each stage can be enhanced once, got \[1, 1\]"),
    ],
)
def test_bad_arguments(more, message):
    with pytest.raises(ValueError, match=message):
        build(**more)
