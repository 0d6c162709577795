"""Speed and memory of ANU-Net: pruned prediction, and a training step beside MONAI's UNet++.

    python benchmarks/nested.py prune [--dimensions 2 3] [--rounds 15]
    python benchmarks/nested.py step [--dimensions 2 3] [--rounds 15] [--bf16]
    python benchmarks/nested.py memory
    python benchmarks/nested.py planner [--targets 8 24]

prune   Network time and memory at each depth by those of the whole network, with and without gates. The arithmetic
        ratio is that of the multiplications that torch counts for the same networks. Outputs of cut networks are
        compared with those of the whole one before anything is timed.
step    Forward and backward of the network without gates and with them, by MONAI's BasicUNetPlusPlus of the same
        features, four outputs, the same loss; and with activations computed again.
memory  Peak of a training step by torch's allocator on tensors without values, with and without checkpointing, and the
        same for the plain U-Net of the same plans.
planner Plans of ANUNetPlanner for an abdominal CT of 14 classes and each memory target, with activations kept and
        computed again: what it estimates and, on a GPU, what a training step with the hybrid loss allocates and
        reserves, eager and with --compile. Planning takes minutes.

Networks have five levels, 32 to 512 channels in 2D (256 x 256, batch 1) and 32 to 320 in 3D (48 x 48 x 48). On a GPU
patches are larger (512 x 512, 128 x 128 x 128), prune and step run in fp16 as nnU-Net does, memory is what torch
allocated on it, and networks are compiled if --compile asks for it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from _architecture import architecture
from _pairs import interleaved, machine, ratio
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunet_ext.losses import HybridLoss
from nnunet_ext.networks import NestedAttentionUNet
from nnunet_ext.training.architecture import NESTED, build
from nnunet_ext.training.nesting import nested_step_memory, set_checkpointing
from nnunet_ext.training.step_memory import GIB, PeakOfStorages, supervised_step_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FEATURES = {2: [32, 64, 128, 256, 512], 3: [32, 64, 128, 256, 320]}
SIZES = {2: 512, 3: 128} if DEVICE.type == "cuda" else {2: 256, 3: 48}
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


def half_precision() -> contextlib.AbstractContextManager:
    """fp16 on a GPU."""
    return torch.autocast("cuda") if DEVICE.type == "cuda" else contextlib.nullcontext()


def peak_of(step: Callable[[], object]) -> int:
    """Return the most bytes that a step adds to what is there: on a GPU as torch reports it."""
    if DEVICE.type != "cuda":
        with PeakOfStorages() as memory:
            step()
        return memory.peak
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


class Forward:
    """A prediction of one patch, as nnU-Net's predictor does it; the network may be compiled."""

    def __init__(self, network: nn.Module, x: torch.Tensor, compiled: bool) -> None:
        self.network, self.x = torch.compile(network) if compiled else network, x

    def __call__(self) -> torch.Tensor:
        with torch.no_grad(), half_precision():
            return self.network(self.x)


@torch.no_grad()
def bench_prune(a: argparse.Namespace) -> None:
    """Compare, then time, the depths."""
    for dimensions in a.dimensions:
        x = image(dimensions, a.size or SIZES[dimensions])
        for gates in (False, True):
            whole = nested(dimensions, gates).eval()
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
            whole.decoder.deep_supervision = True
            outputs = Forward(whole, x, False)()[::-1]
            whole.decoder.deep_supervision = False
            networks, flops = {}, {}
            for depth in range(1, LEVELS):
                network = nested(dimensions, gates, depth).eval()
                network.load_state_dict({k: v for k, v in whole.state_dict().items() if k in network.state_dict()})
                if not torch.equal(Forward(network, x, False)(), outputs[depth - 1]):
                    raise SystemExit(f"depth {depth} is not output {depth} of the whole network; nothing was timed")
                with FlopCounterMode(display=False) as counter:
                    network(x)
                networks[depth], flops[depth] = Forward(network, x, a.compile), counter.get_total_flops()
            del outputs
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, DEVICE.type == "cuda"
            for step in networks.values():
                step()  # compiled, and cuDNN has chosen
            peaks = {depth: peak_of(step) for depth, step in networks.items()}
            seconds = interleaved({str(depth): step for depth, step in networks.items()}, a.rounds)
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

    def __init__(self, network: nn.Module, x: torch.Tensor, bf16: bool, compiled: bool) -> None:
        self.plain, self.x, self.bf16 = network.train(), x, bf16
        self.network = torch.compile(network) if compiled else network

    def __call__(self) -> None:
        self.plain.zero_grad(set_to_none=True)
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
            networks[name] = step = Step(network, x, a.bf16, a.compile)
            step()
            peaks[name] = peak_of(step)
        seconds = interleaved(networks, a.rounds)
        print(f"{dimensions}D, patch {tuple(x.shape[2:])}, forward and backward")
        for name in list(networks)[1:]:
            size = sum(p.numel() for p in networks[name].plain.parameters())
            other = sum(p.numel() for p in monai.parameters())
            print(f"  {name} / MONAI: time {ratio(seconds[name], seconds['MONAI'])}, ", end="")
            print(f"memory {peaks[name] / peaks['MONAI']:.2f}, parameters {size / other:.2f}")
        again, kept = "with gates, activations computed again", "with gates"
        print(f"  {again} / kept: time {ratio(seconds[again], seconds[kept])}, ", end="")
        print(f"memory {peaks[again] / peaks[kept]:.2f}", flush=True)


def bench_memory(_: argparse.Namespace) -> None:
    """Print what training steps allocate."""
    for dimensions, patch, batch in ((2, (512, 512), 12), (3, (128, 128, 128), 2), (3, (64, 96, 96), 2)):
        plain_architecture = plans_architecture(dimensions)
        size = (patch, batch, 1, 14)
        plain = supervised_step_memory(plain_architecture, *size)
        nest = plain_architecture | {"network_class_name": NESTED}
        kept, again = (nested_step_memory(nest, *size, checkpointing=on) for on in (False, True))
        added = nest | {"arch_kwargs": nest["arch_kwargs"] | {"aggregation": "sum"}}
        summed = nested_step_memory(added, *size)
        print(f"{' x '.join(map(str, patch))}, batch {batch}, 14 classes, mixed precision: plain {plain / GIB:.1f} GB,")
        print(f"  nested {kept / GIB:.1f} ({kept / plain:.2f} times), by sum {summed / GIB:.1f}, ", end="")
        print(f"activations computed again {again / GIB:.1f} ({again / kept:.2f} of kept)", flush=True)


def plans_architecture(dimensions: int) -> dict:
    """The architecture of nnU-Net's default plans, five levels."""
    return architecture(dimensions, FEATURES[dimensions], 2, 2)


CASES = 200
CLASSES = 14
FINGERPRINT = {  # of an abdominal CT
    "spacings": [[1.5, 0.8, 0.8]] * CASES,
    "shapes_after_crop": [[220, 512, 512]] * CASES,
    "foreground_intensity_properties_per_channel": {
        "0": dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    },
    "median_relative_size_after_cropping": 1.0,
}


def planned(target: int, checkpointing: bool) -> dict[str, tuple[dict, int]]:
    """Return the configurations that ANUNetPlanner makes for a memory target in GB, with its estimates in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        name = "Dataset900_Abdomen"
        for kind in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{kind}"] = str(Path(folder) / kind)
            (Path(folder) / kind / name).mkdir(parents=True)
        dataset = {f"case_{n:03d}": {"images": ["none.nii.gz"], "label": "none.nii.gz"} for n in range(CASES)}
        content = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0} | {f"organ {n}": n for n in range(1, CLASSES)},
            "numTraining": CASES,
            "file_ending": ".nii.gz",
            "overwrite_image_reader_writer": "SimpleITKIO",
            "dataset": dataset,
        }
        (Path(folder) / "raw" / name / "dataset.json").write_text(json.dumps(content))
        (Path(folder) / "preprocessed" / name / "dataset_fingerprint.json").write_text(json.dumps(FINGERPRINT))
        from nnunet_ext.planners.anu_net import ANUNetPlanner

        planner = ANUNetPlanner(900, target)
        planner.checkpointing = checkpointing
        with contextlib.redirect_stdout(io.StringIO()):
            plans = planner.plan_experiment()["configurations"]
        return {name: (plans[name], planner.step_memory(plans[name])) for name in ("2d", "3d_fullres")}


def real_step_memory(configuration: dict, checkpointing: bool, compiled: bool) -> tuple[int, int]:
    """Return the most bytes that torch allocated and reserved in a training step on the GPU."""
    network = build(configuration["architecture"], 1, CLASSES, True).to(DEVICE)
    set_checkpointing([network], checkpointing)
    called = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, momentum=0.99, nesterov=True)
    scaler = torch.amp.GradScaler("cuda")
    loss = HybridLoss()
    if compiled:
        loss.compile()
    patch, batch = configuration["patch_size"], configuration["batch_size"]
    data = torch.randn((batch, 1, *patch), device=DEVICE)
    target = torch.randint(0, CLASSES, (batch, 1, *patch), device=DEVICE).float()
    torch.backends.cudnn.benchmark = True  # as nnU-Net trains
    for number in range(3):
        if number == 2:  # momentum is there, and cuDNN has chosen
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda"):
            outputs = called(data)
            value = sum(loss(output, target) for output in outputs) / len(outputs)
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        del outputs, value
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def bench_planner(a: argparse.Namespace) -> None:
    """Plan, then run a step of each plan."""
    for target, checkpointing in itertools.product(a.targets, (False, True)):
        for name, (plan, estimate) in planned(target, checkpointing).items():
            patch = " x ".join(str(int(n)) for n in plan["patch_size"])
            how = "computed again" if checkpointing else "kept"
            print(f"target {target} GB, {name}, activations {how}: patch {patch}, batch {plan['batch_size']}, ", end="")
            print(f"estimate {estimate / GIB:.2f} GB", flush=True)
            for compiled in (False, *[True] * a.compile) if DEVICE.type == "cuda" else ():
                torch.cuda.empty_cache()
                allocated, reserved = real_step_memory(plan, checkpointing, compiled)
                print(f"  {'compiled' if compiled else 'eager'}: allocated {allocated / GIB:.2f} GB ", end="")
                print(f"({100 * (estimate / allocated - 1):+.0f} %), reserved {reserved / GIB:.2f} GB", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prune", "step", "memory", "planner"])
    parser.add_argument("--dimensions", type=int, nargs="+", choices=[2, 3], default=[2, 3])
    parser.add_argument("--size", type=int, help="voxels an axis")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on the CPU, all sides")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="all sides")
    parser.add_argument("--targets", type=int, nargs="+", default=[8, 24], help="memory in GB")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(machine())
    commands = {"prune": bench_prune, "step": bench_step, "memory": bench_memory, "planner": bench_planner}
    commands[a.what](a)


if __name__ == "__main__":
    main()
