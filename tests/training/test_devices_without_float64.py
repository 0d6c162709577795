"""Devices without float64, such as Apple's, must be able to do every step."""

import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training.test_cps_step import batch, make

from nnunet_ext.losses import bcp_loss, unlabelled_loss, unlabelled_region_loss
from nnunet_ext.training.agreement import label_counts, region_counts
from nnunet_ext.training.class_balance import ClassBalance
from nnunet_ext.training.confidence import ConfidenceGate, label_and_confidence
from nnunet_ext.training.counting import class_counts
from nnunet_ext.training.drift import quality_counts


class NoFloat64(TorchDispatchMode):
    """Refuses every operation that takes or makes float64."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for value in tree_leaves((arguments, keywords, result)):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"no float64 on this device: {function}")
        return result


@pytest.mark.parametrize("unlabelled", [True, False])
@pytest.mark.parametrize("regions", [True, False])
def test_the_whole_step_of_cps(regions, unlabelled):
    def bce(outputs, target):
        return sum(
            torch.nn.functional.binary_cross_entropy_with_logits(o, t[:, :3].float())
            for o, t in zip(outputs, target, strict=True)
        )

    step, data = make(regions=True, supervised=bce) if regions else make(), batch(unlabelled)
    if regions:
        data["target"] = [torch.rand(2, 4, s, s, generator=torch.Generator().manual_seed(s)) > 0.5 for s in (4, 2)]
    expected = copy.deepcopy(step)(data, 0.5)
    with NoFloat64():
        report = step(data, 0.5)
    assert report["counts"].shape == (3, 3)
    assert report["loss"] == expected["loss"]
    assert np.array_equal(report["counts"], expected["counts"])


@pytest.mark.parametrize("regions", [True, False])
def test_gate_balance_and_losses_of_unlabelled_patches(regions):
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    valid = torch.ones(2, 1, 4, 4)
    share = torch.full((3,), 1 / 3, dtype=torch.float64)
    gate = ConfidenceGate(3, gate="per_class", guard=True, regions=regions, labelled_share=share)
    balance = ClassBalance(torch.ones((2, 3) if regions else 3, dtype=torch.float64))
    with NoFloat64():
        labels, confidence = label_and_confidence(logits, regions)
        kept = gate(logits, labels, confidence, valid)
        balance.observe(class_counts(labels, valid, 3, regions))
        loss = (unlabelled_region_loss if regions else unlabelled_loss)(logits, labels, kept, valid, balance.weights())
        loss = loss + bcp_loss(logits, labels, kept, valid, valid, balance.weights(), regions=regions)
        loss.backward()
        assert quality_counts(labels, kept, valid, 3, regions, labels).shape == (3, 3)
    assert torch.isfinite(loss)


def test_large_counts_are_exact():
    """float32 cannot count beyond 2**24."""
    first = torch.zeros((1, 1, 4097, 4096), dtype=torch.uint8).long()
    first[..., 0, 0] = 1
    counts = label_counts(first, first, None, 2)
    assert counts.tolist() == [[4097 * 4096 - 1, 1]] * 3
    inside = first == 0
    assert region_counts(inside, inside, None).tolist() == [[4097 * 4096 - 1]] * 3


def test_one_copy_to_the_host(monkeypatch):
    step, data, copies = make(), batch(), []
    original = torch.Tensor.cpu

    def count(self, *arguments, **options):
        copies.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "cpu", count)
    step(data, 0.5)
    assert len(copies) == 1
