"""A small network learns, from triples of slices, to carry a square that moves, and carries it through a volume."""

import pytest
import torch
from torch.nn import functional

from nnunet_ext.networks import SpaceTimeNetwork
from nnunet_ext.propagation import PropagationSettings, propagate

SIZE, SIDE, SLICES, STEPS = 32, 10, 22, 180
SMALL = {
    "key_stages": (8, 8, 16),
    "key_blocks": (1, 1, 1),
    "value_stages": (8, 8, 16),
    "value_blocks": (1, 1, 1),
    "key_dim": 8,
    "value_dim": 32,
    "decoder_channels": (32, 16, 16),
}


def scans(number, slices, seed):
    """A bright square that moves by up to a voxel a slice along both axes, and turns at the border; noise.

    Returns:
        Images ``(number, slices, 1, H, W)`` and labels ``(number, slices, H, W)``.
    """
    generator = torch.Generator().manual_seed(seed)
    free = SIZE - SIDE
    start, step = torch.rand(2, number, 1, 2, generator=generator)
    moved = start * free + torch.arange(slices)[None, :, None] * (2 * step - 1)
    corner = (free - (moved % (2 * free) - free).abs()).round()[..., None]
    inside = (torch.arange(SIZE) >= corner) & (torch.arange(SIZE) < corner + SIDE)
    labels = (inside[:, :, 0, :, None] & inside[:, :, 1, None, :]).long()
    images = 2 * labels + 0.3 * torch.randn(labels.shape, generator=generator)
    return images[:, :, None], labels


@pytest.fixture(scope="module")
def taught():
    torch.manual_seed(0)
    network = SpaceTimeNetwork(1, 2, **SMALL)
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, STEPS, 0.9)
    present = torch.ones(8, 1, dtype=torch.bool)
    for step in range(STEPS):
        images, labels = scans(8, 3, seed=step)
        log_odds = network(images, labels[:, :1].float(), present)
        optimiser.zero_grad()
        functional.cross_entropy(log_odds.flatten(0, 1), labels[:, 1:].flatten(0, 1)).backward()
        optimiser.step()
        schedule.step()
    return network


def dice(found, expected):
    return float(2 * (found * expected).sum() / (found.sum() + expected.sum()))


@pytest.mark.parametrize("settings", [PropagationSettings(), PropagationSettings(top_k=None, include_last=False)])
def test_through_twenty_slices_in_both_directions(taught, settings):
    images, labels = scans(1, SLICES, seed=1000)
    image, labels, last = images[0].transpose(0, 1), labels[0], SLICES - 1
    between = slice(1, last)
    result = propagate([taught], image, {0: labels[0], last: labels[last]}, torch.device("cpu"), settings)
    assert result.directions[between].all()
    for found in (result.forward, result.backward, result.labels):
        assert dice(found[between], labels[between]) > 0.95
    assert result.agreement[between].min() > 0.9
    for reference in (0, last):  # with one of them alone
        result = propagate([taught], image, {reference: labels[reference]}, torch.device("cpu"), settings)
        assert torch.equal(result.labels[reference].long(), labels[reference])
        assert dice(result.labels[between], labels[between]) > 0.95
