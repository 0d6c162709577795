"""What the part ``CPS`` is made of: construction, checkpoints, pretrained weights, validation of both networks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from nnunet_ext.data.splits import hidden_cases_of_fold
from nnunet_ext.files import read_json
from nnunet_ext.networks.averaging import AverageOfNetworks
from nnunet_ext.training import cps_monitor, curves
from nnunet_ext.training.checkpoints import plain_module
from nnunet_ext.training.cps_monitor import CPSMonitor
from nnunet_ext.training.cps_step import CPSStep
from nnunet_ext.training.criteria import CrossPseudoCriterion
from nnunet_ext.training.next_stage import next_stages
from nnunet_ext.training.schedules import restore_scheduler, scheduler_state

KEY = "nnunet_ext_cps"


def refuse_unsupported(trainer: Any) -> None:
    """Raise where CPS cannot do what is asked.

    Raises:
        NotImplementedError: For the second stage of the cascade.
        ValueError: For settings that make no sense, or a contradictory split.
    """
    if trainer.is_cascaded:
        raise NotImplementedError(
            f"{type(trainer).__name__} cannot train {trainer.configuration_name}: unlabelled cases have no prediction "
            "of the cascade's previous stage. Train 3d_fullres instead."
        )
    if trainer.lr_schedule not in ("poly", "plateau"):
        raise ValueError(f"lr_schedule must be 'poly' or 'plateau', got {trainer.lr_schedule!r}")
    if not 0 <= trainer.ramp_fraction <= 1:
        raise ValueError(f"ramp_fraction must lie between 0 and 1, got {trainer.ramp_fraction}")
    hidden_cases_of_fold(trainer.preprocessed_dataset_folder_base, trainer.fold)


def check_networks_differ(first: nn.Module, second: nn.Module) -> None:
    """Raise RuntimeError if both networks have the same weights: they would only repeat each other."""
    pairs = zip(plain_module(first).parameters(), plain_module(second).parameters(), strict=True)
    if all(torch.equal(a, b) for a, b in pairs):
        raise RuntimeError(
            "both networks of CPS were initialised alike, so they cannot correct each other; "
            "build_network_architecture of this trainer must draw its weights from torch's random generator"
        )


def make_monitor(trainer: Any) -> CPSMonitor:
    """Make the monitor for the trainer's classes."""
    return CPSMonitor(0 if trainer.label_manager.has_regions else 1, trainer.missing_class_patience)


def pseudo_criterion(trainer: Any) -> CrossPseudoCriterion:
    """Make nnU-Net's loss against the peer's labels, over all scales."""
    return CrossPseudoCriterion(
        trainer.output_weights(),
        trainer.label_manager.has_regions,
        trainer.configuration_manager.batch_dice,
        trainer.is_ddp,
        compile_loss=trainer._do_i_compile(),
    )


def make_step(trainer: Any) -> CPSStep:
    """Make the step from the trainer's networks, optimisers and loss."""
    regions = trainer.label_manager.has_regions
    return CPSStep(
        networks=(trainer.network, trainer.network_2),
        optimizers=(trainer.optimizer, trainer.optimizer_2),
        supervised=trainer.loss,
        cross_pseudo=trainer.pseudo_criterion(),
        autocast=trainer.autocast,
        device=trainer.device,
        number_of_outputs=trainer.label_manager.num_segmentation_heads,
        regions=regions,
        grad_scaler=trainer.grad_scaler,
    )


def class_names(trainer: Any) -> list[str]:
    """Return the names of the network's outputs."""
    names = {str(value): key for key, value in trainer.dataset_json["labels"].items()}
    if trainer.label_manager.has_regions:
        regions = trainer.label_manager.foreground_regions
        return [names.get(str(list(r) if isinstance(r, tuple) else r), str(r)) for r in regions]
    return [names.get(str(label), str(label)) for label in trainer.label_manager.all_labels]


def say(trainer: Any, values: dict[str, Any]) -> None:
    """Write the state of CPS into the log, with a warning for classes that are being lost."""
    names = class_names(trainer)
    first = trainer.monitor.first_class
    trainer.print_to_log_file(
        f"CPS lambda {values['cps_lambda']:.4f}, loss {values['cps_loss']:.4f}, supervised "
        f"{values['supervised_loss_1']:.4f} / {values['supervised_loss_2']:.4f}"
    )
    trainer.print_to_log_file("CPS agreement (Dice)", _listed(names[first:], values["cps_agreement"], "{:.3f}"))
    trainer.print_to_log_file(
        "CPS share in pseudo-labels", _listed(names[first:], values["pseudo_label_share"][first:], "{:.2e}")
    )
    missing = trainer.monitor.missing_classes(values)
    if missing:
        trainer.print_to_log_file(
            f"WARNING: {', '.join(names[c] for c in missing)} missing from the pseudo-labels for "
            f"{trainer.missing_class_patience} epochs or more, though the labelled patches have it: both networks "
            "agree on leaving it out. A longer ramp (ramp_fraction), a smaller cps_weight or more steps let the labels "
            "teach it first; see docs/cps.md."
        )


def _listed(names: list[str], values: list[float], form: str) -> str:
    return ", ".join(f"{name} {form.format(value)}" for name, value in zip(names, values, strict=False))


def pseudo_dice(outputs: list[dict[str, Any]], suffix: str, ddp: bool) -> list[float]:
    """Return the Dice per class over all validation patches, as nnU-Net computes it for its green line."""
    sums = np.array([np.sum([o[f"{name}_hard{suffix}"] for o in outputs], 0) for name in ("tp", "fp", "fn")])
    if ddp:
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, sums)
        sums = np.sum(everyone, 0)
    tp, fp, fn = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        return [float(v) for v in 2 * tp / (2 * tp + fp + fn)]


def draw(trainer: Any) -> None:
    """Draw the curves of CPS beside nnU-Net's progress.png."""
    if not os.path.isfile(os.path.join(trainer.output_folder, "progress.png")):
        return
    names = class_names(trainer)
    picture = curves.draw(trainer.logger, cps_monitor.PANELS, names)
    curves.append_to_progress_png(trainer.output_folder, picture)


def state(trainer: Any) -> dict[str, Any]:
    """Return what a checkpoint holds of the second network."""
    return {
        "network_weights": plain_module(trainer.network_2).state_dict(),
        "optimizer_state": trainer.optimizer_2.state_dict(),
        "lr_schedulers": [scheduler_state(s) for s in (trainer.lr_scheduler, trainer.lr_scheduler_2)],
        "monitor": trainer.monitor.state(),
    }


def load_state(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Restore the second network.

    Raises:
        RuntimeError: If the checkpoint has none.
    """
    if KEY not in checkpoint:
        raise RuntimeError(
            f"the checkpoint has no second network (key {KEY!r}), which {type(trainer).__name__} needs to go on; it "
            "may be an exported model. Use it with -pretrained_weights instead of --c"
        )
    own = checkpoint[KEY]
    plain_module(trainer.network_2).load_state_dict(own["network_weights"])
    trainer.optimizer_2.load_state_dict(own["optimizer_state"])
    for scheduler, saved in zip((trainer.lr_scheduler, trainer.lr_scheduler_2), own["lr_schedulers"], strict=True):
        restore_scheduler(scheduler, saved)
    trainer.monitor.load_state(own["monitor"])
    curves.register(trainer.logger, cps_monitor.KEYS)


def pretrain_second(trainer: Any, filename: str) -> None:
    """Load pretrained weights into network 2 and warn if both networks now do the same everywhere."""
    load_pretrained_weights(trainer.network_2, filename, verbose=False)
    size = trainer.configuration_manager.patch_size
    generator = torch.Generator().manual_seed(trainer.seed)
    image = torch.randn((1, trainer.num_input_channels, *size), generator=generator).to(trainer.device)
    with torch.no_grad():
        outputs = [plain_module(n).eval()(image) for n in (trainer.network, trainer.network_2)]
    first, second = (o[0] if isinstance(o, (list, tuple)) else o for o in outputs)
    if torch.equal(first.argmax(1), second.argmax(1)) and torch.allclose(first, second):
        trainer.print_to_log_file(
            "WARNING: with these pretrained weights both networks give the same output everywhere, so that they cannot "
            "correct each other."
        )


def set_deep_supervision(networks: list[nn.Module], enabled: bool) -> None:
    """Switch deep supervision of networks, also of those in an average."""
    for network in networks:
        averaged = isinstance(network, AverageOfNetworks)
        members: list[Any] = list(network.networks) if averaged else [plain_module(network)]  # type: ignore[arg-type]
        for member in members:
            member.decoder.deep_supervision = enabled


def validate_others(trainer: Any, validate: Callable[[bool], None]) -> None:
    """Run nnU-Net's final validation for network 2 and for the average of both, in folders of their own."""
    average = AverageOfNetworks(plain_module(trainer.network), plain_module(trainer.network_2))
    folder = trainer.output_folder
    try:
        for name, network in (("network_2", plain_module(trainer.network_2)), ("average", average)):
            trainer.print_to_log_file(f"Validating {name} of the two networks of CPS")
            trainer.output_folder = os.path.join(folder, f"validation_{name}")
            with trainer.using_network(network), next_stages(trainer, ()):  # theirs is network 1's
                validate(False)
            _move_up(Path(trainer.output_folder), trainer.local_rank)
    finally:
        trainer.output_folder = folder
    if trainer.is_ddp:
        dist.barrier()


def _move_up(folder: Path, rank: int) -> None:
    """nnU-Net writes into a subfolder ``validation``; its content belongs one level up."""
    if rank != 0:
        return
    for item in (folder / "validation").iterdir():
        target = folder / item.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(item, target)
    (folder / "validation").rmdir()


def compare_validations(trainer: Any) -> None:
    """Log a table of the final validation of network 1, network 2 and their average."""
    folder = Path(trainer.output_folder)
    rows = {}
    for title, name in (("network 1", ""), ("network 2", "_network_2"), ("average", "_average")):
        summary = read_json(folder / f"validation{name}" / "summary.json", "validate again with --val")
        rows[title] = summary["foreground_mean"]["Dice"]
        trainer.logger.log_summary(f"final_val/foreground_dice{name}", rows[title])
    trainer.print_to_log_file(
        "Mean validation Dice: " + ", ".join(f"{title} {dice:.4f}" for title, dice in rows.items())
    )
