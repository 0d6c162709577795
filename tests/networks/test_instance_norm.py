"""Instance norms that predict faster on CPUs."""

import copy
import pickle

import pytest
import torch
from torch import nn

from nnunet_ext.networks import NestedAttentionUNet
from nnunet_ext.networks._instance_norm import InstanceNorm2d, InstanceNorm3d, faster_on_cpu

CASES = [(nn.InstanceNorm2d, InstanceNorm2d, (6, 5)), (nn.InstanceNorm3d, InstanceNorm3d, (6, 5, 4))]


def pair(stock, own, **options):
    """torch's norm and ours with the same weights, away from 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    norms = stock(3, **options), own(3, **options)
    for parameter in norms[0].parameters():
        nn.init.normal_(parameter, generator=generator)
    norms[1].load_state_dict(norms[0].state_dict())
    return norms


def image(size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return (5 + 2 * torch.randn((2, 3, *size), generator=generator)).to(dtype)


@pytest.mark.parametrize(("stock", "own", "size"), CASES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torch(stock, own, size, affine, dtype):
    first, second = (norm.to(dtype) for norm in pair(stock, own, affine=affine, eps=0.1))
    x = image(size, dtype)
    torch.testing.assert_close(second(x), first(x), rtol=0, atol=0)  # with gradients: torch's own
    with torch.no_grad():
        torch.testing.assert_close(second(x), first(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("stock", "own", "size"), CASES)
def test_without_gradients_it_is_another_kernel(stock, own, size):
    def kernels(x):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            own(3)(x)
        return {event.key for event in profile.key_averages()}

    assert "aten::native_batch_norm" in kernels(image(size))
    with torch.no_grad():
        assert "aten::native_batch_norm" not in kernels(image(size))
        assert "aten::native_batch_norm" in kernels(image(size).bfloat16())


@pytest.mark.parametrize(("stock", "own", "size"), CASES)
def test_running_statistics_stay_torchs(stock, own, size):
    first, second = pair(stock, own, track_running_stats=True)
    first(image(size)), second(image(size))
    with torch.no_grad():
        torch.testing.assert_close(second.eval()(image(size)), first.eval()(image(size)), rtol=0, atol=0)


@pytest.mark.parametrize(("stock", "own", "size"), CASES)
def test_a_sample_without_a_batch(stock, own, size):
    first, second = pair(stock, own)
    x = image(size)[0]
    with torch.no_grad():
        torch.testing.assert_close(second(x), first(x), rtol=0, atol=0)


def test_other_norms_stay():
    for norm in (None, nn.BatchNorm2d, nn.GroupNorm, InstanceNorm2d):
        assert faster_on_cpu(norm) is norm


def test_they_copy_and_pickle():
    norm = InstanceNorm3d(2, affine=True)
    assert isinstance(norm, nn.InstanceNorm3d)
    for other in (copy.deepcopy(norm), pickle.loads(pickle.dumps(norm))):
        assert type(other) is InstanceNorm3d


def test_nested_networks_have_them():
    network = NestedAttentionUNet(
        1, 2, 4, nn.Conv2d, 3, [1, 2], 1, 2, 1, norm_op=nn.InstanceNorm2d, norm_op_kwargs={"affine": True}
    )
    norms = [module for module in network.modules() if isinstance(module, nn.InstanceNorm2d)]
    assert len(norms) == 5
    assert {type(norm) for norm in norms} == {InstanceNorm2d}
