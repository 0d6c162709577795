"""Windows of CT and the position of the slice, taken apart at the input of a network."""

import pytest
import torch

from nnunet_ext.networks.reference_input import ReferenceInput, with_position

WINDOWS = [(-150, 250), (-1350, 225), (-500, 1300)]
GOLDEN = {
    -1000: (0, 56, 0),
    -150: (0, 194, 49),
    0: (95, 218, 70),
    50: (127, 226, 77),
    100: (159, 234, 85),
    250: (255, 255, 106),
    400: (255, 255, 127),
    1300: (255, 255, 255),
}


@pytest.mark.parametrize("hounsfield", GOLDEN)
def test_windows_give_the_published_values(hounsfield):
    image, position = ReferenceInput(1, WINDOWS, [0])(torch.full((2, 1, 3, 4), hounsfield / 1000))
    assert position is None
    assert image.shape == (2, 3, 3, 4)
    expected = torch.tensor([min(1.0, max(0.0, (hounsfield - low) / (high - low))) for low, high in WINDOWS])
    torch.testing.assert_close(image[0, :, 1, 2], expected)
    # the published values are truncated to whole numbers; what float arithmetic misses of a whole one is below 1e-3
    assert tuple((255 * image[0, :, 1, 2] + 1e-3).long().tolist()) == GOLDEN[hounsfield]


def test_other_channels_keep_their_place_and_their_values():
    data = torch.randn(2, 3, 4, 5)
    image, _ = ReferenceInput(3, WINDOWS, [1])(data)
    assert image.shape[1] == ReferenceInput(3, WINDOWS, [1]).output_channels == 5
    assert torch.equal(image[:, 0], data[:, 0])
    assert torch.equal(image[:, 4], data[:, 2])
    assert image[:, 1:4].min() >= 0
    assert image[:, 1:4].max() <= 1


@pytest.mark.parametrize("windows", [None, []])
def test_without_windows_the_image_is_that_of_the_data(windows):
    data = torch.randn(2, 2, 4, 5)
    layer = ReferenceInput(2, windows, [0])
    assert layer(data)[0] is data
    assert layer.output_channels == layer.input_channels == 2


def test_position_is_that_of_the_slice_though_padding_is_zero():
    data = torch.randn(2, 2, 4, 5)
    data[:, 1] = torch.tensor([0.0, 0.75])[:, None, None]
    data[:, 1, :, 3:] = 0
    layer = ReferenceInput(1, position=True)
    image, position = layer(data)
    assert layer.input_channels == 2
    assert layer.output_channels == 1
    assert torch.equal(image, data[:, :1])
    assert position.tolist() == [[0.0], [0.75]]


def test_position_becomes_one_constant_channel():
    features = torch.randn(2, 3, 4, 5)
    joined = with_position(features, torch.tensor([[0.25], [1.0]]))
    assert torch.equal(joined[:, :3], features)
    assert joined[0, 3].unique().tolist() == [0.25]
    assert joined[1, 3].unique().tolist() == [1.0]
    assert with_position(features, None) is features


def test_settings_are_not_among_the_weights():
    assert not ReferenceInput(1, WINDOWS, [0], position=True).state_dict()


@pytest.mark.parametrize("window", [(1,), (5, 5), (10, -10), (0, float("nan"))])
def test_an_empty_window_is_refused(window):
    with pytest.raises(ValueError, match=r"a window must be \(lower, upper\) in Hounsfield units"):
        ReferenceInput(1, [window], [0])


@pytest.mark.parametrize("channel", [-1, 2])
def test_a_missing_channel_is_refused(channel):
    with pytest.raises(ValueError, match="among the 2 image channels"):
        ReferenceInput(2, WINDOWS, [channel])
