import torch
from torch import nn

from nnunet_ext.networks.averaging import AverageOfNetworks


def test_equals_the_mean_of_the_logits():
    torch.manual_seed(1)
    networks = [nn.Conv3d(2, 3, 1) for _ in range(3)]
    image = torch.randn(2, 2, 4, 5, 6)
    expected = torch.stack([network(image) for network in networks]).mean(0)
    torch.testing.assert_close(AverageOfNetworks(*networks)(image), expected)


def test_of_one_network_is_that_network():
    torch.manual_seed(1)
    network = nn.Conv2d(1, 2, 3)
    image = torch.randn(1, 1, 6, 6)
    assert torch.equal(AverageOfNetworks(network)(image), network(image))


def test_by_hand():
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(first.weight, 2.0)
    nn.init.constant_(second.weight, 5.0)
    # (2 * 3 + 5 * 3) / 2 = 10.5
    assert AverageOfNetworks(first, second)(torch.tensor([[3.0]])).item() == 10.5


def test_is_moved_and_set_to_evaluation_as_one():
    networks = [nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(0.5)) for _ in range(2)]
    AverageOfNetworks(*networks).eval().to(torch.float64)
    assert not any(network.training for network in networks)
    assert all(p.dtype == torch.float64 for network in networks for p in network.parameters())
