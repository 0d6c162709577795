"""Time of a step of a mean teacher, and of CPS, against nnU-Net's own step on the same labelled batch.

    python benchmarks/teacher_step.py [--classes 3 14] [--pairs 30] [--bf16] [--small] [--threads 1]

The supervised step is nnU-Net's: one network, labelled patches alone. Those of mean teacher and CPS have as many
unlabelled patches beside them; with CutMix and the gate of the part Confidence, metrics and copies to the device
included. On a GPU networks and losses are compiled, the teacher is not. Loaders are measured in views.py.
"""

from __future__ import annotations

import argparse

import torch
from _pairs import interleaved, machine, ratio
from step import BATCH, Bench
from torch import nn

from nnunet_ext.training.confidence import ConfidenceGate
from nnunet_ext.training.criteria import deep_supervision_weights
from nnunet_ext.training.mean_teacher_step import MeanTeacherStep
from nnunet_ext.training.mixing import BoxMixer
from nnunet_ext.training.teacher import Teacher
from nnunet_ext.training.unlabelled import UnlabelledCriterion


class TeacherBench(Bench):
    """The bench of CPS with a teacher beside the first network."""

    def __init__(self, classes: int, small: bool, bf16: bool) -> None:
        super().__init__(classes, small, bf16)
        self.teacher = Teacher(self.networks[0], 0.99)
        self.strong = self.data[BATCH:] + 0.1 * torch.randn_like(self.data[BATCH:])
        self.bare = self._step()
        gate = ConfidenceGate(classes, 0.8, "per_class", guard=True, device=self.device)
        self.full = self._step(gate=gate, mixer=BoxMixer((0.1, 0.4), 0.8, "box", 1))

    def _step(self, **parts: object) -> MeanTeacherStep:
        return MeanTeacherStep(
            self.networks[0],
            self.optimizers[0],
            self.teacher.network,
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

    def step_teacher(self) -> None:
        """The step of nnUNetTrainerMeanTeacher."""
        self._teach(self.bare)

    def step_teacher_with_parts(self) -> None:
        """The step of nnUNetTrainerMeanTeacher_CutMix_Confidence."""
        self._teach(self.full)

    def _teach(self, step: MeanTeacherStep) -> None:
        target = [t[:BATCH] for t in self.target]
        batch = {"data": self.data[:BATCH], "unlabeled": self.data[BATCH:], "unlabeled_strong": self.strong}
        step(batch | {"target": target, "valid": None}, 0.5)
        self.teacher.update(self.networks[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[3, 14])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast on the CPU, all sides")
    parser.add_argument("--small", action="store_true", help="features 8 to 64 instead of 32 to 256")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(machine())
    for classes in arguments.classes:
        bench = TeacherBench(classes, arguments.small, arguments.bf16)
        sides = {
            "supervised": bench.step_supervised,
            "teacher": bench.step_teacher,
            "teacher, CutMix, Confidence": bench.step_teacher_with_parts,
            "CPS": bench.step_cps,
        }
        seconds = interleaved(sides, arguments.pairs)
        for name in list(sides)[1:]:
            print(f"{classes} classes: {name} / supervised {ratio(seconds[name], seconds['supervised'])}", flush=True)


if __name__ == "__main__":
    main()
