import pytest
import torch
from torch import nn

from nnunet_ext.networks.averaging import AverageOfNetworks, mean_logits


def made(number=3):
    torch.manual_seed(1)
    return [nn.Conv3d(2, 3, 1) for _ in range(number)], torch.randn(2, 2, 4, 5, 6)


@pytest.mark.parametrize("regions", [False, True])
def test_equals_the_mean_of_the_probabilities(regions):
    networks, image = made()
    nonlin = torch.sigmoid if regions else lambda logits: logits.softmax(1)
    expected = torch.stack([nonlin(network(image)) for network in networks]).mean(0)
    average = AverageOfNetworks(*networks, regions=regions)(image)
    torch.testing.assert_close(nonlin(average), expected)
    assert average.shape == (2, 3, 4, 5, 6)


def test_of_one_network_is_that_network():
    torch.manual_seed(1)
    network = nn.Conv2d(1, 2, 3)
    image = torch.randn(1, 1, 6, 6)
    assert torch.equal(AverageOfNetworks(network)(image), network(image))


def test_by_hand():
    # softmax 0.9 and 0.1 of the one, 0.3 and 0.7 of the other: 0.6 and 0.4, where the mean of the logits says class 1
    first, second = (torch.tensor([[[p]], [[1 - p]]]).log()[None] for p in (0.9, 0.3))
    found = mean_logits([first, second], regions=False)
    torch.testing.assert_close(found.exp().flatten(), torch.tensor([0.6, 0.4]))
    # sigmoid 0.9 and 0.3: 0.6
    first, second = (torch.tensor([p]).logit()[None, :, None] for p in (0.9, 0.3))
    torch.testing.assert_close(mean_logits([first, second], regions=True).sigmoid().flatten(), torch.tensor([0.6]))


@pytest.mark.parametrize("regions", [False, True])
def test_stays_finite_where_networks_are_sure(regions):
    logits = [torch.tensor([[[300.0]], [[-300.0]]])[None], torch.tensor([[[290.0]], [[-310.0]]])[None]]
    assert torch.isfinite(mean_logits(logits, regions)).all()


def test_16_bit_is_averaged_in_32():
    logits = [torch.randn(1, 3, 4, 4).bfloat16() for _ in range(2)]
    found = mean_logits(logits, regions=False)
    assert found.dtype == torch.float32
    assert torch.equal(found, mean_logits([one.float() for one in logits], regions=False))


def test_the_networks_own_logits_can_follow():
    networks, image = made(2)
    average = AverageOfNetworks(*networks)
    alone = average(image)
    average.apart = True
    mean, *own = average(image).split(3, 1)
    assert torch.equal(mean, alone)
    assert all(torch.equal(one, network(image)) for one, network in zip(own, networks, strict=True))


def test_is_moved_and_set_to_evaluation_as_one():
    networks = [nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(0.5)) for _ in range(2)]
    AverageOfNetworks(*networks).eval().to(torch.float64)
    assert not any(network.training for network in networks)
    assert all(p.dtype == torch.float64 for network in networks for p in network.parameters())
