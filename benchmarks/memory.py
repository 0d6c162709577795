"""The planner's estimate of a CPS step's memory, beside what a real step allocates.

    python benchmarks/memory.py

On a GPU: three plans in mixed precision against torch.cuda.max_memory_allocated, eager and compiled. On a CPU: three
small plans in float32 against what torch's allocator reports (torch.profiler), which checks the bookkeeping, not cuDNN.
"""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from _architecture import architecture as unet
from _pairs import machine
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ext.training.cps_step import CPSStep
from nnunet_ext.training.criteria import CrossPseudoCriterion, deep_supervision_weights
from nnunet_ext.training.step_memory import GIB, cps_step_memory, supervised_loss

PLANS = {  # title: features, patch, batch, classes, residual encoder
    "cuda": {
        "default, 112x160x128, 2 + 2, 14 classes": ([32, 64, 128, 256, 320, 320], (112, 160, 128), 2, 14, False),
        "default, 128x128x128, 2 + 2, 3 classes": ([32, 64, 128, 256, 320, 320], (128, 128, 128), 2, 3, False),
        "ResEncM, 96x160x160, 2 + 2, 14 classes": ([32, 64, 128, 256, 320, 320], (96, 160, 160), 2, 14, True),
    },
    "cpu": {
        "plain 8 to 64, 40x56x40, 2 + 2, 3 classes": ([8, 16, 32, 64], (40, 56, 40), 2, 3, False),
        "plain 16 to 128, 32x32x32, 4 + 4, 14 classes": ([16, 32, 64, 128], (32, 32, 32), 4, 14, False),
        "residual 8 to 64, 40x56x40, 2 + 2, 3 classes": ([8, 16, 32, 64], (40, 56, 40), 2, 3, True),
    },
}


def strides_of(patch: tuple[int, ...], stages: int) -> list[list[int]]:
    """Return strides as nnU-Net's planner chooses them: an axis that is odd or short is not halved."""
    strides = [[1] * len(patch)]
    for _ in range(stages - 1):
        strides.append([2 if n % 2 == 0 and n >= 8 else 1 for n in patch])
        patch = tuple(n // step for n, step in zip(patch, strides[-1], strict=True))
    return strides


def architecture(features: list[int], patch: tuple[int, ...], residual: bool) -> dict:
    """Return an architecture as in plans."""
    stages = len(features)
    convolutions = [1, 3, 4, 6, 6, 6][:stages] if residual else 2
    return unet(3, features, convolutions, 1 if residual else 2, residual, strides=strides_of(patch, stages))


def real_peak(plan: tuple, device: torch.device, compiled: bool) -> int:
    """Return the most bytes allocated at once by the second step, everything that stays included."""
    features, patch, batch_size, classes, residual = plan
    plan_architecture = architecture(features, patch, residual)
    arguments = [plan_architecture[k] for k in ("network_class_name", "arch_kwargs", "_kw_requires_import")]
    networks = [get_network_from_plans(*arguments, 1, classes, deep_supervision=True).to(device) for _ in range(2)]
    optimizers = [torch.optim.SGD(n.parameters(), 1e-2, momentum=0.99, nesterov=True) for n in networks]
    factors = np.cumprod(strides_of(patch, len(features)), 0)
    shapes = [tuple(patch // factor) for factor in factors[:-1]]
    weights = deep_supervision_weights(len(shapes))
    cuda = device.type == "cuda"
    step = CPSStep(
        networks=tuple(torch.compile(n) if compiled else n for n in networks),
        optimizers=tuple(optimizers),
        supervised=supervised_loss(len(shapes), regions=False),
        cross_pseudo=CrossPseudoCriterion(weights, False, False, False, compile_loss=compiled),
        autocast=lambda: torch.autocast("cuda") if cuda else contextlib.nullcontext(),
        device=device,
        number_of_outputs=classes,
        grad_scaler=torch.amp.GradScaler("cuda") if cuda else None,
    )
    batch = {
        "data": torch.randn((batch_size, 1, *patch)),
        "unlabeled": torch.randn((batch_size, 1, *patch)),
        "target": [torch.randint(0, classes, (batch_size, 1, *shape)).float() for shape in shapes],
        "valid": torch.ones((2 * batch_size, 1, *patch), dtype=torch.uint8),
    }
    step(batch, 0.5)  # momentum is there from the second step on
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        step(batch, 0.5)
        return torch.cuda.max_memory_allocated()
    for network in networks:  # a step frees them first, of which the profiler says nothing
        network.zero_grad(set_to_none=True)
    held = sum(p.numel() * 4 * 2 for n in networks for p in n.parameters())  # weights, momentum
    held += sum(
        t.numel() * t.element_size() for t in [batch["data"], batch["unlabeled"], batch["valid"], *batch["target"]]
    )
    with torch.profiler.profile(profile_memory=True) as profile:
        step(batch, 0.5)
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return held + peak


def main() -> None:
    """Measure and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine())
    for title, plan in PLANS[device.type].items():
        features, patch, batch_size, classes, residual = plan
        cuda = device.type == "cuda"
        estimate = cps_step_memory(
            architecture(features, patch, residual), patch, batch_size, 1, classes, half_precision=cuda
        )
        for compiled in (False, True) if cuda else (False,):
            real = real_peak(plan, device, compiled)
            print(
                f"{title}{', compiled' if compiled else ''}: estimate {estimate / GIB:.3f} GB, real "
                f"{real / GIB:.3f} GB, error {100 * (estimate / real - 1):+.1f} %",
                flush=True,
            )


if __name__ == "__main__":
    main()
