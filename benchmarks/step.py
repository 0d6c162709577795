"""Time of a CPS training step against its lower bound, and against a step with four forward passes.

    python benchmarks/step.py [--classes 3 14] [--pairs 30] [--bf16] [--small]

Lower bound: zero_grad, forward, one Dice + cross-entropy (nnU-Net's), backward, clipping and optimiser step of the two
networks on the concatenated batch. Four passes: labelled and unlabelled patches one after the other through both
networks, four losses (two supervised, two CPS), as the released code of 3D-CPS does. On a GPU everything is compiled.
Before anything is timed, the loss of the step is compared with nnU-Net's on the same labels.
"""

from __future__ import annotations

import argparse
import contextlib

import torch
from _pairs import interleaved, machine, ratio
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_ext.losses import pseudo_labels
from nnunet_ext.training.cps_step import CPSStep
from nnunet_ext.training.criteria import CrossPseudoCriterion, deep_supervision_weights

PATCH, BATCH = (40, 56, 40), 2  # nnU-Net's own plan of Dataset904, 3d_fullres


def network(features: list[int], classes: int, device: torch.device) -> nn.Module:
    """Build the plan's network."""
    net = PlainConvUNet(
        1,
        len(features),
        features,
        nn.Conv3d,
        3,
        [1] + [2] * (len(features) - 1),
        2,
        classes,
        2,
        True,
        nn.InstanceNorm3d,
        {"eps": 1e-5, "affine": True},
        None,
        None,
        nn.LeakyReLU,
        {"inplace": True},
        deep_supervision=True,
    )
    return net.to(device)


class Bench:
    """Networks, optimisers, one batch, and the three kinds of step."""

    def __init__(self, classes: int, small: bool, bf16: bool) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.cuda, self.bf16 = self.device.type == "cuda", bf16
        features = [8, 16, 32, 64] if small else [32, 64, 128, 256]
        self.networks = [network(features, classes, self.device) for _ in range(2)]
        if self.cuda:
            self.networks = [torch.compile(net) for net in self.networks]
        self.optimizers = [
            torch.optim.SGD(net.parameters(), 1e-3, weight_decay=3e-5, momentum=0.99, nesterov=True)
            for net in self.networks
        ]
        self.scaler = torch.amp.GradScaler("cuda") if self.cuda else None
        weights = deep_supervision_weights(3)
        options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
        one_scale = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
        if self.cuda:
            one_scale.dc = torch.compile(one_scale.dc)
        self.loss = DeepSupervisionWrapper(one_scale, weights)
        self.data = torch.randn((2 * BATCH, 1, *PATCH))
        shapes = [tuple(p // 2**i for p in PATCH) for i in range(3)]
        self.target = [torch.randint(0, classes, (2 * BATCH, 1, *shape)) for shape in shapes]
        self.cps = CPSStep(
            networks=tuple(self.networks),
            optimizers=tuple(self.optimizers),
            supervised=self.loss,
            cross_pseudo=CrossPseudoCriterion(weights, False, False, False, compile_loss=self.cuda),
            autocast=self.autocast,
            device=self.device,
            number_of_outputs=classes,
            grad_scaler=self.scaler,
        )

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context of the forward pass."""
        if self.cuda:
            return torch.autocast("cuda")
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def step_cps(self) -> None:
        """The step of nnUNetTrainerCPS, metrics and copies to the device included."""
        target = [t[:BATCH] for t in self.target]
        self.cps({"data": self.data[:BATCH], "unlabeled": self.data[BATCH:], "target": target, "valid": None}, 0.5)

    def step_bound(self) -> None:
        """The lower bound."""
        data = self.data.to(self.device)
        target = [t.to(self.device) for t in self.target]
        for net, optimizer in zip(self.networks, self.optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                loss = self.loss(net(data), target)
            self._backward(loss)
        self._update()
        loss.item()

    def step_four_passes(self) -> None:
        """Two forward passes a network and four losses."""
        halves = [self.data[:BATCH], self.data[BATCH:]]
        halves = [h.to(self.device) for h in halves]
        target = [t[:BATCH].to(self.device) for t in self.target]
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            outputs = [[net(half) for half in halves] for net in self.networks]
            joint = [[torch.cat(pair) for pair in zip(*output, strict=True)] for output in outputs]
            labels = [[pseudo_labels(o) for o in output] for output in joint]
            loss = sum(self.loss(outputs[i][0], target) + 0.5 * self.loss(joint[i], labels[1 - i]) for i in (0, 1))
        self._backward(loss)
        self._update()
        loss.item()

    def _backward(self, loss: torch.Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _update(self) -> None:
        for net, optimizer in zip(self.networks, self.optimizers, strict=True):
            if self.scaler is not None:
                self.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 12)
            optimizer.step() if self.scaler is None else self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()

    def check(self) -> None:
        """Compare the CPS criterion with nnU-Net's loss on the same labels."""
        with torch.no_grad():
            output = [o.float() for o in self.networks[0](self.data.to(self.device))]
            labels = [pseudo_labels(o) for o in self.networks[1](self.data.to(self.device))]
            torch.testing.assert_close(self.cps.cross_pseudo(output, labels, None), self.loss(output, labels))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 14])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on the CPU, both sides")
    parser.add_argument("--small", action="store_true", help="features 8 to 64 instead of 32 to 256")
    parser.add_argument("--bound-only", action="store_true", help="without the step of four forward passes")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(machine())
    for classes in arguments.classes:
        bench = Bench(classes, arguments.small, arguments.bf16)
        bench.check()
        sides = {"cps": bench.step_cps, "bound": bench.step_bound, "four": bench.step_four_passes}
        if arguments.bound_only:
            del sides["four"]
        seconds = interleaved(sides, arguments.pairs)
        print(f"{classes} classes: CPS step / lower bound {ratio(seconds['cps'], seconds['bound'])}")
        if "four" in seconds:
            print(f"{classes} classes: four passes / CPS step {ratio(seconds['four'], seconds['cps'])}", flush=True)


if __name__ == "__main__":
    main()
