"""DeepLabV3+: parameters, the library's own result, windows and position."""

import pytest
import segmentation_models_pytorch as smp
import torch
from networks import contract
from torch._subclasses.fake_tensor import FakeTensorMode

from nnunet_ext.networks import DeepLabV3Plus, TransUNet


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def narrow(image_channels=1, **more):
    torch.manual_seed(0)
    return DeepLabV3Plus(image_channels, 3, **contract.NETWORKS["deeplab"].arguments | more)


def test_parameters():
    with torch.device("meta"):
        plain, with_position = (DeepLabV3Plus(3, 14, position=position) for position in (False, True))
    assert count(plain) == 11683526
    assert count(with_position) == 11683526 + 14
    without_use = [name for name, parameter in plain.named_parameters() if not parameter.requires_grad]
    assert without_use == ["encoder._conv_head.weight", "encoder._bn1.weight", "encoder._bn1.bias"]


def test_it_is_the_librarys():
    network = narrow(3).eval()
    whole = smp.DeepLabV3Plus(
        "tu-test_efficientnet",
        encoder_weights=None,
        in_channels=3,
        classes=3,
        decoder_channels=8,
        decoder_atrous_rates=(1, 2, 3),
    ).eval()
    whole.encoder.load_state_dict(network.encoder.state_dict())
    whole.decoder.load_state_dict(network.decoder.features.state_dict())
    whole.segmentation_head[0].load_state_dict(network.decoder.seg_layers[0].state_dict())
    image = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(network(image), whole(image))


def test_the_position_reaches_the_head():
    network = narrow(2, **contract.WINDOWS, position=True).eval()
    assert network.input_channels == 3
    assert network.decoder.seg_layers[0].in_channels == 9
    image = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    image[:, 2] = 0.25
    moved = image.clone()
    moved[:, 2] = 0.75
    with torch.no_grad():
        difference = network(moved) - network(image)
    expected = 0.5 * network.decoder.seg_layers[0].weight[:, -1, 0, 0]
    torch.testing.assert_close(difference, expected[None, :, None, None].expand_as(difference), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder", ["densenet121", "tu-nothing_like_it"])
def test_encoders_that_cannot_be_used(encoder):
    with pytest.raises(ValueError, match=rf"makes no DeepLabV3\+ of the encoder '{encoder}' .*; name another, e.g."):
        narrow(encoder_name=encoder)


@pytest.mark.parametrize("name", ["deeplab", "transunet"])
def test_built_where_tensors_have_no_values(name):
    """As estimates of memory build networks; timm's constructors read values of tensors."""
    expected = contract.build(name)
    with FakeTensorMode():
        network = contract.build(name)
        assert all(isinstance(parameter, torch.nn.Parameter) for parameter in network.parameters())
        shapes = [output.shape for output in contract.as_list(network(torch.empty(2, 2, 32, 48)))]
    assert [tuple(shape) for shape in shapes] == contract.output_shapes(name, 2)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in expected.state_dict().items()
    }
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}


def test_both_are_found_in_the_package():
    import nnunet_ext.networks as networks

    assert (networks.TransUNet, networks.DeepLabV3Plus) == (TransUNet, DeepLabV3Plus)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = networks.Nothing
