"""The part ``Propagation``: a space-time memory network that carries masks of a few slices through a volume."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from nnunet_ext.data.loaders import in_background
from nnunet_ext.data.slice_triples import slice_triple_loader
from nnunet_ext.trainers._propagation_validation import validate
from nnunet_ext.trainers.reference_2d import Reference2DPart
from nnunet_ext.training import architecture, propagation_settings, propagation_step
from nnunet_ext.training.seeds import LOADING, derived_seed


class PropagationPart(Reference2DPart):
    """Trains a space-time memory network on triples of slices, in place of the plans' 2D network.

    What shapes the network is a class attribute, changed in a subclass. It is written into the plans beside the model,
    and inference builds from there.

    Attributes:
        propagation_key_stages: Widths of the key encoder's stages at 1/4, 1/8 and 1/16.
        propagation_key_blocks: Residual blocks of each of these stages.
        propagation_value_stages: Channels of the value encoder's stages at 1/4, 1/8 and 1/16.
        propagation_value_blocks: Residual blocks of each of these stages.
        propagation_key_dim: Channels of keys.
        propagation_value_dim: Channels of values.
        propagation_decoder_channels: Channels of the decoder at 1/16, 1/8 and 1/4.
        propagation_norm: ``"batch"`` or ``"instance"``.
        propagation_initial_lr: Learning rate of AdamW at the beginning.
        propagation_triples: Triples of slices a step; None for a third of the plans' batch, at least two.
        propagation_gaps: How many slices at most are left out between two frames of a triple, as pairs: from a share
            of the training on, so many. Validation has the last number.
        propagation_pixel_loss: ``"ohem"``: cross-entropy of hard pixels; ``"bootstrapped"``: of a falling share.
        propagation_clip: Largest norm of the gradient, nnU-Net's.
        propagation_compiled: Whether the network is compiled where nnU-Net compiles.
        propagation_key_weights: File with a state dict of timm's ``resnet50`` that the key encoder begins with,
            ``.pth`` or ``.safetensors``; None for random weights. Nothing is ever downloaded.
        propagation_value_weights: The same of timm's ``resnet18`` for the value encoder.
    """

    propagation_key_stages: Sequence[int] = (64, 128, 256)
    propagation_key_blocks: Sequence[int] = (3, 4, 6)
    propagation_value_stages: Sequence[int] = (64, 128, 256)
    propagation_value_blocks: Sequence[int] = (2, 2, 2)
    propagation_key_dim = 64
    propagation_value_dim = 512
    propagation_decoder_channels: Sequence[int] = (512, 256, 256)
    propagation_norm = "batch"
    propagation_initial_lr = 1e-4
    network_keys = architecture.SPACE_TIME_KEYS
    network_architecture = staticmethod(propagation_settings.space_time_architecture)
    rate_setting = "propagation_initial_lr"
    has_own_loss = True

    def set_defaults(self) -> None:
        """Take the schedule of Pham et al., nnU-Net's clipping, and no weights."""
        super().set_defaults()
        self.enable_deep_supervision = False
        self.propagation_triples: int | None = None
        self.propagation_gaps: Sequence[Sequence[float]] = (
            (0.0, 25),
            (0.1, 3),
            (0.2, 4),
            (0.3, 5),
            (0.4, 7),
            (0.9, 3),
        )
        self.propagation_pixel_loss = "ohem"
        self.propagation_clip = 12.0
        self.propagation_compiled = False
        self.propagation_key_weights: str | None = None
        self.propagation_value_weights: str | None = None

    def encoder_settings(self) -> tuple[tuple[str, str, int], ...]:
        """Return both encoders; two channels of the second one's are masks, of which a file knows nothing."""
        return (("encoder", "propagation_key_weights", 0), ("value_encoder", "propagation_value_weights", 2))

    def refuse_unsupported(self) -> None:
        """Refuse settings that make no sense, before anything is written."""
        super().refuse_unsupported()
        propagation_settings.refuse_senseless_settings(self)

    def build_networks(self) -> None:
        """Build the network, once the batch is one of triples."""
        self.batch_size = propagation_settings.triples_of_process(self)
        super().build_networks()

    def compiles_networks(self) -> bool:
        """Whether the network is compiled, which is off unless asked for."""
        return self.propagation_compiled and super().compiles_networks()

    def deep_supervision_scales(self) -> list[list[float]] | None:
        """Return None: there is one output."""
        return None

    def _build_loss(self) -> nn.Module:
        return propagation_step.loss_of(self)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return loaders of triples; each begins one step early, with the batch that starts its processes."""
        cases, pin, seed = self.get_tr_and_val_datasets(), self.device.type == "cuda", self.triple_seed()
        lengths = (self.num_iterations_per_epoch, self.num_val_iterations_per_epoch)
        gaps = (propagation_settings.training_gaps(self), propagation_settings.validation_gaps(self))
        loaders = []
        for number, train in enumerate((True, False)):
            first = self.current_epoch * lengths[number] - 1
            loader = slice_triple_loader(self, cases[number], train, gaps[number], seed + number, first)
            loaders.append(in_background(loader, pin, train, seed + number))
            next(loaders[-1])
        return loaders[0], loaders[1]

    def triple_seed(self) -> int:
        """Return the seed of all triples of this process; batches follow from it and the number of the step."""
        return derived_seed(self.seed, LOADING, self.local_rank)

    def plot_network_architecture(self) -> None:
        """Draw nothing: what draws networks gives them one image, and this one takes three with masks."""

    def on_train_epoch_start(self) -> None:
        """Set the share of pixels that counts in this epoch, where it changes."""
        super().on_train_epoch_start()
        propagation_step.begin_epoch(self)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Find the objects of first slices in the others, and learn from it."""
        return propagation_step.train_step(self, batch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Find the objects of first slices in the others, and count pixels by label."""
        return propagation_step.validation_step(self, batch)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does, with true labels of a few slices carried through each case."""
        validate(self, partial(super().perform_actual_validation, save_probabilities))

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of the part, and the triples of a step."""
        names = ("triples", "gaps", "pixel_loss", "clip", "compiled")
        settings = {f"propagation_{name}": getattr(self, f"propagation_{name}") for name in names}
        return super().hyperparameters() | settings | {"triples_of_step": propagation_settings.triples_of_step(self)}
