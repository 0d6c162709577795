"""Trainers that learn from unlabelled patches, ready for a step, and what is compared of them."""

import torch


def weights(network):
    """A copy of a network's state."""
    return {key: value.detach().clone() for key, value in network.state_dict().items()}


def same(first, second):
    """Whether two states are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def networks(trainer):
    """The networks that are trained."""
    return [trainer.network, trainer.network_2] if hasattr(trainer, "network_2") else [trainer.network]


def step_of(trainer):
    """What does a step of a trainer."""
    return trainer.cps_step if hasattr(trainer, "cps_step") else trainer.teaching_step


def ready(trainer, epoch=2, **settings):
    """An initialised trainer in an epoch in which pseudo-labels count, and its loader."""
    for name, value in settings.items():
        setattr(trainer, name, value)
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    trainer.current_epoch = epoch
    loader, _ = trainer.get_dataloaders()
    for network in networks(trainer):
        network.train()
    return trainer, loader
