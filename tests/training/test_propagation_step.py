"""The step of mask propagation."""

from types import SimpleNamespace

import pytest
import torch

from nnunet_ext.losses import ohem_cross_entropy, propagation_loss
from nnunet_ext.training.propagation_step import FrameLoss, begin_epoch, hard_counts


def test_pixels_are_counted_by_the_label_of_the_object():
    """Two samples; the second has one object. By hand, F = 1 and four pixels each."""
    predicted = torch.tensor([[[1, 1, 2, 0]], [[1, 0, 2, 1]]])
    target = torch.tensor([[[1, 0, 2, 2]], [[1, 1, 0, -1]]])
    classes = torch.tensor([[5, 3], [3, 0]])
    counts = hard_counts(predicted, target, classes, [3, 4, 5])
    # label 3: object 2 of the first sample (1 true, 1 missed) and object 1 of the second (1 true, 1 missed)
    assert counts[:, 0].tolist() == [2, 0, 2]
    assert counts[:, 1].tolist() == [0, 0, 0]
    assert counts[:, 2].tolist() == [1, 1, 0]


def test_the_share_of_pixels_falls_with_the_training():
    loss = FrameLoss(bootstrapped=True)
    trainer = SimpleNamespace(loss=loss, current_epoch=0, num_epochs=10)
    fractions = []
    for trainer.current_epoch in range(10):
        begin_epoch(trainer)
        fractions.append(loss.fraction)
    assert fractions[:2] == [1, 1]  # 20,000 of 150,000 steps are 13 %, 70,000 are 47 %
    assert fractions[2] == pytest.approx(1 - 0.85 * (30_000 - 20_000) / 50_000)
    assert fractions[5:] == [pytest.approx(0.15)] * 5


def test_both_kinds_of_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    odds = torch.randn((2, 2, 3, 8, 8), generator=generator)
    labels = torch.randint(0, 3, (2, 2, 8, 8), generator=generator)
    present = torch.ones((2, 2), dtype=torch.bool)
    assert FrameLoss()(odds, labels, present) == propagation_loss(odds, labels, present, ohem_cross_entropy)
    hardest = FrameLoss(bootstrapped=True)
    hardest.fraction = 0.15
    everywhere = FrameLoss(bootstrapped=True)
    assert hardest(odds, labels, present) > everywhere(odds, labels, present)
