"""Speed and memory of ANU-Net: pruned prediction, and a training step beside MONAI's UNet++.

    python benchmarks/nested.py prune [--dimensions 2 3] [--rounds 15]
    python benchmarks/nested.py step [--dimensions 2 3] [--rounds 15] [--bf16]
    python benchmarks/nested.py memory

prune   Network time and memory at each depth by those of the whole network, with and without gates. The arithmetic
        ratio is that of the multiplications that torch counts for the same networks. Outputs of cut networks are
        compared with those of the whole one before anything is timed.
step    Forward and backward of the network without gates and with them, by MONAI's BasicUNetPlusPlus of the same
        features, four outputs, the same loss; and with activations computed again.
memory  Peak of a training step by torch's allocator on tensors without values, with and without checkpointing, and the
        same for the plain U-Net of the same plans.

Networks have five levels, 32 to 512 channels in 2D (256 x 256, batch 1) and 32 to 320 in 3D (48 x 48 x 48). On a GPU
patches are larger (--size), and networks are not compiled.
"""

from __future__ import annotations

import argparse
import warnings

import torch
from _pairs import interleaved, machine, ratio
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ext.networks import NestedAttentionUNet
from nnunet_ext.training.architecture import NESTED
from nnunet_ext.training.memory import GIB, PeakOfStorages, supervised_step_memory
from nnunet_ext.training.nesting import nested_step_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FEATURES = {2: [32, 64, 128, 256, 512], 3: [32, 64, 128, 256, 320]}
SIZES = {2: 256, 3: 48}
LEVELS = 5


def nested(dimensions: int, gates: bool = True, depth: int | None = None, heads: int = 2) -> NestedAttentionUNet:
    """The network of nnU-Net's default plans, nested."""
    torch.manual_seed(0)
    conv = nn.Conv2d if dimensions == 2 else nn.Conv3d
    norm = nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d
    network = NestedAttentionUNet(
        1,
        LEVELS,
        FEATURES[dimensions],
        conv,
        3,
        [1, 2, 2, 2, 2],
        2,
        heads,
        2,
        True,
        norm,
        {"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        gates=gates,
        depth=depth,
    )
    return network.to(DEVICE)


def image(dimensions: int, size: int) -> torch.Tensor:
    """One patch of noise."""
    return torch.randn((1, 1, *[size] * dimensions), generator=torch.Generator().manual_seed(0)).to(DEVICE)


@torch.no_grad()
def bench_prune(a: argparse.Namespace) -> None:
    """Compare, then time, the depths."""
    for dimensions in a.dimensions:
        x = image(dimensions, a.size or SIZES[dimensions])
        for gates in (False, True):
            whole = nested(dimensions, gates).eval()
            whole.decoder.deep_supervision = True
            outputs = whole(x)[::-1]
            whole.decoder.deep_supervision = False
            networks, flops, peaks = {}, {}, {}
            for depth in range(1, LEVELS):
                network = nested(dimensions, gates, depth).eval()
                network.load_state_dict({k: v for k, v in whole.state_dict().items() if k in network.state_dict()})
                if not torch.equal(network(x), outputs[depth - 1]):
                    raise SystemExit(f"depth {depth} is not output {depth} of the whole network; nothing was timed")
                with FlopCounterMode(display=False) as counter:
                    network(x)
                with PeakOfStorages() as memory:
                    network(x)
                networks[depth], flops[depth], peaks[depth] = network, counter.get_total_flops(), memory.peak
            seconds = interleaved({str(d): lambda n=n, x=x: n(x) for d, n in networks.items()}, a.rounds)
            print(f"{dimensions}D, {'with' if gates else 'without'} gates, patch {tuple(x.shape[2:])}; outputs equal")
            deepest = max(networks)
            for depth in sorted(networks, reverse=True)[1:]:
                arithmetic = flops[deepest] / flops[depth]
                share = seconds[str(deepest)] / seconds[str(depth)] / arithmetic
                print(f"  depth {depth}: arithmetic ratio {arithmetic:.2f}, time ratio ", end="")
                print(f"{ratio(seconds[str(deepest)], seconds[str(depth)])}, ", end="")
                print(f"share {ratio(share, share**0)}, peak memory / whole {peaks[depth] / peaks[deepest]:.2f}")


class Step:
    """Forward, a loss on all outputs, backward."""

    def __init__(self, network: nn.Module, x: torch.Tensor, bf16: bool) -> None:
        self.network, self.x, self.bf16 = network.train(), x, bf16

    def __call__(self) -> None:
        self.network.zero_grad(set_to_none=True)
        kind = torch.float16 if DEVICE.type == "cuda" else torch.bfloat16
        with torch.autocast(DEVICE.type, kind, enabled=self.bf16 or DEVICE.type == "cuda"):
            outputs = self.network(self.x)
        sum(output.float().square().mean() for output in outputs).backward()


def bench_step(a: argparse.Namespace) -> None:
    """Time steps beside MONAI's UNet++."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.networks.nets import BasicUNetPlusPlus

    for dimensions in a.dimensions:
        x = image(dimensions, a.size or SIZES[dimensions])
        monai = BasicUNetPlusPlus(
            dimensions, 1, 2, (*FEATURES[dimensions], FEATURES[dimensions][0]), deep_supervision=True
        ).to(DEVICE)
        networks = {"MONAI": monai, "without gates": nested(dimensions, False), "with gates": nested(dimensions)}
        networks["with gates, activations computed again"] = nested(dimensions)
        networks["with gates, activations computed again"].checkpointing = True
        peaks = {}
        for name, network in networks.items():
            if network is not monai:
                network.decoder.deep_supervision = True
            step = Step(network, x, a.bf16)
            step()
            with PeakOfStorages() as memory:
                step()
            peaks[name] = memory.peak
            networks[name] = step
        seconds = interleaved(networks, a.rounds)
        print(f"{dimensions}D, patch {tuple(x.shape[2:])}, forward and backward")
        for name in list(networks)[1:]:
            size = sum(p.numel() for p in networks[name].network.parameters())
            other = sum(p.numel() for p in monai.parameters())
            print(f"  {name} / MONAI: time {ratio(seconds[name], seconds['MONAI'])}, ", end="")
            print(f"memory {peaks[name] / peaks['MONAI']:.2f}, parameters {size / other:.2f}")
        again, kept = "with gates, activations computed again", "with gates"
        print(f"  {again} / kept: time {ratio(seconds[again], seconds[kept])}, ", end="")
        print(f"memory {peaks[again] / peaks[kept]:.2f}", flush=True)


def bench_memory(_: argparse.Namespace) -> None:
    """Print what training steps allocate."""
    for dimensions, patch, batch in ((2, (512, 512), 12), (3, (128, 128, 128), 2), (3, (64, 96, 96), 2)):
        architecture = plans_architecture(dimensions)
        size = (patch, batch, 1, 14)
        plain = supervised_step_memory(architecture, *size)
        nest = architecture | {"network_class_name": NESTED}
        kept, again = (nested_step_memory(nest, *size, checkpointing=on) for on in (False, True))
        added = nest | {"arch_kwargs": nest["arch_kwargs"] | {"aggregation": "sum"}}
        summed = nested_step_memory(added, *size)
        print(f"{' x '.join(map(str, patch))}, batch {batch}, 14 classes, mixed precision: plain {plain / GIB:.1f} GB,")
        print(f"  nested {kept / GIB:.1f} ({kept / plain:.2f} times), by sum {summed / GIB:.1f}, ", end="")
        print(f"activations computed again {again / GIB:.1f} ({again / kept:.2f} of kept)", flush=True)


def plans_architecture(dimensions: int) -> dict:
    """The architecture of nnU-Net's default plans, five levels."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": LEVELS,
            "features_per_stage": FEATURES[dimensions],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": [[3] * dimensions] * LEVELS,
            "strides": [[1] * dimensions, *[[2] * dimensions] * (LEVELS - 1)],
            "n_conv_per_stage": [2] * LEVELS,
            "n_conv_per_stage_decoder": [2] * (LEVELS - 1),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prune", "step", "memory"])
    parser.add_argument("--dimensions", type=int, nargs="+", choices=[2, 3], default=[2, 3])
    parser.add_argument("--size", type=int, help="voxels an axis")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on the CPU, all sides")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(machine())
    {"prune": bench_prune, "step": bench_step, "memory": bench_memory}[a.what](a)


if __name__ == "__main__":
    main()
