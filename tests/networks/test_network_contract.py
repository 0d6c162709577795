"""What every network of the table in contract.py keeps to."""

import copy
import io
import json
import pickle
import pydoc
import re
import warnings

import pytest
import torch
from networks.contract import (
    CLASSES,
    EACH,
    EACH_COMPILED,
    EACH_IN_EACH_DIMENSION,
    EACH_VARIANT_IN_EACH_DIMENSION,
    IMAGE_CHANNELS,
    NETWORKS,
    arguments,
    as_list,
    biases_before_norms,
    build,
    divisors,
    feature_map_size,
    has_plans,
    image,
    output_shapes,
    outputs_of,
)
from torch import nn


@EACH_VARIANT_IN_EACH_DIMENSION
def test_shapes_and_gradients(name, variant, dimensions):
    """With deep supervision; a parameter that has no influence would never be trained."""
    network, x = build(name, dimensions, **NETWORKS[name].variants[variant]), image(name, dimensions)
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():  # norms may begin at 0, and then hide what lies before them
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    outputs = as_list(network(x))
    assert [tuple(output.shape) for output in outputs] == output_shapes(name, dimensions)
    assert len({output.sum().item() for output in outputs}) == len(outputs)
    sum(output.square().sum() for output in outputs).backward()
    without = biases_before_norms(network, x)
    assert without or not has_plans(name)
    assert not any(head.bias is bias for head in network.decoder.seg_layers for bias in without)
    for key, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert NETWORKS[name].has_parameters_without_use, key
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0 or any(parameter is bias for bias in without), key


@EACH_IN_EACH_DIMENSION
def test_deep_supervision_is_switched_as_nnunet_does(name, dimensions):
    network, x = build(name, dimensions), image(name, dimensions)
    first = outputs_of(network, x)[0]
    network.decoder.deep_supervision = False
    assert torch.equal(outputs_of(network, x)[0], first)
    without = build(name, dimensions, deep_supervision=False)
    assert torch.equal(outputs_of(without, x)[0], first)
    assert list(without.state_dict()) == list(network.state_dict())


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite(name, dtype):
    with torch.autocast("cpu", dtype):
        outputs = outputs_of(build(name), image(name))
    assert all(torch.isfinite(output).all() for output in outputs)


@EACH_IN_EACH_DIMENSION
def test_eval_is_deterministic_and_samples_do_not_mix(name, dimensions):
    network, x = build(name, dimensions).eval(), image(name, dimensions)
    outputs = outputs_of(network, x)
    for first, again in zip(outputs, outputs_of(network, x), strict=True):
        assert torch.equal(first, again)
    for first, alone in zip(outputs, outputs_of(network, x[1:]), strict=True):
        torch.testing.assert_close(first[1:], alone, rtol=1e-4, atol=1e-5)


@EACH
def test_weights_travel_through_a_file(name):
    network, x, file = build(name).eval(), image(name), io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = build(name, seed=5).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    for one, again in zip(outputs_of(network, x), outputs_of(other, x), strict=True):
        assert torch.equal(one, again)


@EACH
def test_copies_and_pickles_are_equal(name):
    network, x = build(name, 2).eval(), image(name, 2)
    others = [copy.deepcopy(network)]
    if NETWORKS[name].pickles:
        others.append(pickle.loads(pickle.dumps(network)))
    for other in others:
        for one, again in zip(outputs_of(network, x), outputs_of(other, x), strict=True):
            assert torch.equal(one, again)


@EACH_IN_EACH_DIMENSION
def test_plans_name_the_class_and_all_its_arguments(name, dimensions):
    path, written = NETWORKS[name].class_path, arguments(name, dimensions)
    cls = pydoc.locate(path)
    assert f"{cls.__module__}.{cls.__qualname__}" == path
    assert json.loads(json.dumps(written)) == written
    called = {key: pydoc.locate(value) if str(value).startswith("torch.") else value for key, value in written.items()}
    torch.manual_seed(0)
    by_hand = cls(input_channels=IMAGE_CHANNELS, num_classes=CLASSES, **called)
    by_hand.apply(getattr(cls, "initialize", lambda module: None))
    network = build(name, dimensions)
    assert type(network) is cls
    assert list(by_hand.state_dict()) == list(network.state_dict())
    assert [p.shape for p in by_hand.parameters()] == [p.shape for p in network.parameters()]


@EACH_IN_EACH_DIMENSION
def test_size_of_the_feature_maps_is_what_is_made(name, dimensions):
    network, x = build(name, dimensions), image(name, dimensions)
    assert network.compute_conv_feature_map_size(tuple(x.shape[2:])) == feature_map_size(network, x)


@EACH_IN_EACH_DIMENSION
def test_images_that_do_not_fit_are_refused(name, dimensions):
    network, x, wanted = build(name, dimensions), image(name, dimensions), divisors(name, dimensions)
    size = tuple(x.shape[2:])
    for axis in [axis for axis, divisor in enumerate(wanted) if divisor > 1]:
        narrow = x.narrow(axis + 2, 0, size[axis] - 1)
        message = f"an image of shape {tuple(narrow.shape[2:])} does not fit this network, whose axes must be multiples"
        with pytest.raises(ValueError, match=re.escape(f"{message} of {wanted}; pad it to {size}")):
            network(narrow)
    letters = "D, H, W" if dimensions == 3 else "H, W"
    shape = re.escape(f"images must have shape (B, {IMAGE_CHANNELS}, {letters}), got ")
    for other, remedy in ((x[:, :1], ""), (x[..., None], ""), (x[0], "; add the axis of the batch by image[None]")):
        with pytest.raises(ValueError, match=shape + re.escape(f"{tuple(other.shape)}{remedy}") + "$"):
            network(other)
    with pytest.raises(TypeError, match=r"floating-point type, got torch.uint8; convert them with .float\(\)"):
        network(x.to(torch.uint8))


@EACH
def test_small_images(name):
    network, wanted = build(name, 2).eval(), divisors(name, 2)
    size = (wanted[0], 2 * wanted[1])  # instance norms need more than one voxel
    assert outputs_of(network, torch.zeros(1, IMAGE_CHANNELS, *size))[0].shape == (1, CLASSES, *size)
    with pytest.raises(ValueError, match=re.escape(f"pad it to {wanted}")):
        network(torch.zeros(1, IMAGE_CHANNELS, 0, wanted[1]))


@EACH_COMPILED
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shapes_are_not_looked_at_while_tracing(name):
    """A look at a shape warns, because it would be part of no trace."""
    network, x = build(name, 2, deep_supervision=False).eval(), image(name, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", torch.jit.TracerWarning)
        traced = torch.jit.trace(network, x, check_trace=False)
    assert not [warning for warning in caught if warning.filename.endswith("_checks.py")]
    torch.testing.assert_close(traced(x), network(x))


@EACH_COMPILED
def test_compiles(name):
    network, x = build(name), image(name)
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for one, other in zip(as_list(compiled(x)), as_list(network(x)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@EACH
def test_inductor_trains_the_same(name):
    gradients = []
    torch._dynamo.reset()  # the limit of compiled versions counts over all tests
    for wrap in (lambda network: network, torch.compile):
        network = build(name, 2)
        sum(output.square().mean() for output in as_list(wrap(network)(image(name, 2)))).backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@EACH
def test_half_precision_on_a_gpu(name):
    network, scaler = build(name).cuda(), torch.amp.GradScaler("cuda")
    with torch.autocast("cuda", torch.float16):
        outputs = as_list(network(image(name).cuda()))
    scaler.scale(sum(output.float().square().mean() for output in outputs)).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())


def test_every_network_of_the_package_is_in_the_table():
    from nnunet_ext.training.architecture import OWN_NETWORKS

    of_other_inputs = {"nnunet_ext.networks.space_time.SpaceTimeNetwork"}  # in test_space_time.py
    assert set(OWN_NETWORKS) - of_other_inputs == {network.class_path for network in NETWORKS.values()}
    assert all(issubclass(pydoc.locate(path), nn.Module) for path in OWN_NETWORKS)
