"""Seeds."""

import pytest
import torch

from nnunet_ext.training.precision import bf16_on_cpu
from nnunet_ext.training.seeds import base_seed, derived_seed, torch_seed


def test_seed_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("nnUNet_ext_seed", raising=False)
    assert base_seed() == 0
    monkeypatch.setenv("nnUNet_ext_seed", "12")
    assert base_seed() == 12
    monkeypatch.setenv("nnUNet_ext_seed", "-1")
    with pytest.raises(ValueError, match="nnUNet_ext_seed must be a non-negative integer, got '-1'"):
        base_seed()


def test_derived_seeds_differ_by_purpose_and_repeat():
    assert derived_seed(0, 1, 0) == derived_seed(0, 1, 0)
    assert len({derived_seed(s, f, n) for s in range(3) for f in range(3) for n in range(3)}) == 27


def test_block_leaves_the_global_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with torch_seed(1):
        inside = torch.rand(1)
    assert torch.equal(torch.rand(2), expected)
    with torch_seed(1):
        assert torch.equal(torch.rand(1), inside)


def test_bf16_switch(monkeypatch):
    monkeypatch.setenv("nnUNet_ext_cpu_bf16", "1")
    assert bf16_on_cpu()
    monkeypatch.setenv("nnUNet_ext_cpu_bf16", "maybe")
    with pytest.raises(ValueError, match="nnUNet_ext_cpu_bf16 must be 0 or 1, got 'maybe'"):
        bf16_on_cpu()


def test_block_leaves_other_devices_alone(monkeypatch):
    seeded = []
    for device in (torch.cuda, torch.mps, torch.xpu):
        for name in ("manual_seed", "manual_seed_all"):
            if hasattr(device, name):
                monkeypatch.setattr(device, name, seeded.append)
    with torch_seed(1):
        inside = torch.rand(3)
    assert seeded == []
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), inside)  # initial weights are those of this seed


def test_block_leaves_the_global_stream_alone_when_it_raises():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with pytest.raises(KeyError), torch_seed(1):
        raise KeyError
    assert torch.equal(torch.rand(2), expected)
