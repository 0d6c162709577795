"""A second network that is trained beside the first: the same weights are refused, its state in checkpoints.

Whoever trains two networks takes this, whatever the second one learns from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from nnunet_ext.networks.averaging import AverageOfNetworks
from nnunet_ext.networks.reference_unet import channels_given
from nnunet_ext.training.checkpoints import SECOND_NETWORK, plain_module
from nnunet_ext.training.host import TwoNetworkTrainer
from nnunet_ext.training.schedules import restore_scheduler, scheduler_state


def check_networks_differ(first: nn.Module, second: nn.Module) -> None:
    """Raise RuntimeError if both networks have the same weights: they would only repeat each other."""
    pairs = zip(plain_module(first).parameters(), plain_module(second).parameters(), strict=True)
    if all(torch.equal(a, b) for a, b in pairs):
        raise RuntimeError(
            "both networks of CPS were initialised alike, so they cannot correct each other; "
            "build_network_architecture of this trainer must draw its weights from torch's random generator"
        )


def set_deep_supervision(networks: list[nn.Module], enabled: bool) -> None:
    """Switch deep supervision of networks, also of those in an average."""
    for network in networks:
        averaged = isinstance(network, AverageOfNetworks)
        members: list[Any] = list(network.networks) if averaged else [plain_module(network)]  # type: ignore[arg-type]
        for member in members:
            member.decoder.deep_supervision = enabled


@contextmanager
def without_deep_supervision(network: nn.Module) -> Iterator[None]:
    """Let a network give its one output at full resolution inside the block.

    Args:
        network: Network of nnU-Net's kind, compiled or wrapped or not.
    """
    decoder: Any = plain_module(network).decoder
    before = decoder.deep_supervision
    decoder.deep_supervision = False
    try:
        yield
    finally:
        decoder.deep_supervision = before


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
        RuntimeError: If the checkpoint has no second network.
    """
    if SECOND_NETWORK not in checkpoint:
        raise RuntimeError(
            f"the checkpoint has no second network (key {SECOND_NETWORK!r}), which {type(trainer).__name__} needs to "
            "go on; it may be an exported model. Use it with -pretrained_weights instead of --c"
        )
    saved: dict[str, Any] = checkpoint[SECOND_NETWORK]
    plain_module(trainer.network_2).load_state_dict(saved["network_weights"])
    trainer.optimizer_2.load_state_dict(saved["optimizer_state"])
    for scheduler, numbers in zip((trainer.lr_scheduler, trainer.lr_scheduler_2), saved["lr_schedulers"], strict=True):
        restore_scheduler(scheduler, numbers)
    return saved


def pretrain(trainer: TwoNetworkTrainer, filename: str) -> None:
    """Load pretrained weights into the second network and warn if both networks now do the same everywhere."""
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
