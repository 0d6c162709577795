"""The base of our base: nothing at run time; for type checkers, nnU-Net's trainer with the methods that we extend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nnunet_ext.data.host import Trainer

if TYPE_CHECKING:

    class StockTrainer(Trainer):
        """nnU-Net's trainer; what each method does is told there and where we extend it."""

        dataset_class: Any
        disable_checkpointing: bool
        initial_lr: float
        log_file: str
        num_iterations_per_epoch: int
        num_val_iterations_per_epoch: int
        save_every: int

        def __init__(
            self,
            plans: dict[str, Any],
            configuration: str,
            fold: int,
            dataset_json: dict[str, Any],
            device: torch.device = torch.device("cuda"),
        ) -> None:
            raise NotImplementedError

        @staticmethod
        def build_network_architecture(
            plans_manager: Any,
            configuration_manager: Any,
            num_input_channels: int,
            num_output_channels: int,
            enable_deep_supervision: bool = True,
        ) -> nn.Module:
            raise NotImplementedError

        def _build_loss(self) -> nn.Module:
            raise NotImplementedError

        def _get_deep_supervision_scales(self) -> list[list[float]] | None:
            raise NotImplementedError

        def configure_optimizers(self) -> tuple[Any, Any]:
            raise NotImplementedError

        def plot_network_architecture(self) -> None:
            raise NotImplementedError

        def get_dataloaders(self) -> tuple[Any, Any]:
            raise NotImplementedError

        def set_deep_supervision_enabled(self, enabled: bool) -> None:
            raise NotImplementedError

        def on_train_start(self) -> None:
            raise NotImplementedError

        def on_train_epoch_start(self) -> None:
            raise NotImplementedError

        def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
            raise NotImplementedError

        def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
            raise NotImplementedError

        def on_validation_epoch_start(self) -> None:
            raise NotImplementedError

        def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
            raise NotImplementedError

        def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
            raise NotImplementedError

        def on_epoch_end(self) -> None:
            raise NotImplementedError

        def perform_actual_validation(self, save_probabilities: bool = False) -> None:
            raise NotImplementedError

        def load_checkpoint(self, filename_or_checkpoint: str) -> None:
            raise NotImplementedError

else:
    StockTrainer = object
