"""What turns the strong views of a batch."""

import pytest
import torch

from nnunet_ext.training.second_geometry import PatchTurner

ALL = ((0, 1), (0, 2), (1, 2))


def test_a_mirrored_plane():
    """Half of the patches are the mirror image of axis 1, without an inverse: labels move with the image."""
    turner = PatchTurner(2, (1,), (), seed=0)
    image = torch.tensor([[0, 1, 2], [3, 4, 5]]).expand(40, 1, 2, 3)
    turned, labels = turner(image, image > 2)
    assert torch.equal(labels, turned > 2)
    mirrored = [patch[0].tolist() == [[2, 1, 0], [5, 4, 3]] for patch in turned]
    assert all(
        patch[0].tolist() == image[0, 0].tolist() for patch, moved in zip(turned, mirrored, strict=True) if not moved
    )
    assert 10 < sum(mirrored) < 30


def test_all_that_is_given_moves_alike_and_nothing_is_lost():
    turner = PatchTurner(3, (0, 1, 2), ALL, seed=1)
    image = torch.arange(6 * 2 * 64.0).view(6, 2, 4, 4, 4)
    kept = (image[:, :1] % 3 == 0).expand(6, 2, 4, 4, 4)  # as of regions, a view
    before = image.clone()
    turned, labels, mask = turner(image, image[:, :1].long() % 5, kept)
    assert torch.equal(image, before)
    assert torch.equal(labels, turned[:, :1].long() % 5)
    assert torch.equal(mask[:, :1], turned[:, :1] % 3 == 0)
    assert torch.equal(turned.flatten(2).sort(-1).values, image.flatten(2))
    assert mask.dtype == torch.bool
    assert len({tuple((patch - patch.min()).flatten().tolist()) for patch in turned}) > 3  # each has a turn of its own


def test_a_state_goes_on_with_the_same_turns_and_another_seed_with_others():
    image = torch.arange(8 * 64.0).view(8, 1, 4, 4, 4)
    turner, other = PatchTurner(3, (0, 1, 2), ALL, 1), PatchTurner(3, (0, 1, 2), ALL, 2)
    turner(image)
    other.load_state_dict(turner.state_dict())
    assert torch.equal(other(image)[0], turner(image)[0])
    other.reseed(3)
    assert not torch.equal(other(image)[0], turner(image)[0])


def test_nothing_may_be_turned():
    image = torch.randn(2, 1, 4, 3)
    assert torch.equal(PatchTurner(2, None, (), 0)(image)[0], image)


@pytest.mark.parametrize("number", [1, 3])
def test_as_many_numbers_are_drawn_whatever_is_given(number):
    image = torch.randn(2, 1, 4, 4)
    one, two = PatchTurner(2, (0,), ((0, 1),), 0), PatchTurner(2, (0,), ((0, 1),), 0)
    one(image)
    two(*[image] * number)
    assert torch.equal(one.state_dict()["generator"], two.state_dict()["generator"])
