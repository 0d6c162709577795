"""Speed of contours, and what the contour-weighted loss costs in a training step.

    python benchmarks/contours.py map [--shape 112 160 128] [--pairs 30]      contours against scipy; 104 classes and 2
    python benchmarks/contours.py step [--classes 3 14] [--pairs 30] [--bf16] [--small] [--part CWCD GDL DWCE]
    python benchmarks/contours.py memory [--classes 3 14]                     bytes of one loss, forward and backward

A step is zero_grad, forward, loss over all scales, backward, clipping and optimiser step of the network of step.py;
the other side has nnU-Net's Dice + cross-entropy. Contours are compared with scipy's before anything is timed. On a GPU
network and losses are compiled, scipy stays on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib

import numpy as np
import torch
from _pairs import interleaved, machine, ratio
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from scipy.ndimage import binary_erosion
from step import BATCH, PATCH, network
from torch import nn

from nnunet_ext.losses import ContourWeightedLoss, DistanceWeightedCrossEntropy, GeneralisedDiceLoss, contour_map
from nnunet_ext.training.criteria import DeepSupervision, deep_supervision_weights

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOSSES = {"CWCD": ContourWeightedLoss, "GDL": GeneralisedDiceLoss, "DWCE": DistanceWeightedCrossEntropy}


def blocks(classes: int, shape: tuple[int, ...], batch: int = 1) -> torch.Tensor:
    """Labels in cubes of 8 voxels, as nnU-Net's loader gives them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, (batch, 1, *(-(-n // 8) for n in shape)))
    for axis, n in enumerate(shape, 2):
        labels = labels.repeat(8, axis).take(range(n), axis)
    return torch.from_numpy(labels.astype(np.int16))


def with_scipy(labels: np.ndarray) -> np.ndarray:
    """Contours by an erosion of every class."""
    found = np.zeros(labels.shape, bool)
    box = np.ones((3,) * labels.ndim)
    for value in np.unique(labels):
        inside = labels == value
        found |= inside & ~binary_erosion(inside, box, border_value=1)
    return found


def bench_map(a: argparse.Namespace) -> None:
    """Compare, then time, contours."""
    shape = tuple(a.shape)
    labels = {classes: blocks(classes, shape).to(DEVICE) for classes in (2, 14, 104)}
    small = {classes: one.to(torch.uint8) for classes, one in labels.items()}
    array = labels[14][0, 0].cpu().numpy()
    same = np.array_equal(with_scipy(array), contour_map(labels[14])[0, 0].cpu().numpy())
    print(f"identical to scipy's erosion of 14 classes: {same}")
    sides = {f"ours {classes}": lambda one=one: contour_map(one) for classes, one in labels.items()}
    sides |= {f"ours {classes} uint8": lambda one=one: contour_map(one) for classes, one in small.items()}
    seconds = interleaved(sides | {"scipy 14": lambda: with_scipy(array)}, a.pairs)
    print(f"scipy / ours, 14 classes: {ratio(seconds['scipy 14'], seconds['ours 14'])}")
    print(f"104 classes / 2: {ratio(seconds['ours 104'], seconds['ours 2'])}")
    for name, values in seconds.items():
        print(f"{name}: {1000 * np.median(values):.2f} ms")


class Step:
    """A network with one loss."""

    def __init__(self, classes: int, loss: nn.Module, small: bool, bf16: bool) -> None:
        torch.manual_seed(0)
        self.use(network([8, 16, 32, 64] if small else [32, 64, 128, 256], classes, DEVICE))
        self.loss, self.bf16 = loss, bf16
        self.data = torch.randn((BATCH, 1, *PATCH), device=DEVICE)
        shapes = [tuple(p // 2**i for p in PATCH) for i in range(3)]
        self.target = [blocks(classes, shape, BATCH).to(DEVICE) for shape in shapes]

    def use(self, made: nn.Module) -> None:
        """Train this network."""
        self.network = torch.compile(made) if DEVICE.type == "cuda" else made
        self.optimizer = torch.optim.SGD(self.network.parameters(), 1e-3, momentum=0.99, nesterov=True)

    def __call__(self) -> float:
        """Do one step."""
        autocast = contextlib.nullcontext()
        if DEVICE.type == "cuda" or self.bf16:
            autocast = torch.autocast(DEVICE.type, torch.float16 if DEVICE.type == "cuda" else torch.bfloat16)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = self.loss(self.network(self.data), self.target)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()
        return loss.item()


def stock_loss() -> nn.Module:
    """nnU-Net's loss of one scale, compiled as nnU-Net does on GPUs."""
    options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
    if DEVICE.type == "cuda":
        loss.dc = torch.compile(loss.dc)
    return loss


def our_loss(part: str) -> nn.Module:
    """The loss of one scale of a part."""
    loss = LOSSES[part]()
    if DEVICE.type == "cuda" and part == "CWCD":
        loss.compile()
    return loss


def bench_step(a: argparse.Namespace) -> None:
    """Time steps with each loss."""
    weights = deep_supervision_weights(3)
    for classes in a.classes:
        sides = {"stock": Step(classes, DeepSupervisionWrapper(stock_loss(), weights), a.small, a.bf16)}
        for part in a.part:
            sides[part] = Step(classes, DeepSupervision([our_loss(part) for _ in weights], weights), a.small, a.bf16)
        seconds = interleaved(sides, a.pairs)
        for part in a.part:
            print(f"{classes} classes: {part} / Dice + CE {ratio(seconds[part], seconds['stock'])}", flush=True)


def peak(loss: nn.Module, logits: torch.Tensor, target: torch.Tensor) -> int:
    """Return the most bytes allocated at once by one loss, forward and backward, beyond what was there."""
    loss(logits, target).backward()
    logits.grad = None
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss(logits, target).backward()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss(logits, target).backward()
    allocated, most = 0, 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            allocated += event.nbytes()
            most = max(most, allocated)
    return most


def bench_memory(a: argparse.Namespace) -> None:
    """Print what a loss allocates, in float32 maps of the size of the labels."""
    for classes in a.classes:
        logits = torch.randn((BATCH, classes, *PATCH), device=DEVICE, requires_grad=True)
        target = blocks(classes, PATCH, BATCH).to(DEVICE)
        size = 4 * target.numel()
        stock = peak(stock_loss(), logits, target) / size
        for part in a.part:
            ours = peak(our_loss(part), logits, target) / size
            print(f"{classes} classes: {part} {ours:.1f}, Dice + CE {stock:.1f}, difference {ours - stock:+.1f} maps")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["map", "step", "memory"])
    parser.add_argument("--shape", type=int, nargs="+", default=[112, 160, 128])
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 14])
    parser.add_argument("--part", nargs="+", choices=list(LOSSES), default=["CWCD"])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on the CPU, both sides")
    parser.add_argument("--small", action="store_true", help="features 8 to 64 instead of 32 to 256")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(machine())
    {"map": bench_map, "step": bench_step, "memory": bench_memory}[a.what](a)


if __name__ == "__main__":
    main()
