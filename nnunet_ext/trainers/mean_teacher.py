"""The part ``MeanTeacher``: a running mean of the network labels unlabelled patches for it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from nnunet_ext.data.loaders import in_background, two_stream_loader, validation_loader
from nnunet_ext.data.unlabelled_steps import refuse_senseless_steps, unlabelled_steps
from nnunet_ext.plugin import compat
from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.training import cps_monitor, curves, next_stage, second_network, semi_supervised, teacher_monitor
from nnunet_ext.training.checkpoints import TEACHING, plain_module
from nnunet_ext.training.drift import DriftAlarm, warn_of_drift
from nnunet_ext.training.mean_teacher_step import MeanTeacherStep
from nnunet_ext.training.precision import labelling_context, refuse_unknown_precision
from nnunet_ext.training.schedules import SCHEDULE, check_schedule, ramped_weight
from nnunet_ext.training.second_geometry import patch_turner
from nnunet_ext.training.seeds import BOXES, TURNS, seed_everything
from nnunet_ext.training.teacher import Teacher, check_decay, teacher_of
from nnunet_ext.training.unlabelled import unlabelled_criterion
from nnunet_ext.training.validation import compare_validations, validate_networks


class MeanTeacherPart(TrainerMixin):
    """Adds a teacher, the running mean of the trained network's weights, and the loss of what it labels.

    The teacher labels weak views of unlabelled patches (no change of intensities), the student, which is the trained
    network, learns strong views of the same patches. The model that a training leaves is the teacher: checkpoints hold
    it as the network's weights, and nnU-Net's curves and validation are its.

    Attributes:
        unlabeled_weight: Weight of the loss of pseudo-labels after its ramp, lambda; 0 trains as nnU-Net does.
        warmup_fraction: Share of the epochs in which the labels alone teach.
        ramp_fraction: Share of the epochs after which the weight is reached; it rises linearly from the warm-up on.
        ramp_down_fraction: Share of the epochs, the last ones, in which the weight falls again.
        ramp_down_end: Share of the weight that the last epoch has.
        ema_decay: Decay of the running mean a step; None takes a window of 2 % of the steps, 0.99 to 0.9995.
        use_unlabeled: Whether to train on unlabelled patches, too.
        second_geometry: Whether strong views are mirrored and turned by 90 degrees once more, with their labels: along
            the axes that may be mirrored, and in planes of equal size and spacing.
        unlabeled_every: Steps from one with unlabelled patches to the next; the others learn from labels alone.
        unlabeled_batch_size: Unlabelled patches of a step, over all processes; None for as many as labelled ones.
        teacher_precision: ``"bf16"`` or ``"fp16"`` (GPUs), in which the teacher labels; None takes the student's.
        missing_class_patience: Epochs after which a class that is missing from the pseudo-labels is warned of.
        validate_student: Whether the student gets a final validation, too.
        has_teacher: Whether a teacher stands beside the network, for those who ask what a training takes.
    """

    has_teacher = True
    teacher: Teacher

    def set_defaults(self) -> None:
        """Set the weight of the pseudo-labels, its schedule, and the teacher's decay."""
        super().set_defaults()
        self.unlabeled_weight = 0.5
        self.warmup_fraction, self.ramp_fraction, self.ramp_down_fraction, self.ramp_down_end = SCHEDULE
        self.ema_decay: float | None = None
        self.use_unlabeled = True
        self.second_geometry = False
        self.unlabeled_every = 1
        self.unlabeled_batch_size: int | None = None
        self.teacher_precision: str | None = None
        self.missing_class_patience = 3
        self.validate_student = True

    def refuse_unsupported(self) -> None:
        """Refuse the cascade, and settings that make no sense."""
        super().refuse_unsupported()
        semi_supervised.refuse_cascade(self)
        check_decay(self.ema_decay)
        refuse_senseless_steps(self)
        refuse_unknown_precision(self.teacher_precision, self.device)
        check_schedule(
            self.num_epochs,
            self.unlabeled_weight,
            self.warmup_fraction,
            self.ramp_fraction,
            self.ramp_down_fraction,
            self.ramp_down_end,
        )

    def build_networks(self) -> None:
        """Build the network, and the teacher from it."""
        super().build_networks()
        self.teacher = teacher_of(self.network, self.ema_decay, self.num_epochs * self.num_iterations_per_epoch)
        self._supervise_teacher_deeply(False)
        if compat.compiles(self):
            self.teacher.network.compile(dynamic=False)

    def initialize(self) -> None:
        """Initialise as nnU-Net does, then make the step from what is there."""
        super().initialize()
        self.monitor = teacher_monitor.TeacherMonitor(semi_supervised.first_class(self), self.missing_class_patience)
        self.drift = DriftAlarm(semi_supervised.first_class(self))
        self.gate, self.mixer, self.balance = self.make_gate(), self.make_mixer(), self.make_balance()
        self.turner = patch_turner(self) if self.second_geometry else None
        self.teaching_step = MeanTeacherStep(
            self.network,
            self.optimizer,
            self.teacher,
            self.loss,
            unlabelled_criterion(self),
            self.autocast,
            self.device,
            self.label_manager.num_segmentation_heads,
            self.label_manager.has_regions,
            self.gate,
            self.mixer,
            self.balance,
            self.grad_scaler,
            turner=self.turner,
            labelling=labelling_context(self.teacher_precision, self.device, self.autocast),
        )
        curves.register(self.logger, teacher_monitor.KEYS)

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of the teaching."""
        names = (
            "unlabeled_weight",
            "warmup_fraction",
            "ramp_fraction",
            "ramp_down_fraction",
            "ramp_down_end",
            "ema_decay",
            "use_unlabeled",
            "second_geometry",
            "unlabeled_every",
            "unlabeled_batch_size",
            "teacher_precision",
            "missing_class_patience",
            "validate_student",
        )
        return super().hyperparameters() | {name: getattr(self, name) for name in names}

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return the two-stream training loader with two views, and nnU-Net's validation loader."""
        unlabelled = self.unlabelled_cases() if self.use_unlabeled and self.unlabeled_weight else None
        pin = self.device.type == "cuda"
        seed = self.loading_seed()
        seed_everything(seed)
        train = in_background(
            two_stream_loader(self, unlabelled, strong_views=1, steps=unlabelled_steps(self)), pin, True, seed
        )
        val = in_background(validation_loader(self), pin, False, seed + 1)
        next(train), next(val)
        return train, val

    def _supervise_teacher_deeply(self, enabled: bool) -> None:
        """Switch the teacher's outputs: nnU-Net's validation of patches expects all of them, the step one."""
        if self.is_ddp:  # nnU-Net's method expects the wrapper of DDP there, which the teacher has not
            second_network.set_deep_supervision([self.teacher.network], enabled)
            return
        with self.using_network(self.teacher.network):
            self.set_deep_supervision_enabled(enabled)  # networks of users have switches of their own

    def on_train_start(self) -> None:
        """Say where the next stage of a cascade finds what this one predicts."""
        super().on_train_start()
        next_stage.log_where_to_copy(self)

    def current_unlabeled_weight(self) -> float:
        """Return lambda of the current epoch."""
        return ramped_weight(
            self.current_epoch,
            self.num_epochs,
            self.unlabeled_weight,
            self.warmup_fraction,
            self.ramp_fraction,
            self.ramp_down_fraction,
            self.ramp_down_end,
        )

    def labels_teach_alone(self) -> bool:
        """Whether this epoch is one of the warm-up, before the first pseudo-labels."""
        warms_up = self.current_epoch < round(self.warmup_fraction * self.num_epochs)
        return super().labels_teach_alone() or bool(self.use_unlabeled and self.unlabeled_weight and warms_up)

    def labels_in_bf16(self) -> bool:
        """Whether the teacher labels in bfloat16."""
        return super().labels_in_bf16() or self.teacher_precision == "bf16"

    def label_maker(self) -> tuple[nn.Module, float]:
        """Return the network that labels, and the weight that its labels have in this epoch."""
        return self.teacher.network, self.current_unlabeled_weight()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train the student on one batch of the two-stream loader, then move the teacher."""
        weight = self.current_unlabeled_weight() if batch.get("unlabeled") is not None else 0.0
        report = self.teaching_step(batch, weight)
        self.teacher.update(self.network)
        return report

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log nnU-Net's training loss (supervised) and the curves of the teaching; warn of missing classes."""
        super().on_train_epoch_end([{"loss": o["loss"]} for o in train_outputs])
        weight = self.current_unlabeled_weight() if self.use_unlabeled else 0.0
        values = self.monitor.epoch(train_outputs, weight, self.is_ddp)
        curves.log(self.logger, values, self.current_epoch)
        teacher_monitor.log_epoch(self, values)
        if weight:
            warn_of_drift(self, values["pseudo_label_share"])

    def on_validation_epoch_start(self) -> None:
        """Set the student to evaluation, and let the teacher have the outputs that nnU-Net's step expects."""
        super().on_validation_epoch_start()
        self._supervise_teacher_deeply(self.enable_deep_supervision)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Validate the teacher as nnU-Net does, and the student on the same patches."""
        second = batch | {"target": deepcopy(batch["target"])}  # nnU-Net's step writes into the target on CPUs
        with self.using_network(self.teacher.network):
            report = super().validation_step(batch)
        other = super().validation_step(second)
        return report | {f"{key}_student": value for key, value in other.items()}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log the pseudo Dice of teacher and student; nnU-Net's own curves follow the teacher."""
        self._supervise_teacher_deeply(False)
        super().on_validation_epoch_end(val_outputs)
        dice = self.logger.get_value("dice_per_class_or_region", step=-1)
        values = {
            "pseudo_dice_teacher": [float(d) for d in dice],
            "pseudo_dice_student": cps_monitor.pseudo_dice(val_outputs, "_student", self.is_ddp),
        }
        curves.log(self.logger, values, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Draw the curves of the teaching beside nnU-Net's."""
        super().on_epoch_end()
        if self.local_rank == 0:
            teacher_monitor.draw(self)

    def extra_state(self) -> dict[str, Any]:
        """Put the teacher where nnU-Net looks for a network, and the student and all counters under a key of ours."""
        teaching = {
            "student": plain_module(self.network).state_dict(),
            "teacher": self.teacher.state_dict(),
            "monitor": self.monitor.state(),
            "drift": self.drift.state_dict(),
        } | {name: part.state_dict() for name, part in self._stateful_parts().items()}
        weights = self.teacher.network.state_dict()
        return super().extra_state() | {"network_weights": weights, TEACHING: teaching}

    def load_extra_state(self, checkpoint: dict[str, Any]) -> None:
        """Restore teacher, student and counters.

        Raises:
            RuntimeError: If the checkpoint has none, or is one of other parts.
        """
        super().load_extra_state(checkpoint)
        saved = semi_supervised.teaching_of(self, checkpoint)
        self.teacher.load_state_dict(saved["teacher"])
        plain_module(self.network).load_state_dict(saved["student"])
        self.monitor.load_state(saved["monitor"])
        self.drift.load_state_dict(saved["drift"])
        for name, part in self._stateful_parts().items():
            if name in saved:
                part.load_state_dict(saved[name])
            else:
                self.print_to_log_file(f"The checkpoint has no {name} of pseudo-labels: a new one begins")
        semi_supervised.draw_apart(self, {BOXES: self.mixer, TURNS: self.turner})
        curves.register(self.logger, teacher_monitor.KEYS)

    def _stateful_parts(self) -> dict[str, Any]:
        parts = {"gate": self.gate, "mixer": self.mixer, "balance": self.balance, "turner": self.turner}
        return {name: part for name, part in parts.items() if part is not None}

    def after_pretrained_weights(self, filename: str) -> None:
        """Let the teacher begin with the pretrained weights that the student has taken."""
        self.teacher.begin_with(self.network)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate the student, then the teacher, whose results are nnU-Net's."""
        if self.validate_student:
            validate_networks(self, {"student": plain_module(self.network)}, super().perform_actual_validation)
        with (
            self.using_network(self.teacher.network),
            next_stage.next_stages(self, next_stage.preprocessed_next_stages(self)),
        ):
            super().perform_actual_validation(save_probabilities)
        self._supervise_teacher_deeply(False)  # which nnU-Net's validation leaves switched on
        if self.validate_student and self.local_rank == 0:
            compare_validations(self, {"": "teacher", "student": "student"})
