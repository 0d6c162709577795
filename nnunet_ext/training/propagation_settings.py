"""What the part ``Propagation`` decides: the network in the plans, triples of a step, and settings that make sense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch.distributed as dist
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_ext.data.slice_triples import FRAMES, GapSchedule
from nnunet_ext.training.architecture import SPACE_TIME, Architecture
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.reference_2d import in_place

ENOUGH_PIXELS = 128  # of the longer side of a patch
LEAST_TRIPLES = 2  # of a step, of which batch norm knows a spread
PIXEL_LOSSES = ("ohem", "bootstrapped")
STEPS_OF_PAPER = 150_000  # of the training in which bootstrapping begins at 20,000 and ends at 70,000


class PropagationTrainer(ExtTrainer, Protocol):
    """A trainer with the part ``Propagation``; the part says what each setting does."""

    propagation_triples: int | None
    propagation_enlarge: int | None
    propagation_gaps: Sequence[Sequence[float]]
    propagation_pixel_loss: str
    propagation_clip: float
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int


def space_time_architecture(settings: Any, configuration: ConfigurationManager) -> Architecture:
    """Return the architecture of plans with a space-time memory network in place of their 2D network.

    Args:
        settings: A trainer or its class, with the attributes ``propagation_...``.
        configuration: Configuration of the plans; what such a network's own arguments say there stays.

    Raises:
        ValueError: If the configuration is not 2D.
    """
    size = [int(side) for side in configuration.patch_size]
    if len(size) != 2:
        raise ValueError(
            "Propagation carries masks from slice to slice, but the patches of this configuration are "
            f"{' x '.join(map(str, size))}; train the configuration 2d"
        )
    enlarge = settings.propagation_enlarge
    arguments = {
        "key_stages": list(settings.propagation_key_stages),
        "key_blocks": list(settings.propagation_key_blocks),
        "value_stages": list(settings.propagation_value_stages),
        "value_blocks": list(settings.propagation_value_blocks),
        "key_dim": settings.propagation_key_dim,
        "value_dim": settings.propagation_value_dim,
        "decoder_channels": list(settings.propagation_decoder_channels),
        "norm": settings.propagation_norm,
        "enlarge": enlargement(size) if enlarge is None else enlarge,
    }
    return in_place(configuration, SPACE_TIME, arguments)


def enlargement(patch_size: Sequence[int]) -> int:
    """Return by how much patches are enlarged so that the memory has places enough in them, at most 4 times.

    Args:
        patch_size: ``(H, W)`` of the plans.

    Example:
        >>> from nnunet_ext.training.propagation_settings import enlargement
        >>> enlargement((32, 48)), enlargement((64, 96)), enlargement((512, 512))
        (4, 2, 1)
    """
    return next((factor for factor in (1, 2) if factor * max(patch_size) >= ENOUGH_PIXELS), 4)


def triples_of_step(trainer: PropagationTrainer) -> int:
    """Return the triples of a step over all processes: the setting, or those that the plans' batch gives."""
    if trainer.propagation_triples is not None:
        return trainer.propagation_triples
    return default_triples(int(trainer.configuration_manager.batch_size))


def default_triples(batch_size: int) -> int:
    """Return the triples of a step for plans of a batch size: a third of it, at least two."""
    return max(LEAST_TRIPLES, batch_size // FRAMES)


def triples_of_process(trainer: PropagationTrainer) -> int:
    """Return the triples of a step in this process: an equal share, as nnU-Net shares batches."""
    if not trainer.is_ddp:
        return triples_of_step(trainer)
    processes = dist.get_world_size()
    return (triples_of_step(trainer) + processes - 1 - dist.get_rank()) // processes


def training_gaps(trainer: PropagationTrainer) -> GapSchedule:
    """Return how many slices are left out between frames, over the whole length of a training."""
    return GapSchedule(trainer.propagation_gaps, trainer.num_epochs * trainer.num_iterations_per_epoch)


def validation_gaps(trainer: PropagationTrainer) -> GapSchedule:
    """Return how many slices are left out in validation: as at the end, in all epochs, so that they compare."""
    return GapSchedule(trainer.propagation_gaps)


def refuse_senseless_settings(trainer: PropagationTrainer) -> None:
    """Raise ValueError if settings of the part make no sense."""
    if trainer.enable_deep_supervision:
        raise ValueError("Propagation has one output, but enable_deep_supervision is True; leave it False")
    if trainer.propagation_pixel_loss not in PIXEL_LOSSES:
        raise ValueError(
            f"propagation_pixel_loss must be one of {', '.join(PIXEL_LOSSES)}, got {trainer.propagation_pixel_loss!r}"
        )
    triples = trainer.propagation_triples
    if triples is not None and not (_is_whole(triples) and triples >= LEAST_TRIPLES):
        raise ValueError(
            "propagation_triples must be None (a third of the plans' batch) or a whole number from "
            f"{LEAST_TRIPLES}, got {triples!r}"
        )
    if trainer.is_ddp and triples_of_step(trainer) < dist.get_world_size():
        raise ValueError(
            f"the {triples_of_step(trainer)} triples of a step are shared by the {dist.get_world_size()} processes "
            f"that train, each of which needs one; set propagation_triples to {dist.get_world_size()} or more"
        )
    _refuse_senseless_enlargement(trainer.propagation_enlarge)
    if not trainer.propagation_clip > 0:
        raise ValueError(f"propagation_clip must be above 0 (nnU-Net's is 12), got {trainer.propagation_clip!r}")
    _refuse_senseless_gaps(trainer.propagation_gaps)


def _refuse_senseless_enlargement(enlarge: int | None) -> None:
    from nnunet_ext.networks.space_time import ENLARGEMENTS  # whose library takes seconds

    if enlarge is not None and not (_is_whole(enlarge) and enlarge in ENLARGEMENTS):
        raise ValueError(
            "propagation_enlarge must be None (1, 2 or 4 by the plans' patch) or one of "
            f"{', '.join(map(str, ENLARGEMENTS))}, got {enlarge!r}"
        )


def _refuse_senseless_gaps(gaps: Sequence[Sequence[float]]) -> None:
    try:
        shares = [share for share, _ in gaps]
        sound = shares == sorted(shares) and shares[:1] == [0] and shares[-1] < 1
        sound = sound and all(_is_whole(number) and number >= 0 for _, number in gaps)
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(
            "propagation_gaps must be pairs of a share of the training, rising from 0 to below 1, and a number of "
            f"slices from 0 that may be left out from there on, e.g. ((0, 25), (0.1, 3)), got {gaps!r}"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
