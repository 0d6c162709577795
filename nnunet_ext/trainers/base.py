"""What every trainer of ours has beside its parts: devices, seeds, atomic checkpoints, nothing private in outputs."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext.data.loaders import naming_damaged_cases, workers_that_end_with_this_process
from nnunet_ext.data.training_cases import naming_damaged_validation, unlabeled_dataset
from nnunet_ext.data.unlabeled_store import UnlabeledDataset
from nnunet_ext.model_sharing.private import for_inference, without_private_keys
from nnunet_ext.networks.reference_unet import channels_given
from nnunet_ext.plugin import compat
from nnunet_ext.trainers._stock import StockTrainer
from nnunet_ext.training import checkpoints, pretrained
from nnunet_ext.training.architecture import without_second
from nnunet_ext.training.cases import refuse_unfit_cases
from nnunet_ext.training.class_balance import ClassBalance
from nnunet_ext.training.criteria import nnunet_weights
from nnunet_ext.training.host_memory import keep_freed_memory
from nnunet_ext.training.mean_teacher_step import Gate, Mixer
from nnunet_ext.training.nesting import refuse_without_part
from nnunet_ext.training.precision import ENVIRONMENT as BF16_ENVIRONMENT
from nnunet_ext.training.precision import bf16_on_cpu, cpu_has_bf16_units
from nnunet_ext.training.reference_2d import refuse_without_part as refuse_without_part_of_2d
from nnunet_ext.training.seeds import LOADING, base_seed, derived_seed, seed_everything, torch_seed


class ExtPart(StockTrainer):
    """Stands between the parts and nnU-Net's trainer. With default settings it trains as nnU-Net does.

    Attributes:
        seed: Base of all seeds of this training (environment variable ``nnUNet_ext_seed``).
        cpu_bf16: Whether forward passes on CPUs run in bfloat16 (environment variable ``nnUNet_ext_cpu_bf16``).
        has_own_loss: Whether the loss is neither nnU-Net's nor that of the network's part; for those who ask what a
            training takes.
        network_number: Which network of CPS ``network`` is, 1 but for what trains a network 2 of its own kind.
        is_restored: Whether the networks get their weights from a checkpoint, whatever they begin with.
        pretrained_file: File of pretrained weights as it was given, None where there is none.
    """

    has_own_loss = False
    network_number = 1
    is_restored = False
    pretrained_file: str | None = None
    _weights_come_later = False  # whether a checkpoint is about to be loaded, so that no other weights are needed

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        plans = self.changed_plans(plans, configuration)
        super().__init__(plans, configuration, fold, without_private_keys(dataset_json), device)
        if self.is_ddp and device.type == "cpu":
            # nnU-Net takes CUDA for granted under DDP; gloo works on CPUs.
            self.device, self.grad_scaler = device, None
        self.set_defaults()

    def changed_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """Return a copy of the plans as the trained model has them; parts with a network of their own extend it.

        Args:
            plans: Plans of the dataset.
            configuration: Name of the configuration that is trained.
        """
        return without_second(for_inference(plans), configuration)

    def set_defaults(self) -> None:
        """Set the settings that subclasses may change after the constructor; parts extend it, the last part last.

        It is called once, at the end of the constructor, whose signature nnU-Net reads and which no part repeats.
        """
        self.seed = base_seed()
        self.cpu_bf16 = bf16_on_cpu()

    def refuse_unsupported(self) -> None:
        """Raise if this trainer cannot do what is asked; parts extend it."""
        refuse_without_part(self)
        refuse_without_part_of_2d(self)

    def warn_of_slow_bf16(self) -> None:
        """Say so if bfloat16 is asked for on a CPU that computes it in software."""
        asked = [f"{BF16_ENVIRONMENT}=1"] if self.cpu_bf16 else []
        asked += ["teacher_precision 'bf16'"] if self.labels_in_bf16() else []
        asked = asked if self.device.type == "cpu" else []
        if asked and platform.machine() in ("x86_64", "AMD64") and not cpu_has_bf16_units():  # torch tells of x86 alone
            names = " and ".join(one.split("=")[0].split()[0] for one in asked)
            self.print_to_log_file(
                f"WARNING: {' and '.join(asked)}, but this CPU has no bfloat16 units, so that training is several "
                f"times slower than in float32; unset {names}"
            )

    def labels_in_bf16(self) -> bool:
        """Whether a network that only labels does so in bfloat16; the part that has one says so."""
        return False

    def initialize(self) -> None:
        """Build networks, optimisers and losses in nnU-Net's order; how they are wrapped is decided here."""
        if self.was_initialized:
            raise RuntimeError("initialize was called twice; make a new trainer instead")
        self.refuse_unsupported()
        refuse_unfit_cases(self)
        if self.local_rank == 0:
            checkpoints.sweep(self.output_folder)
        self.warn_of_slow_bf16()
        if self.device.type == "cpu":
            keep_freed_memory()
        compat.set_batch_size(self)
        self.num_input_channels = determine_num_input_channels(
            self.plans_manager, self.configuration_manager, self.dataset_json
        )
        self.build_networks()
        self.loss = self._build_loss()
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        self.was_initialized: bool = True
        self.logger.update_config({"hparas": self.hyperparameters()})

    def build_networks(self) -> None:
        """Build, compile and wrap what is trained, with its optimiser; a part with more networks extends it."""
        self.network, self.optimizer, self.lr_scheduler = self.make_network(self.network_number - 1)

    def make_network(self, number: int) -> tuple[nn.Module, Any, Any]:
        """Make one network with optimiser and scheduler.

        Args:
            number: Number of the network, from 0; each has initial weights from a seed of its own.
        """
        fold = -1 if self.fold == "all" else int(self.fold)
        with torch_seed(derived_seed(self.seed, fold + 1, number)):
            network = self.build_network_architecture(
                self.plans_manager,
                self.configuration_manager,
                self.num_input_channels,
                self.label_manager.num_segmentation_heads,
                self.enable_deep_supervision,
            ).to(self.device)
        if self.compiles_networks():
            self.print_to_log_file("Using torch.compile...")
            # one graph for each size of batch: one for all of them, where unlabelled patches come later, is slower
            network = cast(nn.Module, torch.compile(network, dynamic=False))
        with self.using_network(network):
            optimizer, scheduler = self.configure_optimizers()
        if self.is_ddp:
            if self.device.type == "cuda":  # torch has shared batch norms for GPUs alone
                network = self.with_shared_batch_norm(network)
            network = DistributedDataParallel(
                network, device_ids=[self.local_rank] if self.device.type == "cuda" else None
            )
        return network, optimizer, scheduler

    def compiles_networks(self) -> bool:
        """Whether networks are compiled: where nnU-Net does, unless a part says otherwise."""
        return compat.compiles(self)

    def with_shared_batch_norm(self, network: nn.Module) -> nn.Module:
        """Return a network whose batch norms share their statistics over the processes of DDP.

        Args:
            network: The network, on its GPU.
        """
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)

    def own_optimizer(self) -> torch.optim.Optimizer | None:
        """Return the optimiser of ``self.network``, None for nnU-Net's; a part with another network may have one."""
        return None

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Return the optimiser, nnU-Net's unless a part has its own, and nnU-Net's schedule of the learning rate."""
        optimizer = self.own_optimizer()
        if optimizer is None:
            return super().configure_optimizers()
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def deep_supervision_scales(self) -> list[list[float]] | None:
        """Return the size of each output by that of the patch, an entry an axis; None without deep supervision.

        nnU-Net reads them out of the strides of the plans' network; a part with another network says its own.
        """
        return super()._get_deep_supervision_scales()

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        return self.deep_supervision_scales()

    def loading_seed(self) -> int:
        """Return the seed of the data of this training, from the epoch at which it starts or goes on."""
        return derived_seed(self.seed, LOADING, self.current_epoch, self.local_rank)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return nnU-Net's loaders; without loader processes (``nnUNet_n_proc_DA=0``) they can be repeated."""
        seed_everything(self.loading_seed())
        with workers_that_end_with_this_process(), naming_damaged_cases(self):
            return super().get_dataloaders()

    def plot_network_architecture(self) -> None:
        """Draw the network as nnU-Net does, with a channel for the position of the slice where it takes one."""
        image_channels = self.num_input_channels
        self.num_input_channels = channels_given(checkpoints.plain_module(self.network), image_channels)
        try:
            super().plot_network_architecture()
        finally:
            self.num_input_channels = image_channels

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does.

        Raises:
            RuntimeError: If a preprocessed case is damaged; names it and the command that makes it again.
        """
        with naming_damaged_validation(self):
            super().perform_actual_validation(save_probabilities)

    @contextmanager
    def using_network(self, network: nn.Module) -> Iterator[None]:
        """Let ``self.network`` be another network inside the block, so that nnU-Net's own methods serve it too."""
        before: Any = getattr(self, "network", None)
        self.network = network
        try:
            yield
        finally:
            self.network = before

    def _build_loss(self) -> nn.Module:
        return self.default_loss()

    def default_loss(self) -> nn.Module:
        """Return the loss where the name has no part for it: nnU-Net's, unless a part with a network has another."""
        return super()._build_loss()

    def output_weights(self) -> tuple[float, ...]:
        """Return the weights of the network's outputs: nnU-Net's, unless a part with another network has its own."""
        return nnunet_weights(self)

    def target_scales(self) -> list[list[float]] | None:
        """Return the scales that labels are made at; a part with two networks makes those of both."""
        return compat.deep_supervision_scales(self)

    def pseudo_criterion(self) -> nn.Module:
        """Return the loss against pseudo-labels; the part that makes them has one."""
        raise NotImplementedError(f"{type(self).__name__} has no pseudo-labels")

    def label_maker(self) -> tuple[nn.Module, float]:
        """Return the network that labels, and the weight of its labels in this epoch; a part has one."""
        raise NotImplementedError(f"{type(self).__name__} has no pseudo-labels")

    def make_gate(self) -> Gate | None:
        """Return what chooses the pseudo-labels that count, None for all; a part has one."""
        return None

    def make_mixer(self) -> Mixer | None:
        """Return what mixes unlabelled patches, None for nothing; a part has one."""
        return None

    def labels_teach_alone(self) -> bool:
        """Whether pseudo-labels will count in this training, but do not yet; a part with a warm-up says so."""
        return False

    def make_balance(self) -> ClassBalance | None:
        """Return the weights of classes among the pseudo-labels, None for 1; a part has some."""
        return None

    def shares_are_settled(self) -> bool:
        """Whether the share of each class in unlabelled patches is that of the data, and changes no more by itself."""
        return True

    def unlabelled_cases(self) -> UnlabeledDataset:
        """Return the preprocessed unlabelled cases; a part may say which of their patches are drawn."""
        return unlabeled_dataset(self)

    def hyperparameters(self) -> dict[str, Any]:
        """Return the settings that are logged; parts extend it."""
        names = (
            "initial_lr",
            "weight_decay",
            "oversample_foreground_percent",
            "probabilistic_oversampling",
            "num_iterations_per_epoch",
            "num_val_iterations_per_epoch",
            "num_epochs",
            "save_every",
            "enable_deep_supervision",
            "seed",
            "cpu_bf16",
        )
        return {name: getattr(self, name) for name in names} | {"batch_size": self.configuration_manager.batch_size}

    def autocast(self) -> AbstractContextManager:
        """Return the context of a forward pass: fp16 on CUDA as in nnU-Net, bfloat16 on CPUs if switched on."""
        if self.device.type == "cuda":
            return torch.autocast("cuda", enabled=True)
        if self.device.type == "cpu" and self.cpu_bf16:
            return torch.autocast("cpu", dtype=torch.bfloat16)
        return nullcontext()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do nnU-Net's step, in bfloat16 if switched on."""
        with self.autocast() if self.device.type == "cpu" else nullcontext():
            return super().train_step(batch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do nnU-Net's validation step, in bfloat16 if switched on."""
        with self.autocast() if self.device.type == "cpu" else nullcontext():
            return super().validation_step(batch)

    def refuse_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise if a checkpoint of this trainer cannot be continued or validated; parts extend it."""

    def extra_state(self) -> dict[str, Any]:
        """Return what a checkpoint holds beyond nnU-Net's own keys; parts extend it."""
        return {}

    def load_extra_state(self, checkpoint: dict[str, Any]) -> None:
        """Restore what :meth:`extra_state` saved; parts extend it."""

    @contextmanager
    def prepared_pretrained_weights(self, filename: str) -> Iterator[str]:
        """Give the file that nnU-Net takes pretrained weights from, once it is known to fit; parts may change it.

        Raises:
            FileNotFoundError: If there is no such file.
            RuntimeError: If it is no checkpoint.
            ValueError: If its network is another one.
        """
        self.pretrained_file = filename
        weights = pretrained.read_weights(filename)
        if not self.was_initialized:
            self.initialize()
        pretrained.refuse_unfit(self, weights, filename)
        yield filename

    def save_checkpoint(self, filename: str) -> None:
        """Write nnU-Net's checkpoint with :meth:`extra_state` to a temporary file, then rename it."""
        if self.local_rank != 0:
            return
        if self.disable_checkpointing:
            self.print_to_log_file("No checkpoint written, checkpointing is disabled")
            return
        checkpoints.save_atomically(checkpoints.stock_state(self) | self.extra_state(), filename)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Restore a checkpoint of this trainer.

        Raises:
            RuntimeError: If it is a checkpoint of another trainer, or lacks what this one needs.
        """
        checkpoint = checkpoints.load_for(self, filename_or_checkpoint)
        self.is_restored = True
        self.refuse_checkpoint(checkpoint)
        self._weights_come_later = True
        super().load_checkpoint(filename_or_checkpoint)
        self.load_extra_state(checkpoint)
