"""The sliding window of our own: nnU-Net's to the last bit, whatever a batch holds, and equal windows only once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inference.tiny_model import make_model
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_ext.inference.empty_windows import AIR_HU, Channel, channels_of, find_alike, is_background
from nnunet_ext.inference.windows import Alike, Sweep, mirrored_versions, run_once, sweep
from nnunet_ext.plugin import compat

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


class NetworkEngine:
    """Runs a network as it is, and remembers how many windows it got in each batch."""

    def __init__(self, network, ahead=0, dtype=None):
        self.network, self.ahead, self.dtype, self.sizes = network.eval(), ahead, dtype, []

    def run(self, batches):
        waiting = []
        for batch in batches:
            self.sizes.append(len(batch))
            with torch.inference_mode():
                waiting.append(self.network(batch.clone()).to(self.dtype or torch.float32))
            if len(waiting) > self.ahead:
                yield waiting.pop(0)
        yield from waiting


@pytest.fixture(scope="module", params=["3d_fullres", "2d"])
def predictor(request, tmp_path_factory):
    """nnU-Net's own predictor, with mirroring."""
    model = make_model(tmp_path_factory.mktemp("model"), request.param)
    made = model.predictor(nnUNetPredictor)
    made.use_mirroring, made.allowed_mirroring_axes = True, [0, 1]
    return made


def image_of(predictor, seed=0, shape=(21, 22, 35)):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (1, *shape)).astype(np.float32))


def how_of(predictor, image, weights=True, **more):
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    patch = tuple(predictor.configuration_manager.patch_size)
    gaussian = compute_gaussian(patch, sigma_scale=1 / 8, value_scaling_factor=10, device=CPU) if weights else None
    places = compat.sliding_window_slicers(predictor, tuple(image.shape[1:]))
    flips = mirrored_versions(predictor.allowed_mirroring_axes if predictor.use_mirroring else None)
    return Sweep(places, flips, gaussian, predictor.label_manager.num_segmentation_heads, CPU, **more)


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("mirroring", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_windows_equal_nnunet_s_to_the_last_bit(predictor, ahead, mirroring, weights):
    image = image_of(predictor)
    predictor.use_mirroring, predictor.use_gaussian = mirroring, weights
    try:
        expected = predictor.predict_sliding_window_return_logits(image)
        how = how_of(predictor, image, weights)
        assert len(how.places) > 4
        found = sweep(image, NetworkEngine(predictor.network, ahead), how)
    finally:
        predictor.use_mirroring, predictor.use_gaussian = True, True
    assert torch.equal(found, expected)


@pytest.mark.parametrize("batch", [3, 4, 7])
def test_several_windows_in_a_batch_are_told_apart(predictor, batch):
    image = image_of(predictor, 1)
    one = sweep(image, NetworkEngine(predictor.network), how_of(predictor, image))
    engine = NetworkEngine(predictor.network, ahead=2)
    how = how_of(predictor, image, batch=batch)
    several = sweep(image, engine, how)
    total = len(how.places) * len(how.flips)
    assert sum(engine.sizes) == total
    assert set(engine.sizes[:-1]) == {batch}
    torch.testing.assert_close(several.float(), one.float(), atol=0.05, rtol=0.01)


def test_reduced_precision_is_summed_in_float32(predictor):
    image = image_of(predictor, 2)
    exact = sweep(image, NetworkEngine(predictor.network), how_of(predictor, image))
    rounded = sweep(image, NetworkEngine(predictor.network, dtype=torch.bfloat16), how_of(predictor, image))
    # one rounding to 8 bits, of each version, none of their sums
    share = (rounded.float() - exact.float()).norm() / exact.float().norm()
    assert 0 < share < 2**-8


def test_sums_too_large_for_half_precision_are_an_error(predictor):
    class Large:
        def run(self, batches):
            heads = predictor.label_manager.num_segmentation_heads
            yield from (torch.full((len(batch), heads, *batch.shape[2:]), 1e6) for batch in batches)

    image = image_of(predictor)
    with pytest.raises(RuntimeError, match="too large for half precision"):
        sweep(image, Large(), how_of(predictor, image))


def with_air(predictor, shape=(17, 24, 70)):
    """An image whose left half is air, and the places of its windows."""
    image = torch.zeros((1, *shape))
    image[..., 40:] = image_of(predictor, 3, shape)[..., 40:]
    return image


def alike_of(predictor, image, how, engine, channels, background=None):
    return find_alike(
        image,
        how.places,
        channels,
        lambda window: run_once(window, engine, how.flips, CPU),
        background or (lambda logits: True),
    )


def test_windows_that_are_the_same_are_run_once_and_change_nothing(predictor):
    image = with_air(predictor)
    how = how_of(predictor, image)
    expected = sweep(image, NetworkEngine(predictor.network), how)
    engine = NetworkEngine(predictor.network)
    alike = alike_of(predictor, image, how, engine, [Channel()])
    assert alike.number > 3
    assert len(alike.logits) == 1
    found = sweep(image, engine, how, alike)
    assert torch.equal(found, expected)
    assert sum(engine.sizes) == (len(how.places) - alike.number + 1) * len(how.flips)


def test_windows_of_which_the_network_says_more_than_background_are_run(predictor):
    image = with_air(predictor)
    how = how_of(predictor, image)
    alike = alike_of(predictor, image, how, NetworkEngine(predictor.network), [Channel()], lambda logits: False)
    assert alike.number == 0
    assert torch.equal(
        sweep(image, NetworkEngine(predictor.network), how, alike),
        sweep(image, NetworkEngine(predictor.network), how),
    )


def test_noise_in_air_counts_as_none_and_an_organ_at_the_border_does_not():
    channels = [Channel(air=-1.0, vacuum=-1.5)]
    places = [(slice(None), slice(0, 8), slice(start, start + 8)) for start in (0, 8, 16)]
    image = -1.4 + 0.05 * torch.randn((1, 8, 24), generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    image[0, 7, 15] = 0.5  # one voxel of the second window
    asked = []

    def run(window):
        asked.append(window)
        return torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])

    alike = find_alike(image, places, channels, run, lambda logits: is_background(logits, 2, False))
    assert [key is None for key in alike.keys] == [False, True, False]
    assert len(asked) == 1
    assert asked[0].unique().tolist() == [-1.5]


def test_few_kinds_of_windows_are_kept():
    places = [(slice(None), slice(start, start + 4), slice(0, 4)) for start in range(0, 40, 4)]
    image = torch.arange(10.0).repeat_interleave(4)[None, :, None].expand(1, 40, 4)
    runs = []
    alike = find_alike(image, places, [Channel()], lambda window: runs.append(0) or window, lambda logits: True)
    assert len(runs) == len(alike.logits) == alike.number == 4


@pytest.mark.parametrize(
    ("percentile", "air"), [(-1024.0, AIR_HU), (-950.0, AIR_HU), (-800.0, -800.0), (-100.0, -100.0)]
)
def test_air_of_a_ct_follows_from_what_the_plans_clip(percentile, air):
    statistics = {"mean": 50.0, "std": 100.0, "percentile_00_5": percentile, "percentile_99_5": 300.0}
    plans = SimpleNamespace(foreground_intensity_properties_per_channel={"0": statistics, "1": statistics})
    configuration = SimpleNamespace(normalization_schemes=["CTNormalization", "ZScoreNormalization"])
    ct, other, previous = channels_of(plans, configuration, 3)
    assert ct.air == pytest.approx((air - 50) / 100)
    assert ct.vacuum == pytest.approx((max(percentile, -1000) - 50) / 100)
    assert other == previous == Channel()
    flat = torch.full((4, 4), 2.0)
    assert other.value(flat) == 2.0
    assert other.value(torch.eye(4)) is None


def test_background_of_regions_is_that_none_is_positive():
    logits = torch.full((3, 4, 4), -1.0)
    assert is_background(logits, 3, True)
    logits[2, 1, 1] = 0.1
    assert not is_background(logits, 3, True)
    assert is_background(logits, 2, True)  # the third is what one network says, kept apart


def test_alike_counts_what_is_not_run():
    assert Alike([None, 1, 2, 1], {1: torch.zeros(1)}).number == 2
