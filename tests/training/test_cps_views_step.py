"""The step of two networks that learn each other's labels of weak views."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference.gates import GateOf
from torch import nn

from nnunet_ext.training.class_balance import ClassBalance
from nnunet_ext.training.counting import class_counts
from nnunet_ext.training.cps_views_step import CPSViewsStep
from nnunet_ext.training.unlabelled import UnlabelledCriterion


class Net(nn.Module):
    """Two scales, or the larger one alone, as nnU-Net's networks give them."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.large, self.small = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 3, 2, stride=2)
        self.decoder = SimpleNamespace(deep_supervision=True)

    def forward(self, image):
        large = self.large(image)
        return [large, self.small(image)] if self.decoder.deep_supervision else large


class Scaler:
    """Notes what is called; scales by 1."""

    def __init__(self):
        self.calls = []

    def scale(self, loss):
        self.calls.append("scale")
        return loss

    def unscale_(self, optimizer):
        self.calls.append("unscale")

    def step(self, optimizer):
        self.calls.append("step")
        optimizer.step()

    def update(self):
        self.calls.append("update")


def supervised(outputs, target):
    return sum(nn.functional.cross_entropy(o, t[:, 0]) for o, t in zip(outputs, target, strict=True))


def make(**options):
    networks = (Net(0), Net(1))
    return CPSViewsStep(
        networks=networks,
        optimizers=tuple(torch.optim.SGD(n.parameters(), 0.1) for n in networks),
        supervised=supervised,
        unlabelled=UnlabelledCriterion((2 / 3, 1 / 3), options.get("regions", False)),
        autocast=nullcontext,
        device=torch.device("cpu"),
        number_of_outputs=3,
        **options,
    )


def batch(padded=False):
    generator = torch.Generator().manual_seed(2)
    names = ("data", "unlabeled", "unlabeled_strong", "unlabeled_strong_2")
    content = {name: torch.randn(2, 1, 4, 4, generator=generator) for name in names}
    content["target"] = [torch.randint(0, 3, (2, 1, s, s), generator=generator) for s in (4, 2)]
    valid = torch.ones(4, 1, 4, 4, dtype=torch.uint8)
    valid[2:] = 0
    return content | {"valid": valid if padded else None}


def test_scaler_is_updated_once_after_both_optimisers():
    scaler = Scaler()
    make(grad_scaler=scaler)(batch(), 0.5)
    assert scaler.calls == ["scale", "scale", "unscale", "step", "unscale", "step", "update"]


def test_report_is_that_of_plain_cps_with_what_is_kept():
    report = make()(batch(), 0.5)
    of_plain_cps = {"loss", "loss_2", "cps", "counts", "labelled_counts"}
    assert report.keys() == of_plain_cps | {"kept_counts", "nothing_kept"}
    assert np.array_equal(report["kept_counts"], report["counts"][:2])
    assert report["nothing_kept"].tolist() == [0, 0]
    assert report["counts"].shape == (3, 3)
    assert report["counts"][0].sum() == report["counts"][1].sum() == 2 * 16
    expected = np.bincount(batch()["target"][0].flatten().numpy(), minlength=3)
    assert np.array_equal(report["labelled_counts"], expected)


@pytest.mark.parametrize("regions", [False, True])
def test_padding_alone_teaches_nothing(regions):
    step, other = (make(regions=regions) for _ in range(2))
    labels = (lambda o, t: sum(x.square().mean() for x in o)) if regions else supervised
    step.supervised = other.supervised = labels
    data = batch(padded=True)
    if regions:
        data["target"] = [t.expand(-1, 4, -1, -1) > 1 for t in data["target"]]
    report = step(data, 0.5)
    other(data, 0.0)
    assert report["cps"] == 0
    assert report["counts"].sum() == 0
    for one, two in zip(step.networks, other.networks, strict=True):
        for first, second in zip(one.parameters(), two.parameters(), strict=True):
            torch.testing.assert_close(first, second)


def test_the_labels_of_both_networks_balance_the_classes():
    step = make(balance=ClassBalance(torch.tensor([90.0, 9.0, 1.0])))
    learned, _ = step.pseudo_labelled(batch())
    expected = sum(class_counts(own.labels, own.valid, 3) for own in learned)
    step(batch(), 0.5)
    assert torch.equal(step.balance.state_dict()["pseudo"], expected)
    assert expected.sum() == 2 * 2 * 16


def test_deep_supervision_is_on_again_after_an_error():
    step = make()
    step.networks[0].large = nn.Conv2d(2, 3, 3)
    with pytest.raises(RuntimeError, match="channels"):
        step(batch(), 0.5)
    assert step.networks[0].decoder.deep_supervision


@GateOf
def every_other(logits, labels, *_):
    """Keep every second voxel along the last axis."""
    return torch.arange(labels.shape[-1]).expand_as(labels) % 2 == 0


@GateOf
def nothing(logits, labels, *_):
    return torch.zeros_like(labels, dtype=torch.bool)


@pytest.mark.parametrize("regions", [False, True])
def test_labels_that_count_are_counted_for_each_network(regions):
    step = make(regions=regions, gates=(every_other, nothing))
    data = batch()
    if regions:
        data["target"] = [t.expand(-1, 4, -1, -1) > 1 for t in data["target"]]
        step.supervised = lambda o, t: sum(x.square().mean() for x in o)
    (_, second), counts = step.pseudo_labelled(data)
    assert counts.shape == (5, 3)
    labels = second.labels.float() if regions else nn.functional.one_hot(second.labels[:, 0], 3).movedim(-1, 1)
    assert counts[0].tolist() == labels.sum((0, 2, 3)).tolist()  # network 2 learns what network 1 labels
    assert counts[3].tolist() == labels[..., ::2].sum((0, 2, 3)).tolist()
    assert counts[4].sum() == 0
    report = step(data, 0.5)
    assert np.array_equal(report["kept_counts"], counts[3:].numpy())
    assert report["nothing_kept"].tolist() == [1, 0]  # network 1 learns what network 2 labels


def test_kept_outsides_of_regions_are_something():
    """Where no region is labelled, the outsides still teach."""
    step = make(regions=True, gates=(every_other, every_other))
    for network in step.networks:
        nn.init.constant_(network.large.bias, -50.0)
    step.supervised = lambda o, t: sum(x.square().mean() for x in o)
    data = batch()
    data["target"] = [t.expand(-1, 4, -1, -1) > 1 for t in data["target"]]
    report = step(data, 0.5)
    assert report["counts"].sum() == 0
    assert report["nothing_kept"].tolist() == [0, 0]


@pytest.mark.parametrize("gates", [(None, None), (every_other, None)])
def test_labels_of_which_the_networks_disagree_count_only_where_they_are_sure(gates):
    off, step = make(gates=gates), make(gates=gates, agree=True)
    assert off.agree is False
    (one, two), _ = off.pseudo_labelled(batch())
    (first, second), counts = step.pseudo_labelled(batch())
    alike = one.labels == two.labels
    assert 0 < alike.sum() < alike.numel()
    assert torch.equal(first.labels, one.labels)
    assert torch.equal(first.kept, one.kept & alike)  # no label of these networks is as sure as 0.95
    assert torch.equal(second.kept, two.kept & alike)
    assert counts[4].sum() == first.kept.sum()
    for network in step.networks:
        network.large.weight.data *= 100
    (first, second), _ = step.pseudo_labelled(batch())
    disagree = first.labels != second.labels
    assert (first.kept & disagree).any()
