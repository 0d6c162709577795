"""A second network that is trained beside the first: the same weights are refused, its state in checkpoints.

Whoever trains two networks takes this, whatever the second one learns from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from nnunet_ext.files import naming_full_disk
from nnunet_ext.networks.averaging import AverageOfNetworks
from nnunet_ext.networks.reference_unet import channels_given
from nnunet_ext.training import pretrained
from nnunet_ext.training.checkpoints import SECOND_NETWORK, UnfitWeight, plain_module, read, unfit_weights
from nnunet_ext.training.enhancement import widened_weights
from nnunet_ext.training.host import TwoNetworkTrainer
from nnunet_ext.training.schedules import restore_scheduler, scheduler_state


def check_networks_differ(first: nn.Module, second: nn.Module) -> None:
    """Raise RuntimeError if both networks have the same weights: they would only repeat each other."""
    weights = [list(plain_module(network).parameters()) for network in (first, second)]
    if [one.shape for one in weights[0]] != [one.shape for one in weights[1]]:
        return  # they are not even of one kind
    if all(torch.equal(a, b) for a, b in zip(*weights, strict=True)):
        raise RuntimeError(
            "both networks of CPS were initialised alike, so they cannot correct each other; "
            "build_network_architecture of this trainer must draw its weights from torch's random generator"
        )


def deep_supervision_switch(network: nn.Module) -> Any:
    """Return what of a network has the switch ``deep_supervision``, None for a network of one output.

    Args:
        network: Network of nnU-Net's kind, whose decoder has it, or one that has it itself; compiled or wrapped or not.
    """
    plain = plain_module(network)
    places = (getattr(plain, "decoder", None), plain)
    return next((place for place in places if hasattr(place, "deep_supervision")), None)


def set_deep_supervision(networks: list[nn.Module], enabled: bool) -> None:
    """Switch deep supervision of networks, also of those in an average."""
    for network in networks:
        averaged = isinstance(network, AverageOfNetworks)
        members: list[Any] = list(network.networks) if averaged else [network]  # type: ignore[arg-type]
        for member in members:
            switch = deep_supervision_switch(member)
            if switch is not None:
                switch.deep_supervision = enabled


@contextmanager
def without_deep_supervision(network: nn.Module) -> Iterator[None]:
    """Let a network give its one output at full resolution inside the block.

    Args:
        network: Network of nnU-Net's kind, compiled or wrapped or not.
    """
    switch = deep_supervision_switch(network)
    if switch is None:
        yield
        return
    before = switch.deep_supervision
    switch.deep_supervision = False
    try:
        yield
    finally:
        switch.deep_supervision = before


def state(trainer: TwoNetworkTrainer) -> dict[str, Any]:
    """Return what a checkpoint holds of the second network."""
    return {
        "network_weights": plain_module(trainer.network_2).state_dict(),
        "optimizer_state": trainer.optimizer_2.state_dict(),
        "lr_schedulers": [scheduler_state(s) for s in (trainer.lr_scheduler, trainer.lr_scheduler_2)],
    }


def load_state(trainer: TwoNetworkTrainer, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Restore the second network, and return all that the checkpoint holds beside nnU-Net's own keys.

    Raises:
        RuntimeError: If the checkpoint has no second network, or another one.
    """
    if SECOND_NETWORK not in checkpoint:
        raise RuntimeError(
            f"the checkpoint has no second network (key {SECOND_NETWORK!r}), which {type(trainer).__name__} needs to "
            "go on; it may be an exported model. Use it with -pretrained_weights instead of --c"
        )
    saved: dict[str, Any] = checkpoint[SECOND_NETWORK]
    unfit = next(unfit_weights(plain_module(trainer.network_2).state_dict(), saved["network_weights"]), None)
    if unfit is not None:
        raise RuntimeError(
            f"the checkpoint has another network 2 than {type(trainer).__name__}: {_difference(unfit)}; continue it "
            "with the trainer and the plans that wrote it"
        )
    plain_module(trainer.network_2).load_state_dict(saved["network_weights"])
    trainer.optimizer_2.load_state_dict(saved["optimizer_state"])
    for scheduler, numbers in zip((trainer.lr_scheduler, trainer.lr_scheduler_2), saved["lr_schedulers"], strict=True):
        restore_scheduler(scheduler, numbers)
    return saved


def _difference(unfit: UnfitWeight) -> str:
    if unfit.given is None:
        return f"it lacks {unfit.key}"
    if unfit.expected is None:
        return f"it has {unfit.key}, which is one too many"
    return f"{unfit.key} has the shape {unfit.given} there and {unfit.expected} here"


def pretrain(trainer: TwoNetworkTrainer, filename: str) -> None:
    """Load pretrained weights into the second network and warn if both networks now do the same everywhere.

    A second network of another kind takes those of the file that fit it, or keeps its initial ones, which is logged.
    """
    if trainer.companion is not None:
        # that of network 1 may have been made to fit it
        _pretrain_other(trainer, trainer.pretrained_file or filename)
        return
    load_pretrained_weights(trainer.network_2, filename, verbose=False)
    size = trainer.configuration_manager.patch_size
    generator = torch.Generator().manual_seed(trainer.seed)
    channels = channels_given(plain_module(trainer.network), trainer.num_input_channels)
    image = torch.randn((1, channels, *size), generator=generator).to(trainer.device)
    with torch.no_grad():
        outputs = [plain_module(network).eval()(image) for network in (trainer.network, trainer.network_2)]
    first, second = (output[0] if isinstance(output, (list, tuple)) else output for output in outputs)
    if torch.equal(first.argmax(1), second.argmax(1)) and torch.allclose(first, second):
        trainer.print_to_log_file(
            "WARNING: with these pretrained weights both networks give the same output everywhere, so that they cannot "
            "correct each other."
        )


def _pretrain_other(trainer: TwoNetworkTrainer, filename: str) -> None:
    """Give network 2 the weights of network 2 in the file, or those of its only network, if they fit."""
    content = read(filename, ("network_weights",), "give a checkpoint of nnU-Net after -pretrained_weights")
    offered = {
        "network 2": content.get(SECOND_NETWORK, {}).get("network_weights"),
        "the network": content["network_weights"],
    }
    kind = type(plain_module(trainer.network_2)).__name__
    for which, weights in offered.items():
        if weights is None:
            continue
        with tempfile.TemporaryDirectory() as folder, _fitting(trainer.network_2, weights, Path(folder)) as file:
            if file is None:
                continue
            load_pretrained_weights(trainer.network_2, file, verbose=False)
        trainer.print_to_log_file(f"Network 2 ({kind}) begins with the weights of {which} in {filename}")
        return
    trainer.print_to_log_file(f"Network 2 ({kind}) keeps its initial weights: {filename} holds none of such a network")


@contextmanager
def _fitting(network: nn.Module, weights: dict[str, Any], folder: Path) -> Iterator[str | None]:
    """Give a file of weights that fits a network, as nnU-Net loads pretrained ones; None where they do not fit.

    Weights of a plain network fit one with enhanced skips: added input channels are zero.
    """
    file = folder / "weights.pth"
    with naming_full_disk(file):
        torch.save({"network_weights": weights}, file)
    enhanced = hasattr(plain_module(network), "added_input_channels")
    as_it_is: AbstractContextManager[tuple[str, list[str]]] = nullcontext((str(file), []))
    with widened_weights([network], str(file)) if enhanced else as_it_is as (widened, _):
        yield widened if pretrained.fits(network, pretrained.read_weights(widened)) else None
