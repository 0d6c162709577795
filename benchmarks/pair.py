"""Time of a CPS step of two different networks by that of these two networks with one Dice + CE each, in one process.

    python benchmarks/pair.py PREPROCESSED_DATASET [--trainer nnUNetTrainerCPS_UNet_ANUNet] [--configuration 2d]
        [--plans nnUNetPlans] [--pairs 30] [--device cpu] [--set NAME=VALUE ...]

PREPROCESSED_DATASET is the folder of a dataset in nnUNet_preprocessed that has unlabelled cases. Both sides get the
same batch of labelled and unlabelled patches, in turn: the trainer's own step, and zero_grad, forward, one Dice +
cross-entropy (nnU-Net's, at the scales that each network has), backward, clipping and optimiser step of both networks
on the joint batch. --set changes class attributes of the trainer, such as widths: --set anu_depth=1.
"""

from __future__ import annotations

import argparse
import ast
import os
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trainer", default="nnUNetTrainerCPS_UNet_ANUNet")
    parser.add_argument("--plans", default="nnUNetPlans")
    parser.add_argument("--configuration", default="2d")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    os.environ["nnUNet_preprocessed"] = str(arguments.folder.parent)
    os.environ.setdefault("nnUNet_compile", "1" if arguments.device == "cuda" else "0")
    os.environ["nnUNet_n_proc_DA"] = "0"
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        measure(arguments)


class Bench:
    """A trainer of a pair, one batch of its loader, and both kinds of step.

    Args:
        trainer: An initialised trainer of CPS.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.sides = (trainer, trainer if trainer.companion is None else trainer.companion)
        self.networks = (trainer.network, trainer.network_2)
        self.optimizers = (trainer.optimizer, trainer.optimizer_2)
        loader, _ = trainer.get_dataloaders()
        self.batch = next(loader)
        self.choices = trainer.target_choices()
        self.losses = [self._loss(one) for one in self.sides]
        self.joint_target = self._joint_target()

    def _loss(self, side: Any) -> Any:
        """Return nnU-Net's Dice + CE over the outputs of one network, whatever its trainer has."""
        from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
        from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

        dice = {"batch_dice": side.configuration_manager.batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
        loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
        return loss if side.deep_supervision_scales() is None else DeepSupervisionWrapper(loss, side.output_weights())

    def _joint_target(self) -> Any:
        """Return labels of the whole batch: those of the labelled patches twice."""
        import torch

        patches = len(self.batch["data"]) + len(self.batch["unlabeled"])
        target = self.batch["target"]
        scales = target if isinstance(target, list) else [target]
        joint = [torch.cat([scale] * -(-patches // len(scale)))[:patches] for scale in scales]
        return joint if isinstance(target, list) else joint[0]

    def step_cps(self) -> None:
        """The step of the trainer, metrics and copies to the device included."""
        self.trainer.cps_step(self.batch, 0.5)

    def step_bound(self) -> None:
        """Both networks, one loss each."""
        import torch

        from nnunet_ext.training.cps_step import update_both

        device, scaler = self.trainer.device, self.trainer.grad_scaler
        data = torch.cat([self.batch["data"], self.batch["unlabeled"]]).to(device)
        target = self.joint_target
        target = [t.to(device) for t in target] if isinstance(target, list) else target.to(device)
        sides = zip(self.networks, self.optimizers, self.losses, self.choices, strict=True)
        for network, optimizer, criterion, choice in sides:
            optimizer.zero_grad(set_to_none=True)
            with self.trainer.autocast():
                loss = criterion(network(data), choice.of(target))
            (loss if scaler is None else scaler.scale(loss)).backward()
        update_both(self.networks, self.optimizers, scaler, 12)
        loss.item()


def measure(arguments: argparse.Namespace) -> None:
    """Time both steps in turn."""
    import numpy as np
    import torch
    from _pairs import interleaved, machine, ratio
    from batchgenerators.utilities.file_and_folder_operations import load_json

    from nnunet_ext.trainers.names import find_trainer

    plans = load_json(str(arguments.folder / f"{arguments.plans}.json")) | {"continue_training": False}
    content = load_json(str(arguments.folder / "dataset.json"))
    settings = dict(pair.split("=", 1) for pair in arguments.set)
    settings = {name: ast.literal_eval(value) for name, value in settings.items()}
    cls = type("Benchmarked", (find_trainer(arguments.trainer),), settings)
    trainer = cls(plans, arguments.configuration, "all", content, torch.device(arguments.device))
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    bench = Bench(trainer)
    for network in bench.networks:
        network.train()
    steps = {"pair": bench.step_cps, "bound": bench.step_bound}
    seconds = interleaved(steps, arguments.pairs)
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in bench.networks]
    kinds = [type(getattr(network, "_orig_mod", network)).__name__ for network in bench.networks]
    print(machine())
    patch, batch = list(trainer.configuration_manager.patch_size), bench.batch
    print(
        f"{arguments.trainer}, {arguments.configuration}, patch {patch}, batch "
        f"{len(batch['data'])} + {len(batch['unlabeled'])}, "
        + " and ".join(f"{kind} ({size:,} parameters)" for kind, size in zip(kinds, sizes, strict=True))
    )
    print(f"CPS step of the pair / both networks with one Dice + CE each: {ratio(seconds['pair'], seconds['bound'])}")
    milliseconds = {name: f"{1000 * np.median(values):.1f} ms" for name, values in seconds.items()}
    print(f"a step (for scale only): {milliseconds}")


if __name__ == "__main__":
    main()
