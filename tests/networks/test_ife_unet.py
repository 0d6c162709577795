"""U-Nets with enhanced skips, built from plans."""

import json

import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ext.networks.ife_unet import zero_added_channels


def build(dimensions=3, residual=False, enhanced=True, deep_supervision=True, seed=0, **more):
    """Build through nnU-Net from plans that went through JSON."""
    strides = [[1] * dimensions] + [[2] * dimensions] * 3
    if dimensions == 3:
        strides[1] = [1, 2, 2]
    kind = "ResidualEncoderUNet" if residual else "PlainConvUNet"
    blocks = {"n_blocks_per_stage": [1, 2, 2, 2]} if residual else {"n_conv_per_stage": [2] * 4}
    kwargs = {
        "n_stages": 4,
        "features_per_stage": [4, 8, 12, 16],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * 4,
        "strides": strides,
        **blocks,
        "n_conv_per_stage_decoder": [1, 1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **more,
    }
    name = (
        f"nnunet_ext.networks.ife_unet.IFE{kind}"
        if enhanced
        else f"dynamic_network_architectures.architectures.unet.{kind}"
    )
    kwargs = json.loads(json.dumps(kwargs))
    torch.manual_seed(seed)
    needed = ["conv_op", "norm_op", "dropout_op", "nonlin"]
    return get_network_from_plans(name, kwargs, needed, 2, 3, deep_supervision=deep_supervision)


def image(dimensions=3, batch=2):
    shape = (16, 32, 16)[-dimensions:]
    return torch.randn((batch, 2, *shape), generator=torch.Generator().manual_seed(1))


KINDS = pytest.mark.parametrize(("dimensions", "residual"), [(2, False), (3, False), (2, True), (3, True)])


@KINDS
@pytest.mark.parametrize("score", ["curvature", "entropy"])
def test_shapes_and_gradients(dimensions, residual, score):
    network = build(dimensions, residual, ife_score=score)
    outputs = network(image(dimensions))
    plain = build(dimensions, residual, enhanced=False)(image(dimensions))
    assert [tuple(o.shape) for o in outputs] == [tuple(o.shape) for o in plain]
    sum(output.square().sum() for output in outputs).backward()
    # the residual blocks' last norm begins with zeros, so that what lies before it has gradients of 0, as in nnU-Net
    behind_zero = {f"conv{n}" for n in (1, 2)} if residual else set()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or behind_zero & set(name.split(".")), name
    network.decoder.deep_supervision = False
    assert torch.equal(network(image(dimensions)), outputs[0])


@KINDS
def test_same_weights_either_way(dimensions, residual):
    with_scales, without = (build(dimensions, residual, deep_supervision=d).state_dict() for d in (True, False))
    assert list(with_scales) == list(without)


@KINDS
def test_only_the_matching_decoder_convolutions_are_wider(dimensions, residual):
    enhanced, plain = build(dimensions, residual), build(dimensions, residual, enhanced=False)
    changed = {
        k: v.shape[1] - plain.state_dict()[k].shape[1]
        for k, v in enhanced.state_dict().items()
        if v.shape != plain.state_dict()[k].shape
    }
    # stage 1 has 8 channels and 6 of them twice, stage 2 has 12 and 6 of them twice
    expected = {f"decoder.stages.{n}.convs.0.{name}.weight": 6 for n in (0, 1) for name in ("conv", "all_modules.0")}
    assert changed == expected == enhanced.added_input_channels
    assert list(enhanced.state_dict()) == list(plain.state_dict())


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(dtype):
    with torch.autocast("cpu", dtype):
        assert all(torch.isfinite(output).all() for output in build()(image()))


def test_compiles():
    network = build(deep_supervision=False)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image()), network(image()))


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
