"""The step of two networks."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from nnunet_ext.losses import cross_pseudo_loss, cross_pseudo_region_loss, pseudo_labels
from nnunet_ext.training.cps_step import CPSStep
from nnunet_ext.training.criteria import CrossPseudoCriterion


class Net(nn.Module):
    """Two scales, and a count of forward passes."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.large, self.small, self.calls = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 3, 2, stride=2), 0

    def forward(self, image):
        self.calls += 1
        return [self.large(image), self.small(image)]


def supervised(outputs, target):
    return sum(nn.functional.cross_entropy(o, t[:, 0]) for o, t in zip(outputs, target, strict=True))


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


def make(regions=False, **options):
    networks = (Net(0), Net(1))
    return CPSStep(
        networks=networks,
        optimizers=tuple(torch.optim.SGD(n.parameters(), 0.1) for n in networks),
        supervised=options.pop("supervised", supervised),
        cross_pseudo=CrossPseudoCriterion((2 / 3, 1 / 3), regions, False, False),
        autocast=nullcontext,
        device=torch.device("cpu"),
        number_of_outputs=3,
        regions=regions,
        **options,
    )


def batch(unlabelled=True, masked=True):
    generator = torch.Generator().manual_seed(2)
    content = {
        "data": torch.randn(2, 1, 4, 4, generator=generator),
        "target": [torch.randint(0, 3, (2, 1, s, s), generator=generator) for s in (4, 2)],
        "valid": None,
    }
    if unlabelled:
        content["unlabeled"] = torch.randn(2, 1, 4, 4, generator=generator)
    if masked:
        content["valid"] = torch.ones(4 if unlabelled else 2, 1, 4, 4, dtype=torch.uint8)
        content["valid"][-1, :, :2] = 0
    return content


def gradients(network):
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_each_network_gets_the_gradient_of_its_own_loss_alone(weight):
    step, data = make(), batch()
    image = torch.cat([data["data"], data["unlabeled"]])
    expected = []
    for own, peer in ((0, 1), (1, 0)):
        network = step.networks[own]
        outputs, others = network(image), step.networks[peer](image)
        labels = [o.argmax(1, keepdim=True) for o in others]
        loss = supervised([o[:2] for o in outputs], data["target"])
        small = nn.functional.interpolate(data["valid"].float(), (2, 2), mode="nearest-exact")
        cps = 2 / 3 * cross_pseudo_loss(outputs[0], labels[0], data["valid"])
        cps = cps + 1 / 3 * cross_pseudo_loss(outputs[1], labels[1], small)
        expected.append(torch.autograd.grad(loss + weight * cps, list(network.parameters())))
    for network in step.networks:
        network.calls = 0
    step(data, weight)
    for network, grads in zip(step.networks, expected, strict=True):
        assert network.calls == 1  # labelled and unlabelled together: one forward pass a network
        for found, value in zip(gradients(network), grads, strict=True):
            torch.testing.assert_close(found, value)


def test_network_2_cannot_reach_network_1():
    """If network 2's supervised loss is huge, network 1's gradient is what it was."""
    step, data = make(), batch()
    step(data, 0.0)
    calm = gradients(step.networks[0])
    calls = []

    def second_is_huge(outputs, target):
        calls.append(1)
        return supervised(outputs, target) * (1000 if len(calls) == 2 else 1)

    step = make(supervised=second_is_huge, clip=1e9)
    step(data, 0.0)
    for found, value in zip(gradients(step.networks[0]), calm, strict=True):
        torch.testing.assert_close(found, value)


def test_gradients_are_clipped_network_by_network():
    step = make(supervised=lambda outputs, target: 1e4 * supervised(outputs, target))
    step(batch(), 0.5)
    for network in step.networks:
        norm = torch.stack([g.norm() for g in gradients(network)]).norm()
        assert norm.item() == pytest.approx(12, rel=1e-3)


def test_scaler_is_updated_once_after_both_optimisers():
    scaler = Scaler()
    make(grad_scaler=scaler)(batch(), 0.5)
    assert scaler.calls == ["scale", "scale", "unscale", "step", "unscale", "step", "update"]


def test_report():
    step, data = make(), batch(masked=False)
    first, second = (n(data["unlabeled"])[0].argmax(1) for n in step.networks)
    report = step(data, 0.5)
    assert report["counts"][0].tolist() == [(first == c).sum().item() for c in range(3)]
    assert report["counts"][2].tolist() == [((first == c) & (second == c)).sum().item() for c in range(3)]
    assert report["labelled_counts"].tolist() == [(data["target"][0] == c).sum().item() for c in range(3)]
    assert report["cps"] != 0
    assert {type(report[key]) for key in ("loss", "loss_2", "cps")} == {float}


def test_invalid_voxels_of_the_unlabelled_half_are_not_counted():
    assert make()(batch(), 0.5)["counts"][0].sum() == 2 * 16 - 8


def test_labelled_batch_alone():
    report = make()(batch(unlabelled=False), 0.5)
    assert report["counts"][0].sum() == 2 * 16 - 8


def test_target_without_deep_supervision():
    def one_output(output, target):
        assert isinstance(output, torch.Tensor)
        return nn.functional.cross_entropy(output, target[:, 0])

    step, data = make(supervised=one_output), batch(masked=False)
    step.networks = tuple(nn.Conv2d(1, 3, 1) for _ in range(2))
    step.optimizers = tuple(torch.optim.SGD(n.parameters(), 0.1) for n in step.networks)
    step.cross_pseudo = CrossPseudoCriterion((1.0,), False, False, False)
    data["target"] = data["target"][0]
    assert step(data, 0.5)["loss"] > 0


def test_regions_use_thresholds_per_channel():
    def bce(outputs, target):
        return sum(
            nn.functional.binary_cross_entropy_with_logits(o, t[:, :3].float())
            for o, t in zip(outputs, target, strict=True)
        )

    step, data = make(regions=True, supervised=bce), batch(masked=False)
    # The last channel is the ignore mask of nnU-Net's region targets; it is no region.
    data["target"] = [torch.rand(2, 4, s, s, generator=torch.Generator().manual_seed(s)) > 0.5 for s in (4, 2)]
    image = torch.cat([data["data"], data["unlabeled"]])
    first, second = (n(image) for n in step.networks)
    expected = 2 / 3 * cross_pseudo_region_loss(first[0], pseudo_labels(second[0], True))
    expected = expected + 1 / 3 * cross_pseudo_region_loss(first[1], pseudo_labels(second[1], True))
    other = 2 / 3 * cross_pseudo_region_loss(second[0], pseudo_labels(first[0], True))
    other = other + 1 / 3 * cross_pseudo_region_loss(second[1], pseudo_labels(first[1], True))
    report = step(data, 0.5)
    assert report["cps"] == pytest.approx(((expected + other) / 2).item(), rel=1e-5)
    assert report["labelled_counts"].tolist() == data["target"][0][:, :3].sum((0, 2, 3)).tolist()
