"""The estimate of ReferencePlanner for a CPS step of two different networks, beside what a real step allocates.

    python benchmarks/reference_memory.py

On a GPU: the paper's networks on whole slices, in mixed precision, against torch.cuda.max_memory_allocated. On a CPU:
narrow ones in float32 against what torch's allocator reports (torch.profiler), which checks the bookkeeping, not cuDNN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from _architecture import architecture as unet
from _pairs import machine
from torch import nn

from nnunet_ext.training.cps_step import CPSStep
from nnunet_ext.training.criteria import CrossPseudoCriterion, deep_supervision_weights
from nnunet_ext.training.pair_scales import TargetChoice
from nnunet_ext.training.step_memory import ADAMW, GIB, SGD, PeakOfStorages, cps_step_memory, supervised_loss

INPUT: dict[str, Any] = {
    "windows": [[-150, 250], [-1350, 225], [-500, 1300]],
    "hounsfield_channels": [0],
    "position": True,
}
NARROW_TRANSUNET: dict[str, Any] = {
    "stem_channels": 16,
    "channels": [32, 64, 128],
    "blocks": [1, 1, 2],
    "groups": 8,
    "embed_dim": 96,
    "depth": 3,
    "num_heads": 4,
    "bridge_channels": 64,
    "decoder_channels": [64, 32, 16, 16],
}


@dataclass(frozen=True)
class Pair:
    """Two networks and the batch that they are trained with.

    Attributes:
        kinds: ``"UNet"``, ``"TransUNet"`` or ``"DeepLabV3Plus"``, one of each network.
        patch: Size of a patch.
        batch: Labelled patches, and as many unlabelled ones.
        classes: Number of classes.
        options: Arguments of each network.
    """

    kinds: tuple[str, str]
    patch: tuple[int, int]
    batch: int
    classes: int
    options: tuple[dict[str, Any], dict[str, Any]] = field(default=({}, {}))

    def makers(self) -> list[Callable[[], nn.Module]]:
        """Return what makes each network."""
        return [
            lambda kind=kind, options=options: network(kind, self.patch, self.classes, **options)
            for kind, options in zip(self.kinds, self.options, strict=True)
        ]


FEATURES = {"features": [16, 32, 64, 64]}
DEEPLAB = {"encoder_name": "tu-test_efficientnet", "decoder_channels": 32}
RESNET = {"encoder_name": "resnet18", "decoder_channels": 64}
PAIRS = {
    "cuda": {
        "TransUNet + DeepLabV3Plus, 512 x 512, 2 + 2, 14 classes": Pair(
            ("TransUNet", "DeepLabV3Plus"), (512, 512), 2, 14, ({"dropout": 0.1}, {})
        ),
        "UNet + TransUNet, 320 x 320, 4 + 4, 14 classes": Pair(
            ("UNet", "TransUNet"), (320, 320), 4, 14, ({"features": [32, 64, 128, 256, 512, 512]}, {})
        ),
    },
    "cpu": {
        "UNet + UNet, 96 x 128, 2 + 2, 3 classes": Pair(("UNet", "UNet"), (96, 128), 2, 3, (FEATURES, FEATURES)),
        "narrow UNet + TransUNet, 96 x 128, 2 + 2, 14 classes": Pair(
            ("UNet", "TransUNet"), (96, 128), 2, 14, (FEATURES, NARROW_TRANSUNET)
        ),
        "narrow TransUNet + DeepLabV3Plus, 128 x 128, 3 + 3, 5 classes": Pair(
            ("TransUNet", "DeepLabV3Plus"), (128, 128), 3, 5, (NARROW_TRANSUNET, DEEPLAB)
        ),
        "DeepLabV3Plus with ResNet-18 twice, 128 x 128, 2 + 2, 3 classes": Pair(
            ("DeepLabV3Plus", "DeepLabV3Plus"), (128, 128), 2, 3, (RESNET, RESNET)
        ),
        "DeepLabV3Plus with ResNet-18 twice, 256 x 256, 4 + 4, 3 classes": Pair(
            ("DeepLabV3Plus", "DeepLabV3Plus"), (256, 256), 4, 3, (RESNET, RESNET)
        ),
    },
}


def network(kind: str, patch: tuple[int, int], classes: int, features: Any = None, **options: Any) -> nn.Module:
    """Build one network with windows, position and deep supervision."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    if kind == "UNet":
        content = unet(2, features)
        arguments = content["arch_kwargs"] | INPUT
        path = "nnunet_ext.networks.reference_unet.ReferenceUNet"
        return get_network_from_plans(path, arguments, content["_kw_requires_import"], 1, classes, True, True)
    if kind == "TransUNet":
        from nnunet_ext.networks.transunet import TransUNet

        return TransUNet(1, classes, patch_size=list(patch), deep_supervision=True, **INPUT, **options)
    from nnunet_ext.networks.deeplab import DeepLabV3Plus

    return DeepLabV3Plus(1, classes, **INPUT, **options)


def real_peak(pair: Pair, device: torch.device) -> tuple[int, int | None]:
    """Return the most bytes allocated at once by a step, everything that stays included, and without scratch.

    On the CPU the second value leaves out what kernels take and give back inside one operation; None on a GPU.
    """
    networks = [_as_list(make()).to(device) for make in pair.makers()]
    optimizers = [_optimizer(kind, one) for kind, one in zip(pair.kinds, networks, strict=True)]
    data = torch.randn((pair.batch, 2, *pair.patch), device=device)
    sizes = []
    for one in networks:
        with torch.no_grad():
            sizes.append([tuple(output.shape[2:]) for output in one(data)])
    shapes = list(dict.fromkeys(sizes[0] + sizes[1]))
    weights = [deep_supervision_weights(len(own)) for own in sizes]
    cuda = device.type == "cuda"
    supervised = [supervised_loss(len(own), False, of) for own, of in zip(sizes, weights, strict=True)]
    cross = [CrossPseudoCriterion(of, False, False, False) for of in weights]
    step = CPSStep(
        networks=(networks[0], networks[1]),
        optimizers=(optimizers[0], optimizers[1]),
        supervised=supervised[0],
        cross_pseudo=cross[0],
        autocast=lambda: torch.autocast("cuda") if cuda else contextlib.nullcontext(),
        device=device,
        number_of_outputs=pair.classes,
        grad_scaler=torch.amp.GradScaler("cuda") if cuda else None,
        supervised_2=supervised[1],
        cross_pseudo_2=cross[1],
        targets=tuple(TargetChoice(tuple(shapes.index(size) for size in own)) for own in sizes),
    )
    batch = {
        "data": data.cpu(),
        "unlabeled": torch.randn((pair.batch, 2, *pair.patch)),
        "target": [torch.randint(0, pair.classes, (pair.batch, 1, *shape)).float() for shape in shapes],
        "valid": torch.ones((2 * pair.batch, 1, *pair.patch), dtype=torch.uint8),
    }
    del data
    step(batch, 0.5)  # momentum is there from the second step on
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        step(batch, 0.5)
        return torch.cuda.max_memory_allocated(), None
    _forget_gradients(networks)
    tensors = [batch["data"], batch["unlabeled"], batch["valid"], *batch["target"]]
    for one, optimizer in zip(networks, optimizers, strict=True):  # weights, statistics, momentum
        tensors += [*one.parameters(), *one.buffers()]
        tensors += [value for state in optimizer.state.values() for value in state.values() if value is not None]
    made = PeakOfStorages()
    for tensor in tensors:
        made.count(tensor)
    held = made.now
    with torch.profiler.profile(profile_memory=True) as profile:
        step(batch, 0.5)
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    _forget_gradients(networks)
    with made:
        step(batch, 0.5)
    return held + peak, made.peak


def _forget_gradients(networks: list[nn.Module]) -> None:
    """Free what a step frees first, of which the profiler says nothing as it was made before."""
    for one in networks:
        one.zero_grad(set_to_none=True)


class _List(nn.Module):
    """One output as a list of outputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, data: torch.Tensor) -> list[torch.Tensor]:
        return [self.inner(data)]


def _as_list(made: nn.Module) -> nn.Module:
    return made if hasattr(made, "decoder") and len(made.decoder.seg_layers) > 1 else _List(made)


def _optimizer(kind: str, made: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    if kind == "UNet":
        return torch.optim.SGD(trained, 1e-2, momentum=0.99, nesterov=True)
    return torch.optim.AdamW(trained, 1e-4)


def main() -> None:
    """Measure and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine())
    for title, pair in PAIRS[device.type].items():
        first, second = pair.makers()
        optimizers = tuple(SGD if kind == "UNet" else ADAMW for kind in pair.kinds)
        size = (pair.patch, pair.batch, 1, pair.classes)
        half = device.type == "cuda"
        estimate = cps_step_memory(first, *size, half_precision=half, second=second, optimizers=optimizers)
        real, kept = real_peak(pair, device)
        line = (
            f"{title}: estimate {estimate / GIB:.3f} GB, real {real / GIB:.3f} GB, {100 * (estimate / real - 1):+.1f} %"
        )
        if kept is not None:
            line += f"; without scratch of kernels {kept / GIB:.3f} GB, {100 * (estimate / kept - 1):+.1f} %"
        print(line, flush=True)


if __name__ == "__main__":
    main()
