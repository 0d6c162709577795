"""The plain U-Net of the reference module: what it adds to nnU-Net's, and that it adds nothing unasked."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from networks.contract import CLASSES, build, outputs_of

from nnunet_ext.networks.reference_unet import ReferenceUNet, channels_given

WINDOWS = [[-150, 250], [-1350, 225], [-500, 1300]]
STOCK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def network(**more):
    return build("reference", 2, windows=WINDOWS, hounsfield_channels=[0], position=True, **more)


def slices(position=(0.25, 1.0), seed=0):
    image = torch.randn((2, 2, 16, 16), generator=torch.Generator().manual_seed(seed))
    return torch.cat([image, torch.tensor(position).view(2, 1, 1, 1).expand(2, 1, 16, 16)], 1)


def plain_twin(seed=0):
    """nnU-Net's network with the arguments of the table that it knows."""
    import json

    from networks.contract import IMAGE_CHANNELS, IMPORTED, arguments
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    known = {k: v for k, v in arguments("reference", 2).items() if k not in ("windows", "hounsfield_channels")}
    torch.manual_seed(seed)
    written = json.loads(json.dumps(known))
    return get_network_from_plans(STOCK, written, IMPORTED, IMAGE_CHANNELS, CLASSES, deep_supervision=True)


def test_without_windows_and_position_it_is_nnunets_network():
    ours, stock = build("reference", 2, windows=None, hounsfield_channels=[]), plain_twin()
    assert type(stock) is PlainConvUNet
    assert list(ours.state_dict()) == list(stock.state_dict())
    for key, value in stock.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value)
    image = slices()[:, :2]
    for one, other in zip(outputs_of(ours, image), outputs_of(stock, image), strict=True):
        assert torch.equal(one, other)


def test_each_head_has_one_channel_more_and_the_encoder_those_of_the_windows():
    built = network()
    assert (built.input_channels, built.encoder.stages[0][0].convs[0].conv.in_channels) == (3, 4)
    assert [head.in_channels for head in built.decoder.seg_layers] == [9, 5]
    assert channels_given(built, 2) == 3
    assert channels_given(plain_twin(), 2) == 2


def test_position_acts_through_the_heads_alone():
    """The weight of the appended channel times the difference of positions, at each scale."""
    built = network().eval()
    here, there = slices((0.25, 0.25)), slices((0.75, 0.75))
    for one, other, head in zip(
        outputs_of(built, here), outputs_of(built, there), reversed(built.decoder.seg_layers), strict=True
    ):
        expected = 0.5 * head.weight[:, -1].view(1, CLASSES, 1, 1)
        torch.testing.assert_close(other - one, expected.expand_as(one).detach(), atol=1e-5, rtol=1e-5)


def test_padding_changes_no_position():
    built, image = network().eval(), slices()
    padded = image.clone()
    padded[:, -1, :, 8:] = 0
    for one, other in zip(outputs_of(built, image), outputs_of(built, padded), strict=True):
        assert torch.equal(one, other)


def test_gradients_reach_every_parameter_with_position():
    built = network()
    sum(output.square().sum() for output in built(slices())).backward()
    assert all(parameter.grad is not None for parameter in built.parameters())
    assert all(head.weight.grad[:, -1].abs().sum() > 0 for head in built.decoder.seg_layers)


def test_deep_supervision_is_switched_with_position():
    built, image = network(), slices()
    first = outputs_of(built, image)[0]
    built.decoder.deep_supervision = False
    with torch.no_grad():
        assert torch.equal(built(image), first)


def test_compiles_with_position():
    built, image = network(), slices()
    torch._dynamo.reset()
    compiled = torch.compile(built, fullgraph=True, backend="eager")
    for one, other in zip(compiled(image), built(image), strict=True):
        torch.testing.assert_close(one, other)


def test_data_without_the_position_are_refused():
    with pytest.raises(ValueError, match=r"images must have shape \(B, 3, H, W\), got \(2, 2, 16, 16\)"):
        network()(slices()[:, :2])


def test_it_is_in_the_public_names():
    import nnunet_ext.networks

    assert nnunet_ext.networks.ReferenceUNet is ReferenceUNet
