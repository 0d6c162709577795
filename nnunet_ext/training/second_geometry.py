"""A second geometry of strong views: what is learnt is mirrored and turned, with its labels and masks, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.data.views import apply_turns, draw_turn, turnable_planes
from nnunet_ext.training.host import ExtTrainer
from nnunet_ext.training.seeds import TURNS, derived_seed


class PatchTurner:
    """Turns every patch of a batch by a turn of its own: each call draws new ones, and turns all it is given alike.

    The random numbers are drawn on the CPU; their state goes into checkpoints, so that a training goes on as it would.

    Args:
        dimensions: Number of spatial axes.
        mirror_axes: Axes that may be mirrored; None for none.
        planes: Planes that may be turned by 90 degrees (:func:`~nnunet_ext.data.views.turnable_planes`).
        seed: Seed of the numbers; another one for each process of DDP.
    """

    def __init__(
        self, dimensions: int, mirror_axes: Sequence[int] | None, planes: Sequence[tuple[int, int]], seed: int
    ) -> None:
        self.dimensions, self.mirror_axes, self.planes = dimensions, tuple(mirror_axes or ()), tuple(planes)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors ``(B, C, *S)``, patch n of each turned alike, out of place."""
        turns = [draw_turn(self.dimensions, self.mirror_axes, self.planes, self.generator) for _ in tensors[0]]
        return tuple(turned for turned in apply_turns(turns, *tensors) if turned is not None)

    def reseed(self, seed: int) -> None:
        """Draw from another seed from now on."""
        self.generator = torch.Generator().manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        self.generator.set_state(state["generator"].cpu())


def patch_turner(trainer: ExtTrainer) -> PatchTurner | None:
    """Return what turns the strong views of a trainer, None (with a line in the log) where nothing can be turned.

    Args:
        trainer: Trainer whose ``inference_allowed_mirroring_axes`` and plans say what may be mirrored and turned.
    """
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # which decides on the axes
    configuration = trainer.configuration_manager
    planes = turnable_planes(configuration.patch_size, configuration.spacing)
    axes = trainer.inference_allowed_mirroring_axes
    if not axes and not planes:
        trainer.print_to_log_file(
            "WARNING: second_geometry changes nothing: this trainer mirrors no axis, and no two axes of the patch "
            f"{tuple(configuration.patch_size)} have equal size and spacing"
        )
        return None
    seed = derived_seed(trainer.seed, TURNS, trainer.local_rank)
    return PatchTurner(len(configuration.patch_size), axes, planes, seed)
