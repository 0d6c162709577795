"""The space-time memory network: parameters, shapes, what is shared by objects, and what nnU-Net asks of networks."""

import copy
import io
import json
import re

import pytest
import torch
from networks import contract
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from nnunet_ext.networks import SpaceTimeNetwork
from nnunet_ext.networks.space_time import ResidualBlock

PATH = "nnunet_ext.networks.space_time.SpaceTimeNetwork"
NARROW = {
    "key_stages": [4, 4, 8],
    "key_blocks": [1, 1, 2],
    "value_stages": [4, 4, 8],
    "value_blocks": [1, 2, 1],
    "key_dim": 6,
    "value_dim": 10,
    "decoder_channels": [12, 8, 6],
}
SIZE = (32, 48)


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def narrow(channels=1, seed=0, **more):
    torch.manual_seed(seed)
    network = SpaceTimeNetwork(channels, 3, **NARROW | more)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():  # norms may begin at 0, and then hide what lies before them
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def sample(batch=2, channels=1, objects=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(batch, 3, channels, *SIZE, generator=generator)
    labels = torch.randint(0, objects + 1, (batch, *SIZE), generator=generator)
    masks = torch.stack([labels == label for label in range(1, objects + 1)], 1).float()
    return frames, masks, torch.ones(batch, objects, dtype=torch.bool)


def convolution_channels(stages, blocks, bottleneck):
    """Channels of all convolutions before a norm, which a network with biases has as many more parameters of."""
    last, total = 64, 64
    for number, (width, repeats) in enumerate(zip(stages, blocks, strict=True)):
        out = 4 * width if bottleneck else width
        total += repeats * (width + width + out if bottleneck else width + width)
        total += out if last != out or number else 0  # of the shortcut
        last = out
    return total


def test_parameters():
    """Those of the paper's Table 3 but for biases of convolutions before norms, which timm's ResNets have not."""
    with torch.device("meta"):
        network = SpaceTimeNetwork(3, 14)
    of_key, of_value = (
        convolution_channels((64, 128, 256), (3, 4, 6), True),
        convolution_channels((64, 128, 256), (2, 2, 2), False),
    )
    assert (of_key, of_value) == (15296, 2240)
    assert count(network.encoder) == 8558592 - of_key
    assert count(network.value_encoder, network.value_fusion) == 21668224 - of_value
    assert count(network.key_projection) == 589888
    assert count(network.query_value) == 4719104
    assert count(network.decoder) == 18880257
    assert count(network) + of_value == 54400769  # as with torchvision's ResNet-50
    assert count(network) + of_value + of_key == 54416065


def test_shapes_at_full_width():
    network = SpaceTimeNetwork(3, 14).eval()
    with torch.inference_mode():
        features = network.encode_key(torch.randn(2, 3, 64, 64))
        value = network.encode_value(features, torch.rand(2, 1, 64, 64))
    shapes = {name: tuple(getattr(features, name).shape) for name in ("key", "f16", "f8", "f4", "value")}
    expected = {"key": (2, 64, 4, 4), "f16": (2, 1024, 4, 4), "f8": (2, 512, 8, 8), "f4": (2, 256, 16, 16)}
    assert shapes == expected | {"value": (2, 512, 4, 4)}
    assert value.shape == (2, 1, 512, 4, 4)


def test_the_library_has_the_encoders_of_the_same_names():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = SpaceTimeNetwork(3, 14)
        libraries = timm.create_model("resnet50"), timm.create_model("resnet18")
    for own, library in zip((network.encoder, network.value_encoder), libraries, strict=True):
        there = {name: tensor.shape for name, tensor in library.state_dict().items()}
        here = {name: tensor.shape for name, tensor in own.state_dict().items()}
        different = {name for name, shape in here.items() if there[name] != shape}
        assert different == (set() if own is network.encoder else {"conv1.weight"})
        assert {name.split(".")[0] for name in there.keys() - here.keys()} == {"layer4", "fc"}


@pytest.mark.parametrize(
    "more", [{}, {"norm": "instance"}, contract.WINDOWS, {"key_blocks": [2, 1, 1]}, {"enlarge": 2}, {"enlarge": 8}]
)
def test_shapes_and_gradients(more):
    network, (frames, masks, present) = narrow(**more), sample()
    log_odds = network(frames, masks, present)
    assert log_odds.shape == (2, 2, 3, *SIZE)
    assert log_odds.dtype == torch.float32
    log_odds.softmax(2)[:, :, 1].square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_forward_is_what_its_parts_are():
    """Frame 1 from 0, frame 2 from 0 and what was found for 1, naively."""
    network, (frames, masks, present) = narrow().eval(), sample(batch=1)
    with torch.no_grad():
        log_odds = network(frames, masks, present)
        f0, f1, f2 = (network.encode_key(frames[:, t]) for t in range(3))
        memory_keys, memory_values = [f0.key], [network.encode_value(f0, masks)]
        for number, features in enumerate((f1, f2)):
            keys = torch.stack(memory_keys, 2).flatten(2)
            s = -(keys[:, :, :, None] - features.key.flatten(2)[:, :, None]).square().sum(1) / 6**0.5
            values = torch.stack(memory_values, 3).flatten(3)
            readout = torch.einsum("bkcn,bnq->bkcq", values, s.softmax(1)).unflatten(3, (2, 3))
            p = network.decode(features, readout).sigmoid()
            everything = torch.cat([(1 - p).prod(1, keepdim=True), p], 1).clamp(1e-7, 1 - 1e-7)
            odds = everything / (1 - everything)
            torch.testing.assert_close(log_odds[:, number], odds.log(), rtol=1e-3, atol=1e-4)
            memory_keys.append(features.key)
            memory_values.append(network.encode_value(features, (odds / odds.sum(1, keepdim=True))[:, 1:]))


def test_absent_objects_are_nowhere_and_change_nothing():
    network, (frames, masks, present) = narrow().eval(), sample()
    present[0, 1] = False
    with torch.no_grad():
        both = network(frames, masks, present)
        assert float(both[0].softmax(1)[:, 2].max()) < 1e-6
        one = network(frames[:1], masks[:1, :1], present[:1, :1])
        torch.testing.assert_close(both[:1, :, :2].softmax(2), one.softmax(2), rtol=1e-4, atol=1e-5)
        masks[0, 1] = 1 - masks[0, 1]
        assert torch.equal(network(frames, masks, present)[0], both[0])


def test_objects_and_samples_do_not_mix():
    """Many objects at once, or some at a time with the sum of the others, as the driver gives them."""
    network, (frames, masks, _) = narrow().eval(), sample(objects=5)
    with torch.no_grad():
        features = network.encode_key(frames[:, 0])
        values = network.encode_value(features, masks)
        assert values.shape == (2, 5, 10, 2, 3)
        pairs = torch.stack([masks, masks.sum(1, keepdim=True) - masks], 2)[:, 1:3]
        torch.testing.assert_close(network.encode_value(features, pairs), values[:, 1:3])
        logits = network.decode(features, values)
        assert logits.shape == (2, 5, *SIZE)
        torch.testing.assert_close(network.decode(features, values[:, 1:3]), logits[:, 1:3])
        alone = type(features)(*(part[1:] for part in features))
        torch.testing.assert_close(network.decode(alone, values[1:]), logits[1:], rtol=1e-4, atol=1e-5)


def test_convolutions_of_shared_maps_are_those_of_joined_maps():
    torch.manual_seed(0)
    block, own, shared = ResidualBlock(3, 4, 5), torch.randn(6, 3, 7, 8), torch.randn(2, 5, 7, 8)
    joined = torch.cat([own, shared.repeat_interleave(3, 0)], 1)

    def convolved(part, x):
        return functional.conv2d(x, torch.cat([part.own.weight, part.shared.weight], 1), part.own.bias, padding=1)

    inner = convolved(block.conv1, joined.relu())
    expected = block.conv2(inner.relu()) + convolved(block.shortcut, joined)
    torch.testing.assert_close(block(own, shared), expected, rtol=1e-4, atol=1e-5)
    assert count(block) == count(nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3), nn.Conv2d(4, 4, 3))
    bound = (8 * 9) ** -0.5  # of torch's own initial weights of one convolution
    assert all(0.9 * bound < part.weight.abs().max() <= bound for part in (block.conv1.own, block.conv1.shared))


def test_the_position_of_the_slice_is_not_looked_at():
    network, (frames, masks, present) = narrow(position=True).eval(), sample(channels=2)
    assert network.input_channels == 2
    with torch.no_grad():
        log_odds = network(frames, masks, present)
        frames[:, :, 1] += 5
        assert torch.equal(network(frames, masks, present), log_odds)


def test_windows_are_made_in_the_network():
    network, (frames, masks, present) = narrow(**contract.WINDOWS).eval(), sample()
    assert network.encoder.conv1.in_channels == 3
    with torch.no_grad():
        assert network.encode_key(frames[:, 0]).image.shape[1] == 3
        high = frames.clone()
        high[frames > 1.3] = 3  # above all windows
        torch.testing.assert_close(network(high, masks, present), network(frames, masks, present))


def test_without_enlargement_nothing_is_resized():
    network, (frames, masks, present) = narrow().eval(), sample()
    explicit = narrow(enlarge=1).eval()
    heads = []
    network.decoder.seg_layers[0].register_forward_hook(lambda module, given, made: heads.append(made))
    with torch.no_grad():
        features = network.encode_key(frames[:, 0])
        assert features.image.data_ptr() == frames[:, 0].data_ptr()
        values = network.encode_value(features, masks)
        given = torch.stack([masks, masks.flip(1)], 2)  # of two objects, the other one is the sum of all others
        assert torch.equal(network.encode_value(features, given), values)
        logits = network.decode(features, values)
        expected = functional.interpolate(heads[0], scale_factor=4, mode="bilinear")[:, 0].unflatten(0, (2, 2))
        assert torch.equal(logits, expected)
        assert torch.equal(explicit(frames, masks, present), network(frames, masks, present))


def enlarged(x, factor):
    """``(B, C, H, W)`` as a network enlarges it, by hand."""
    return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def test_enlarging_is_enlarging_by_hand():
    """Of the doubled image; two pixels side by side of logits that were enlarged four times have the mean of twice."""
    inner, network, (frames, masks, _) = narrow().eval(), narrow(enlarge=2).eval(), sample()
    assert network.state_dict().keys() == inner.state_dict().keys()
    with torch.no_grad():
        features, by_hand = network.encode_key(frames[:, 0]), inner.encode_key(enlarged(frames[:, 0], 2))
        assert features.key.shape == (2, 6, 4, 6)
        for found, expected in zip(features, by_hand, strict=True):
            assert torch.equal(found, expected)
        values = network.encode_value(features, masks)
        assert torch.equal(values, inner.encode_value(by_hand, enlarged(masks, 2)))
        pairs = torch.stack([masks, masks.sum(1, keepdim=True) - masks], 2)
        torch.testing.assert_close(network.encode_value(features, pairs), values)
        logits = network.decode(features, values)
        assert logits.shape == (2, 2, *SIZE)
        torch.testing.assert_close(logits, functional.avg_pool2d(inner.decode(by_hand, values), 2))


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16])
def test_logits_have_the_size_of_the_image_whatever_it_is_enlarged_by(factor):
    """From 4 on the head's map is as large as the image, or several of its pixels are one."""
    network, (frames, masks, present) = narrow(enlarge=factor).eval(), sample(batch=1)
    heads = []
    network.decoder.seg_layers[0].register_forward_hook(lambda module, given, made: heads.append(made))
    with torch.no_grad():
        features = network.encode_key(frames[:, 0])
        assert features.image.shape == (1, 1, 32 * factor, 48 * factor)
        assert features.key.shape == (1, 6, 2 * factor, 3 * factor)
        logits = network.decode(features, network.encode_value(features, masks))
        assert logits.shape == (1, 2, *SIZE)
        assert heads[0].shape == (2, 1, 8 * factor, 12 * factor)
        if factor >= 4:
            own = heads[0].unflatten(3, (48, -1)).unflatten(2, (32, -1)).mean((3, 5))
            torch.testing.assert_close(logits, own.transpose(0, 1))
        assert network(frames, masks, present).shape == (1, 2, 3, *SIZE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(dtype):
    with torch.autocast("cpu", dtype):
        log_odds = narrow()(*sample())
    assert log_odds.dtype == torch.float32
    assert torch.isfinite(log_odds).all()
    log_odds.square().mean().backward()


def test_built_from_plans_as_nnunet_does():
    written = json.loads(json.dumps(NARROW))
    torch.manual_seed(0)
    network = get_network_from_plans(PATH, written, [], 1, 3, deep_supervision=True)
    torch.manual_seed(0)
    by_hand = SpaceTimeNetwork(1, 3, **NARROW)
    assert network.decoder.deep_supervision
    network.decoder.deep_supervision = False
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), by_hand.parameters(), strict=True))
    assert network(*sample()).shape == (2, 2, 3, *SIZE)


def test_weights_travel_through_files_and_copies():
    network, given, file = narrow().eval(), sample(), io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = narrow(seed=5).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(other(*given), network(*given))
        assert torch.equal(copy.deepcopy(network)(*given), network(*given))


@pytest.mark.parametrize("factor", [1, 2])
def test_size_of_the_feature_maps_is_what_is_made(factor):
    network, given, made = narrow(enlarge=factor).eval(), sample(batch=1), []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: made.append(output.numel()))
        for module in network.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        network(*given)
    for hook in hooks:
        hook.remove()
    assert network.compute_conv_feature_map_size(SIZE) == sum(made)
    larger = [side * factor for side in SIZE]
    assert narrow().compute_conv_feature_map_size(larger) == sum(made)  # that of enlarged images


def test_built_where_tensors_have_no_values():
    with FakeTensorMode():
        assert count(SpaceTimeNetwork(1, 3, **NARROW)) == count(narrow())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("factor", [1, 8])
def test_compiles(factor):
    network, given = narrow(enlarge=factor).eval(), sample()
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), network(*given))


@pytest.mark.gpu
def test_half_precision_on_a_gpu():
    network, given = narrow().cuda(), [tensor.cuda() for tensor in sample()]
    with torch.autocast("cuda", torch.float16):
        log_odds = network(*given)
    log_odds.square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_a_single_image_is_refused():
    """As nnU-Net's predictor gives it."""
    with pytest.raises(ValueError, match="a propagation model segments nothing alone") as error:
        narrow()(torch.randn(1, 1, *SIZE))
    assert "nnUNetv2_predict ... --propagate MODEL" in str(error.value)
    assert "nnUNetv2_ext propagate" in str(error.value)


def test_what_does_not_fit_is_refused():
    network, (frames, masks, present) = narrow(), sample()
    with pytest.raises(ValueError, match=re.escape("frames must have shape (B, 3, C, H, W), got (2, 2, 1, 32, 48)")):
        network(frames[:, :2], masks, present)
    with pytest.raises(ValueError, match="an image of shape .* does not fit this network, whose axes"):
        network(frames[..., :40], masks[..., :40], present)
    shapes = re.escape("shapes (2, K, 32, 48) and (2, K), at least one object, got (2, 2, 32, 32) and (2, 2)")
    with pytest.raises(ValueError, match=shapes):
        network(frames, masks[..., :32], present)
    for wrong in ((masks[:, :0], present[:, :0]), (masks, present[:, :1]), (masks[:1], present[:1])):
        with pytest.raises(ValueError, match="at least one object"):
            network(frames, *wrong)
    with pytest.raises(TypeError, match="floating-point type"):
        network(frames.to(torch.uint8), masks, present)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key_stages": (4, 8)}, "key_stages must have 3 entries of at least 1, got [4, 8]"),
        ({"value_blocks": (1, 0, 1)}, "value_blocks must have 3 entries of at least 1, got [1, 0, 1]"),
        ({"key_dim": 0}, "key_dim must be at least 1, got 0"),
        ({"norm": "layer"}, "norm must be one of batch, instance, got 'layer'"),
        ({"enlarge": 3}, "enlarge must be one of 1, 2, 4, 8, 16, got 3"),
        ({"enlarge": 0}, "enlarge must be one of 1, 2, 4, 8, 16, got 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        narrow(**arguments)
