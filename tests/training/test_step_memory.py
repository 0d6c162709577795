import gc

import numpy as np
import pytest
import torch
from data.tiny_dataset import make_plans
from torch import nn

from nnunet_ext.training.step_memory import PeakOfStorages, cps_step_memory, supervised_step_memory


def architecture(dimensions: int = 3, features: int = 1, stages: int = 2) -> dict:
    found = make_plans(stages=stages)["configurations"]["3d_fullres" if dimensions == 3 else "2d"]["architecture"]
    found["arch_kwargs"]["features_per_stage"] = [f * features for f in found["arch_kwargs"]["features_per_stage"]]
    return found


def test_peak_is_what_was_alive_at_once():
    with PeakOfStorages() as memory:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1
        del a
        c = b.view(10, 100) * 2  # the view shares its storage: 8,000 bytes at once
        del b
        d = c.clone()
    assert memory.peak == 8000
    assert memory.now == 8000
    del c, d
    assert memory.now == 0


def test_the_garbage_of_building_networks_does_not_count():
    size = ([16, 16, 16], 2, 1, 3)
    gc.disable()  # else it is chance whether Python has cleared it before the step
    try:
        late = supervised_step_memory(architecture(), *size)
    finally:
        gc.enable()
    thresholds = gc.get_threshold()
    gc.set_threshold(10)
    try:
        early = supervised_step_memory(architecture(), *size)
    finally:
        gc.set_threshold(*thresholds)
    assert late == early


def test_what_was_there_before_counts_once_it_is_told():
    before = torch.zeros(1000)
    memory = PeakOfStorages()
    memory.count(before)
    with memory:
        before.add_(1)  # in place: nothing new
        made = before[:100] + 1
    assert (memory.peak, memory.now) == (4400, 4400)
    del before, made
    assert memory.now == 0


def test_batch_and_patch_scale_the_activations():
    small = cps_step_memory(architecture(), (16, 16, 16), 2, 1, 3)
    weights = cps_step_memory(architecture(), (8, 8, 8), 1, 1, 3)
    large = cps_step_memory(architecture(), (32, 32, 32), 2, 1, 3)
    assert 7 < (large - weights) / (small - weights) < 9.5
    assert cps_step_memory(architecture(), (32, 32, 32), 4, 1, 3) == pytest.approx(2 * large, rel=0.05)


def test_half_precision_takes_less_and_more_classes_take_more():
    half = cps_step_memory(architecture(), (32, 32, 32), 2, 1, 3)
    assert half < cps_step_memory(architecture(), (32, 32, 32), 2, 1, 3, half_precision=False)
    assert half < cps_step_memory(architecture(), (32, 32, 32), 2, 1, 14)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_it_runs_for_every_kind_of_configuration(dimensions, regions):
    assert cps_step_memory(architecture(dimensions), (16,) * dimensions, 2, 2, 3, regions) > 0


def test_weights_gradients_and_momentum_of_both_networks_are_in_it():
    found = architecture(features=16)
    found["arch_kwargs"]["conv_op"] = nn.Conv3d
    found["arch_kwargs"]["norm_op"] = nn.InstanceNorm3d
    found["arch_kwargs"]["nonlin"] = nn.LeakyReLU
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    network = get_network_from_plans(
        found["network_class_name"], found["arch_kwargs"], [], 1, 3, allow_init=False, deep_supervision=True
    )
    parameters = sum(int(np.prod(p.shape)) for p in network.parameters())
    used = cps_step_memory(architecture(features=16), (8, 8, 8), 1, 1, 3, half_precision=False)
    # Two networks of weights and momentum, and at least one of gradients, 4 bytes each.
    assert used > 5 * 4 * parameters
    assert used < 8 * 4 * parameters


def test_a_pair_holds_each_network_with_its_own_optimiser_and_scales():
    """AdamW has one number a weight more than momentum; the other network's scales are supervised too."""
    wide, narrow = architecture(2, 16, 3), architecture(2, 1, 3)
    size = ((32, 32), 2, 1, 3)
    same = cps_step_memory(wide, *size)
    assert cps_step_memory(wide, *size, second=wide) == same
    mixed = cps_step_memory(wide, *size, second=narrow)
    assert cps_step_memory(narrow, *size) < mixed < same
    weights = 4 * sum(p.numel() for p in _built(wide).parameters())
    adam = cps_step_memory(wide, *size, optimizers=("SGD", "AdamW"))
    assert adam - same == pytest.approx(weights, rel=0.02)
    assert cps_step_memory(wide, *size, second=lambda: OneOutput(_built(narrow))) <= mixed
    assert cps_step_memory(lambda: OneOutput(_built(narrow)), *size, second=wide) > 0


class OneOutput(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network(image)[0]


def _built(found):
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    return get_network_from_plans(*found.values(), 1, 3, allow_init=False, deep_supervision=True)


def test_networks_with_a_position_are_given_a_channel_more():
    found = architecture(2)
    found["network_class_name"] = "nnunet_ext.networks.reference_unet.ReferenceUNet"
    size = ((32, 32), 2, 1, 3)
    without = cps_step_memory(found, *size, half_precision=False)
    found["arch_kwargs"] |= {"windows": None, "hounsfield_channels": [], "position": True}
    channel = 4 * 4 * 32 * 32  # of two labelled and two unlabelled patches
    assert cps_step_memory(found, *size, half_precision=False) > without + channel
