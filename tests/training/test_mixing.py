"""Boxes, and what is mixed by them."""

import itertools

import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

from nnunet_ext.losses import bcp_loss
from nnunet_ext.training.mean_teacher_step import PseudoLabelled
from nnunet_ext.training.mixing import (
    BoxGenerator,
    BoxMixer,
    bcp_sides,
    box_sides,
    draw_bcp_box,
    draw_boxes,
    labelled_part,
    mix,
    to_scales,
)

SIZES = [(9, 14), (6, 9, 14), (1, 8, 8)]
EACH_SIZE = pytest.mark.parametrize("size", SIZES, ids=str)


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


def extents(inside):
    """Start and end of a box along each axis; the box must be whole."""
    where = inside.nonzero()
    first, last = where.amin(0), where.amax(0) + 1
    assert inside.sum() == (last - first).prod()
    return first.tolist(), last.tolist()


@pytest.mark.parametrize(
    ("size", "share", "sides"),
    [
        ((40, 56, 40), 0.25, (25, 35, 25)),
        ((40, 56, 40), 0.1, (19, 26, 19)),
        ((112, 112, 80), 0.25, (71, 71, 50)),
        ((20, 320, 256), 0.25, (13, 202, 161)),
        ((256, 256), 0.25, (128, 128)),
        ((1, 64, 64), 0.1, (1, 30, 30)),
        ((5, 5), 1.0, (5, 5)),
    ],
)
def test_golden_sides(size, share, sides):
    assert box_sides(size, share) == sides


@pytest.mark.parametrize(
    ("size", "sides"),
    [
        ((40, 56, 40), (26, 37, 26)),
        ((112, 112, 80), (74, 74, 53)),
        ((96, 96, 96), (64, 64, 64)),
        ((256, 256), (170, 170)),
        ((1, 3), (1, 2)),
    ],
)
def test_golden_sides_of_bidirectional_copy_paste(size, sides):
    assert bcp_sides(size) == sides


@EACH_SIZE
def test_boxes_lie_inside_and_reach_every_border(size):
    outside = draw_boxes(size, 400, numbers(), probability=1.0)
    assert outside.shape == (400, 1, *size)
    assert outside.dtype == torch.bool
    starts, ends = zip(*(extents(~mask[0]) for mask in outside), strict=True)
    for axis, length in enumerate(size):
        assert min(start[axis] for start in starts) == 0
        assert max(end[axis] for end in ends) == length
    allowed = {box_sides(size, 0.1 + 0.3 * n / 1000) for n in range(1001)}
    found = {tuple(e - s for s, e in zip(*pair, strict=True)) for pair in zip(starts, ends, strict=True)}
    assert found <= allowed
    assert len(found) > 1


def test_volumes_are_uniform_between_their_limits():
    shares = (~draw_boxes((60, 60), 2000, numbers(), (0.2, 0.6), 1.0)).float().mean((1, 2, 3))
    assert 0.18 < shares.min() < 0.23
    assert 0.57 < shares.max() < 0.62
    assert shares.mean().item() == pytest.approx(0.4, abs=0.01)


def test_how_often_there_is_a_box():
    assert draw_boxes((8, 8), 50, numbers(), probability=0.0).all()
    has_box = ~draw_boxes((8, 8), 2000, numbers(), probability=0.8).flatten(1).all(1)
    assert has_box.float().mean().item() == pytest.approx(0.8, abs=0.03)


@EACH_SIZE
def test_slabs(size):
    outside = draw_boxes(size, 200, numbers(), (0.25, 0.25), 1.0, "slab")
    cut = set()
    for mask in outside:
        start, end = extents(~mask[0])
        shorter = [axis for axis, length in enumerate(size) if end[axis] - start[axis] < length]
        assert len(shorter) == 1
        axis = shorter[0]
        assert end[axis] - start[axis] == max(1, int(size[axis] * 0.25 + 0.5))
        cut.add(axis)
    assert cut == {axis for axis, length in enumerate(size) if length > 1}


def test_as_many_numbers_are_drawn_whatever_they_are():
    states = []
    for probability, shape in itertools.product((0.0, 1.0), ("box", "slab")):
        generator = numbers()
        draw_boxes((8, 8), 3, generator, probability=probability, shape=shape)
        states.append(generator.get_state())
    assert all(torch.equal(states[0], state) for state in states)


@EACH_SIZE
def test_one_box_of_two_thirds(size):
    starts = set()
    for seed in range(40):
        outside = draw_bcp_box(size, numbers(seed))
        assert outside.shape == (1, 1, *size)
        start, end = extents(~outside[0, 0])
        assert tuple(e - s for s, e in zip(start, end, strict=True)) == bcp_sides(size)
        starts.add(tuple(start))
    assert len(starts) > 5
    assert draw_bcp_box(size, numbers(), probability=0.0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"share": (0.0, 0.4)}, r"share of a box must lie between 0 and 1, the least one first, got \(0.0, 0.4\)"),
        ({"share": (0.5, 0.4)}, "share of a box"),
        ({"share": (0.5, 1.4)}, "share of a box"),
        ({"probability": 1.5}, "probability of a box must lie between 0 and 1, got 1.5"),
        ({"shape": "ball"}, "shape of a box must be one of box, slab, got 'ball'"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_boxes((8, 8), 1, numbers(), **arguments)


def test_a_checkpoint_continues_the_numbers():
    boxes = BoxGenerator(3)
    boxes.boxes((8, 8), 2)
    state = boxes.state_dict()
    expected = [boxes.boxes((8, 8), 4), boxes.bcp_box((8, 8))]
    other = BoxGenerator(7)
    assert not torch.equal(other.boxes((8, 8), 4), expected[0])
    other.load_state_dict(state)
    assert torch.equal(other.boxes((8, 8), 4), expected[0])
    assert torch.equal(other.bcp_box((8, 8)), expected[1])


def row(*values):
    return torch.tensor(values)[None]


def test_golden_mix():
    outside = torch.ones(2, 1, 8, dtype=torch.bool)
    outside[0, :, 2:5] = False
    image = torch.stack([row(*range(8)), row(*range(10, 18))]).float()
    labels = torch.stack([row(0, 0, 1, 1, 1, 2, 2, 0), row(2, 2, 2, 0, 0, 0, 1, 1)])
    confidence = torch.stack(
        [
            row(0.5, 0.5643, 0.6286, 0.6929, 0.7571, 0.8214, 0.8857, 0.95),
            row(0.99, 0.94, 0.89, 0.84, 0.79, 0.74, 0.69, 0.64),
        ]
    )
    valid = torch.stack([row(*[True] * 8), row(True, True, True, False, False, True, True, True)])
    copies = [tensor.clone() for tensor in (image, labels, confidence, valid)]
    mixed = [mix(outside, tensor) for tensor in (image, labels, confidence, valid)]
    assert mixed[0][0].flatten().tolist() == [0, 1, 12, 13, 14, 5, 6, 7]
    assert mixed[1][0].flatten().tolist() == [0, 0, 2, 0, 0, 2, 2, 0]
    assert mixed[2][0].flatten().tolist() == pytest.approx([0.5, 0.5643, 0.89, 0.84, 0.79, 0.8214, 0.8857, 0.95])
    assert mixed[3][0].flatten().tolist() == [True] * 3 + [False] * 2 + [True] * 3
    kept = mixed[3] & (mixed[2] >= 0.8)
    assert kept[0].flatten().tolist() == [False, False, True, False, False, True, True, True]
    assert torch.equal(mix(outside, valid & (confidence >= 0.8)), kept)
    assert to_scales(mixed[1], [(8,), (4,)])[1][0].flatten().tolist() == [0, 0, 2, 0]
    for tensor, copy in zip((image, labels, confidence, valid), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_the_donor_is_the_next_sample():
    tensor = torch.arange(3).reshape(3, 1, 1, 1).expand(3, 2, 2, 2)
    inside = torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    assert mix(inside, tensor)[:, 1, 0, 0].tolist() == [1, 2, 0]
    assert torch.equal(mix(~inside, tensor), tensor)


def test_a_batch_of_one_stays_as_it_is():
    tensor = torch.rand(1, 2, 4, 4)
    assert mix(draw_boxes((4, 4), 1, numbers(), probability=1.0), tensor) is tensor


def test_inward_and_outward_patches():
    """Labelled patches are 1, unlabelled ones 0; the box is in the middle."""
    outside = torch.tensor([True, False, True])[None, None]
    labelled = labelled_part(outside, 3)
    mixed = mix(labelled, torch.ones(3, 1, 3), torch.zeros(3, 1, 3))
    assert mixed[:, 0].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert labelled_part(outside, 1, first=7)[0, 0].tolist() == [False, True, False]
    assert labelled_part(outside, 1, first=8)[0, 0].tolist() == [True, False, True]


def test_golden_loss_of_both_directions():
    z = torch.tensor([1, -1, 2, -2, 0.5, -0.5], dtype=torch.float64).reshape(1, 1, 6)
    logits = torch.cat([torch.zeros_like(z), z], 1).expand(2, 2, 6)
    g, y = (torch.tensor(v).expand(2, 1, 6) for v in ((1, 0, 1, 0, 1, 0), (0, 0, 1, 1, 0, 1)))
    outside = torch.tensor([True, True, False, False, True, True])[None, None]
    labelled = labelled_part(outside, 2)
    loss = bcp_loss(logits, mix(labelled, g, y), torch.ones(2, 1, 6), labelled)
    assert loss.item() == pytest.approx((-0.035307 - 0.288589) / 2, abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("size", [(8, 12), (5, 7, 9)])
def test_scales_are_those_of_nnunet(dtype, size):
    labels = torch.randint(0, 2 if dtype == torch.bool else 5, (2, 1, *size), generator=numbers()).to(dtype)
    factors = [[1.0] * len(size), [0.5] * len(size), [0.25] * len(size)]
    expected = [DownsampleSegForDSTransform(factors)(segmentation=sample)["segmentation"] for sample in labels]
    sizes = [tuple(scale.shape[1:]) for scale in expected[0]]
    for number, scale in enumerate(to_scales(labels, sizes)):
        assert scale.dtype == dtype
        assert torch.equal(scale, torch.stack([sample[number] for sample in expected]))


def test_the_position_stays_that_of_the_sample_around_the_box():
    """All else is mixed as without a position, by the same numbers."""
    images = torch.rand((3, 2, 9, 14), generator=numbers(4))
    images[:, -1] = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1)
    mask = torch.ones((3, 1, 9, 14), dtype=torch.bool)
    learned = PseudoLabelled(images, torch.arange(3).view(3, 1, 1, 1).expand(3, 1, 9, 14), mask, mask)
    (plain,), (made,) = (BoxMixer((0.2, 0.4), 1.0, "box", 7, position).mixed([learned], {}) for position in (0, 1))
    assert (plain.images[0, -1] == 0.5).any()
    assert torch.equal(made.images[:, -1], images[:, -1])
    assert torch.equal(made.images[:, :-1], plain.images[:, :-1])
    assert torch.equal(made.labels, plain.labels)
