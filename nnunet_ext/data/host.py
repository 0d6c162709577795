"""What is used of nnU-Net's trainer, for readers and type checkers.

It lies here because this is the lowest room that is handed a trainer; all others that are handed one stand above it.
What is private to nnU-Net's trainer is not in it, but in ``plugin/compat.py``.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn


class Trainer(Protocol):
    """nnU-Net's trainer, as far as it is used here. What is made of the plans is there once it is initialised.

    Attributes:
        plans_manager: Plans of the dataset.
        configuration_manager: Configuration of the plans that is trained.
        configuration_name: Name of that configuration.
        dataset_json: Content of dataset.json.
        label_manager: Labels or regions of the dataset.
        fold: Number of the fold, or ``"all"``.
        preprocessed_dataset_folder_base: Folder of the dataset among the preprocessed ones.
        preprocessed_dataset_folder: Folder in it with the configuration's labelled cases.
        output_folder_base: Folder of the model, which holds the folds.
        output_folder: Folder of the fold.
        device: Where the networks lie.
        is_ddp: Whether this is one of several processes that train together.
        local_rank: Number of this process, 0 without others.
        batch_size: Labelled patches of a step in this process.
        oversample_foreground_percent: Share of the patches that is sure to hold foreground, from 0 to 1.
        probabilistic_oversampling: Draw for each patch whether it must hold foreground.
        enable_deep_supervision: Whether smaller outputs of the network are trained, too.
        is_cascaded: Whether the configuration is the second stage of a cascade.
        num_input_channels: Input channels of the network.
        num_epochs: Length of the training.
        current_epoch: Number of the epoch, from 0.
        network: The network whose weights nnU-Net saves as the model's, compiled and wrapped as it is trained.
        optimizer: Optimiser of the network.
        lr_scheduler: Scheduler of its learning rate.
        grad_scaler: Scaler of the gradients for fp16, or None.
        loss: Loss of labelled patches, from lists over the scales with deep supervision.
        logger: nnU-Net's logger of curves.
        my_init_kwargs: Arguments of the constructor, as checkpoints hold them.
        inference_allowed_mirroring_axes: Axes along which predictions may be mirrored.
        was_initialized: Whether the networks are built.
    """

    plans_manager: Any
    configuration_manager: Any
    configuration_name: str
    dataset_json: dict[str, Any]
    label_manager: Any
    fold: int | str
    preprocessed_dataset_folder_base: str
    preprocessed_dataset_folder: str
    output_folder_base: str
    output_folder: str
    device: torch.device
    is_ddp: bool
    local_rank: int
    batch_size: int
    oversample_foreground_percent: float
    probabilistic_oversampling: bool
    enable_deep_supervision: bool
    is_cascaded: bool
    num_input_channels: int
    num_epochs: int
    current_epoch: int
    network: nn.Module
    optimizer: Any
    lr_scheduler: Any
    grad_scaler: Any
    loss: Any
    logger: Any
    my_init_kwargs: dict[str, Any]
    inference_allowed_mirroring_axes: Any
    was_initialized: bool

    def print_to_log_file(self, *args: Any) -> None:
        """Write a line into the log and on the console."""

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return the names of the cases of the fold to train on and to validate with."""
        ...

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Return the labelled cases of the fold to train on and to validate with."""
        ...

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, Any, Any, Any]:  # noqa: N802
        """Return angles of rotation, whether slices are augmented in 2D, the size to draw, and axes to mirror."""
        ...

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return the augmentation of training patches."""

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is done to validation patches."""
