"""TransUNet: the paper's parameters, its maps, windows and positions."""

import pytest
import torch
from networks import contract
from torch import nn

from nnunet_ext.networks.transunet import TransUNet


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def narrow(image_channels=1, **more):
    torch.manual_seed(0)
    arguments = contract.NETWORKS["transunet"].arguments
    return TransUNet(image_channels, 3, **arguments | more)


@pytest.mark.parametrize(
    ("size", "classes", "position", "whole", "encoder", "head"),
    [
        (224, 9, False, 105277081, 97888576, 1305),
        (512, 14, False, 105913710, 98524480, 2030),
        (512, 14, True, 105913836, 98524480, 2156),
    ],
)
def test_parameters_are_those_of_the_paper(size, classes, position, whole, encoder, head):
    """All but the three heads of deep supervision, which the paper does not have."""
    with torch.device("meta"):
        network = TransUNet(3, classes, (size, size), position=position)
    heads = [count(layer) for layer in network.decoder.seg_layers]
    assert heads[0] == head
    assert heads[1:] == [(width + position) * 9 * classes + classes for width in (64, 128, 256)]
    assert count(network.encoder) == encoder
    assert count(network.decoder) - sum(heads) == 7387200
    assert count(network) - sum(heads[1:]) == whole


def test_maps_of_the_paper():
    with torch.device("meta"):
        network = TransUNet(3, 9, (224, 224)).eval()
        coarsest, skips = network.encode(torch.empty(1, 3, 224, 224))
        logits = network(torch.empty(1, 3, 224, 224))
    assert network.encoder.pos_embed.shape == (1, 14 * 14, 768)
    assert coarsest.shape == (1, 768, 14, 14)
    assert [tuple(skip.shape[1:]) for skip in skips] == [(512, 28, 28), (256, 56, 56), (64, 112, 112)]
    assert logits.shape == (1, 9, 224, 224)


def test_channels_go_into_the_first_convolution_as_they_are():
    assert narrow(1).encoder.patch_embed.backbone.stem.conv.weight.shape[1] == 1
    windowed = narrow(2, **contract.WINDOWS, position=True)
    assert windowed.encoder.patch_embed.backbone.stem.conv.weight.shape[1] == 4  # three windows and the other channel
    assert windowed.input_channels == 3
    assert [head.in_channels for head in windowed.decoder.seg_layers] == [5, 7, 9, 11]


def test_the_position_reaches_each_head_and_nothing_else():
    network = narrow(position=True, deep_supervision=True).eval()
    image = torch.randn(1, 2, 32, 48, generator=torch.Generator().manual_seed(1))
    image[:, 1] = 0.25
    moved = image.clone()
    moved[:, 1] = 0.75
    with torch.no_grad():
        outputs = zip(network(image), network(moved), network.decoder.seg_layers, strict=True)
        for one, other, head in outputs:
            # a constant channel through the head's last slice of weights, away from the border of zeros
            expected = 0.5 * head.weight[:, -1].sum((1, 2))
            inner = (other - one)[0, :, 1:-1, 1:-1]
            torch.testing.assert_close(inner, expected[:, None, None].expand_as(inner), rtol=1e-4, atol=1e-5)


def test_the_table_of_positions_is_interpolated_and_trains():
    network = narrow(patch_size=[64, 32]).eval()
    table = network.encoder.pos_embed
    with torch.no_grad():
        table.copy_(torch.linspace(0, 1, 4)[None, :, None, None].expand(1, 4, 2, 24).reshape(1, 8, 24))
    assert network._positions((4, 2)) is table
    larger = network._positions((8, 3)).view(8, 3, 24)
    assert torch.all(larger.diff(dim=0) > 0)  # still rising along the first axis alone
    torch.testing.assert_close(larger[:, 0], larger[:, 2])
    network(torch.randn(1, 1, 48, 48)).sum().backward()
    assert table.grad.abs().sum() > 0


def test_norms():
    kinds = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}
    for norm, kind in kinds.items():
        decoder = narrow(norm=norm).decoder
        assert sum(isinstance(module, kind) for module in decoder.modules()) == 9
        assert not any(isinstance(module, (set(kinds.values()) - {kind}).pop()) for module in decoder.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": [32, 32, 32]}, r"must have two axes, as TransUNet is a 2D network, got \[32, 32, 32\]"),
        ({"patch_size": [40, 32]}, r"multiples of 16, got \[40, 32\]; the next are \[48, 32\]"),
        ({"patch_size": [16, 16]}, r"more than one voxel at 1/16, of which a patch of \[16, 16\] has one"),
        ({"norm": "layer"}, "norm must be one of batch, instance, got 'layer'"),
        ({"channels": [16, 16, 30]}, r"multiples of 4 x 4 groups, got \[16, 16, 30\]"),
        ({"blocks": [1, 1]}, r"blocks must have 3 entries, got \[1, 1\]"),
        ({"decoder_channels": [8, 8, 8]}, r"decoder_channels must have 4 entries"),
        ({"num_heads": 5}, "multiple of the 5 heads, got 24"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        narrow(**arguments)
