"""Time of a step of a mean teacher, and of CPS, against nnU-Net's own step on the same labelled batch, as a table.

    python benchmarks/teacher_step.py [--classes 3 14] [--pairs 30] [--bf16] [--small] [--threads 1] [--cpu-time]

The supervised step is nnU-Net's: one network, labelled patches alone. Those of mean teacher and CPS have as many
unlabelled patches beside them unless the name says otherwise; metrics and copies to the device included. Where they
have some in every k-th step, k steps are timed and divided by k. On a GPU networks and losses are compiled.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from _pairs import interleaved, machine, ratio
from step import BATCH, Bench
from torch import nn

from nnunet_ext.training.confidence import ConfidenceGate
from nnunet_ext.training.cps_views_step import CPSViewsStep
from nnunet_ext.training.criteria import deep_supervision_weights
from nnunet_ext.training.host_memory import keep_freed_memory
from nnunet_ext.training.mean_teacher_step import MeanTeacherStep
from nnunet_ext.training.mixing import BoxMixer
from nnunet_ext.training.precision import labelling_context
from nnunet_ext.training.teacher import Teacher
from nnunet_ext.training.unlabelled import UnlabelledCriterion


class TeacherBench(Bench):
    """The bench of CPS with a teacher beside the first network."""

    def __init__(self, classes: int, small: bool, bf16: bool) -> None:
        super().__init__(classes, small, bf16)
        self.classes = classes
        self.teacher = Teacher(self.networks[0], 0.99)
        self.strong = [self.data[BATCH:] + 0.1 * torch.randn_like(self.data[BATCH:]) for _ in range(2)]
        if self.cuda:
            self.teacher.network.compile(dynamic=False)
        self.bare = self._step()
        self.full = self._step(gate=self._gate(), mixer=self._mixer())
        self.low = self._step(labelling=labelling_context("bf16", self.device, nullcontext))
        self.views = CPSViewsStep(
            networks=tuple(self.networks),
            optimizers=tuple(self.optimizers),
            supervised=self.loss,
            unlabelled=self.bare.unlabelled,
            autocast=self.autocast,
            device=self.device,
            number_of_outputs=classes,
            mixer=self._mixer(),
            grad_scaler=self.scaler,
        )

    def _gate(self) -> ConfidenceGate:
        return ConfidenceGate(
            self.classes,
            0.8,
            "per_class",
            guard=True,
            device=self.device,
            labelled_share=torch.full((self.classes,), 1 / self.classes),
        )

    def _mixer(self) -> BoxMixer:
        return BoxMixer((0.1, 0.4), 0.8, "box", 1)

    def _step(self, **parts: object) -> MeanTeacherStep:
        return MeanTeacherStep(
            self.networks[0],
            self.optimizers[0],
            self.teacher,
            self.loss,
            UnlabelledCriterion(deep_supervision_weights(3), False, compile_loss=self.cuda),
            self.autocast,
            self.device,
            self.cps.number_of_outputs,
            grad_scaler=self.scaler,
            **parts,
        )

    def step_supervised(self) -> None:
        """nnU-Net's step."""
        data = self.data[:BATCH].to(self.device)
        target = [t[:BATCH].to(self.device) for t in self.target]
        network, optimizer = self.networks[0], self.optimizers[0]
        optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(network(data), target)
        self._backward(loss)
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step() if self.scaler is None else self.scaler.step(optimizer)
        if self.scaler is not None:
            self.scaler.update()
        loss.item()

    def sides(self) -> dict[str, tuple[int, Callable[[], None]]]:
        """Return what is timed, by name, with the number of steps that it does."""
        sides = {
            "nnU-Net's step": (1, self.step_supervised),
            "mean teacher": (1, partial(self.teach, self.bare)),
            "mean teacher, CutMix, Confidence": (1, partial(self.teach, self.full)),
            "mean teacher, unlabelled patches in every 2nd step": (2, partial(self.teach, self.bare, 2)),
            "mean teacher, in every 4th step": (4, partial(self.teach, self.bare, 4)),
            "mean teacher, half as many unlabelled patches": (1, partial(self.teach, self.bare, 1, BATCH // 2)),
            "mean teacher, half as many in every 2nd step": (2, partial(self.teach, self.bare, 2, BATCH // 2)),
            "CPS": (1, self.step_cps),
            "CPS, CutMix": (1, self.cross),
            "CPS, CutMix, in every 2nd step": (2, partial(self.cross, 2)),
        }
        if not self.bf16 and not self.cuda:
            sides["mean teacher that labels in bfloat16"] = (1, partial(self.teach, self.low))
        return sides

    def teach(self, step: MeanTeacherStep, every: int = 1, unlabelled: int = BATCH) -> None:
        """Do steps of a mean teacher, the first of them with unlabelled patches."""
        for number in range(every):
            step(self._batch(unlabelled if number == 0 else 0), 0.5 if number == 0 else 0.0)
            self.teacher.update(self.networks[0])

    def cross(self, every: int = 1) -> None:
        """Do steps of CPS with two views, the first of them with unlabelled patches."""
        for number in range(every):
            self.views(self._batch(BATCH if number == 0 else 0), 0.5)

    def _batch(self, unlabelled: int) -> dict[str, object]:
        batch = {"data": self.data[:BATCH], "target": [t[:BATCH] for t in self.target], "valid": None}
        if unlabelled:
            batch["unlabeled"] = self.data[BATCH : BATCH + unlabelled]
            batch |= {f"unlabeled_strong{key}": self.strong[i][:unlabelled] for i, key in enumerate(("", "_2"))}
        return batch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 14])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on the CPU, all sides")
    parser.add_argument("--small", action="store_true", help="features 8 to 64 instead of 32 to 256")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cpu-time", action="store_true", help="time of the processor, for one thread beside others")
    parser.add_argument("--only", default="", help="names that have this text, beside nnU-Net's step")
    parser.add_argument("--give-back", action="store_true", help="let glibc give back what is freed")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if not torch.cuda.is_available() and not arguments.give_back:
        keep_freed_memory()  # as trainers do
    print(machine())
    print("\n| classes | step | by nnU-Net's step [95 %] |\n|---|---|---|")
    for classes in arguments.classes:
        sides = TeacherBench(classes, arguments.small, arguments.bf16).sides()
        first = next(iter(sides))
        sides = {name: side for name, side in sides.items() if name == first or arguments.only in name}
        clock = time.process_time if arguments.cpu_time else None
        seconds = interleaved({name: side for name, (_, side) in sides.items()}, arguments.pairs, clock=clock)
        for name, (steps, _) in list(sides.items())[1:]:
            print(f"| {classes} | {name} | {ratio(seconds[name] / steps, seconds[first])} |", flush=True)


if __name__ == "__main__":
    main()
