"""Time and memory of mask propagation in slices of 512 x 512, with the network of full size.

    python benchmarks/propagation_speed.py [--pairs 5] [--memory 20] [--objects 13] [--size 512] [--device cuda]

Ratios are medians of pairs in turn, with the 95 % bootstrap interval of the median:

slice    what a propagated slice takes (keys, reading of the 20 best elements, decoding, aggregation, and its values for
         the memory) / the same with a naive softmax over all elements of the memory; reading alone likewise
volume   propagation through a scan from one reference in its middle / nnU-Net's 2D U-Net on all of its slices
         (features 32 to 512, no mirroring)

and the most memory of each reading above what was there before.
"""

from __future__ import annotations

import argparse
import resource
from typing import Any

import torch
from _architecture import architecture
from _pairs import interleaved, machine, ratio
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor

from nnunet_ext.networks import SpaceTimeNetwork
from nnunet_ext.networks.memory_reading import aggregate, read
from nnunet_ext.propagation.driver import PropagationSettings, propagate

TOP_K = 20


class Bench:
    """A network of full size, a memory that is filled, and one slice.

    Args:
        arguments: Of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device, size = torch.device(arguments.device), arguments.size
        self.network = SpaceTimeNetwork(1, 2).to(self.device).eval()
        self.image = torch.randn(1, 1, size, size, device=self.device)
        self.masks = torch.rand(1, arguments.objects, size, size, device=self.device) / arguments.objects
        with torch.inference_mode(), self.autocast():
            self.features = self.network.encode_key(self.image)
            value = self.network.encode_value(self.features, self.masks)[0]
        self.objects, self.channels, height, width = value.shape
        self.elements = arguments.memory * height * width
        # as propagation.memory has them: all values of one element beside one another
        self.keys = torch.randn(1, self.features.key.shape[1], self.elements, device=self.device)
        rows = torch.randn(self.elements, self.objects, self.channels, device=self.device, dtype=value.dtype)
        self.values = rows[None].permute(0, 2, 3, 1)

    def autocast(self) -> Any:
        """Return the precision of predictions."""
        return torch.autocast(self.device.type, enabled=self.device.type == "cuda")

    @torch.inference_mode()
    def read(self, top_k: int | None) -> Tensor:
        """Read the memory for a slice."""
        key = self.features.key
        return read(self.keys, self.values, key.flatten(2), top_k).unflatten(3, key.shape[2:])

    @torch.inference_mode()
    def slice(self, top_k: int | None) -> None:
        """Find the objects of a slice, and make its values."""
        with self.autocast():
            features = self.network.encode_key(self.image)
            logits = self.network.decode(features, self.read(top_k))
            found = aggregate(logits.sigmoid()).softmax(1)
            self.network.encode_value(features, found[:, 1:])

    def most_memory(self, top_k: int | None) -> float:
        """Return the most MiB that a reading took above what was there: of a GPU, or what this process ever had."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.read(top_k)
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.read(top_k)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def unet(device: torch.device) -> torch.nn.Module:
    """Return nnU-Net's 2D U-Net for patches of 512 x 512 and 14 classes."""
    plan = architecture(2, [32, 64, 128, 256, 512, 512, 512, 512])
    arguments = (plan["network_class_name"], plan["arch_kwargs"], plan["_kw_requires_import"], 1, 14)
    return get_network_from_plans(*arguments, deep_supervision=False).to(device).eval()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", type=int, default=20, help="slices in memory")
    parser.add_argument("--objects", type=int, default=13)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=11, help="of the scan that is propagated through")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bench = Bench(arguments)
    print(machine())
    print(f"{arguments.memory} slices of {arguments.size} x {arguments.size} in memory, {arguments.objects} objects")
    for name, top_k in ((f"the {TOP_K} best", TOP_K), ("all elements", None)):  # the smaller one first
        print(f"most memory above what was there, reading {name}: {bench.most_memory(top_k):.0f} MiB", flush=True)
    sides = {"best": lambda: bench.read(TOP_K), "all": lambda: bench.read(None)}
    seconds = interleaved(sides, arguments.pairs, 1)
    print(
        f"reading the {TOP_K} best / a softmax over all elements: {ratio(seconds['best'], seconds['all'])}", flush=True
    )
    sides = {"best": lambda: bench.slice(TOP_K), "all": lambda: bench.slice(None)}
    whole = interleaved(sides, arguments.pairs, 1)
    print(f"a slice, reading the {TOP_K} best / all elements: {ratio(whole['best'], whole['all'])}")
    print(f"share of a slice that is reading: {ratio(seconds['best'], whole['best'])}", flush=True)
    measure_volume(arguments, bench)


def measure_volume(arguments: argparse.Namespace, bench: Bench) -> None:
    """Time a whole scan with propagation, and with a 2D U-Net on all slices."""
    size, slices = arguments.size, arguments.slices
    image = torch.randn(1, slices, size, size)
    labels = torch.zeros(size, size, dtype=torch.int16)
    side = size // 8
    for number in range(arguments.objects):
        row, column = divmod(number, 7)
        labels[row * side : (row + 1) * side, column * side : (column + 1) * side] = number + 1
    network = unet(bench.device)

    def propagated() -> None:
        propagate([bench.network], image, {slices // 2: labels}, bench.device, PropagationSettings(top_k=TOP_K))

    @torch.inference_mode()
    def segmented() -> None:
        with bench.autocast():
            for index in range(slices):
                network(image[None, :, index].to(bench.device)).float().cpu()

    seconds = interleaved({"propagated": propagated, "segmented": segmented}, max(2, arguments.pairs // 2), 1)
    print(
        f"a scan of {slices} slices with {arguments.objects} objects, from one reference / a 2D U-Net on all slices: "
        f"{ratio(seconds['propagated'], seconds['segmented'])}"
    )


if __name__ == "__main__":
    main()
