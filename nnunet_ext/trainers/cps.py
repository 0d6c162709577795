"""The part ``CPS``: two networks supervise each other on labelled and unlabelled patches (3D-CPS)."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

from torch import nn

from nnunet_ext.data.loaders import in_background, two_stream_loader, validation_loader
from nnunet_ext.data.unlabelled_steps import refuse_senseless_steps, unlabelled_steps
from nnunet_ext.networks.averaging import AverageOfNetworks
from nnunet_ext.plugin import compat
from nnunet_ext.trainers import _companion
from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.trainers.bcp import BCPPart
from nnunet_ext.trainers.class_balance import ClassBalancePart
from nnunet_ext.trainers.confidence import ConfidencePart
from nnunet_ext.trainers.cut_mix import CutMixPart
from nnunet_ext.training import (
    cps_monitor,
    cps_settings,
    cps_views_monitor,
    curves,
    next_stage,
    second_network,
    semi_supervised,
)
from nnunet_ext.training.checkpoints import SECOND_NETWORK, plain_module
from nnunet_ext.training.cps_step import CPSStep, make_step
from nnunet_ext.training.cps_views_monitor import CPSViewsMonitor
from nnunet_ext.training.cps_views_step import CPSViewsStep, make_views_step
from nnunet_ext.training.criteria import CrossPseudoCriterion, cross_pseudo_criterion
from nnunet_ext.training.drift import DriftAlarm, warn_of_drift
from nnunet_ext.training.pair_scales import AS_THEY_COME, TargetChoice, target_choice, union_of_scales
from nnunet_ext.training.schedules import SCHEDULE, SCHEDULE_OF_3D_CPS, PlateauScheduler, ramped_weight
from nnunet_ext.training.second_geometry import patch_turner
from nnunet_ext.training.seeds import BOXES, TURNS, seed_everything
from nnunet_ext.training.teacher import Teacher, check_decay, teacher_of
from nnunet_ext.training.validation import compare_validations, validate_networks


class CPSPart(TrainerMixin):
    """Adds a second network and the cross pseudo supervision of 3D-CPS; loss and network stay nnU-Net's.

    Attributes:
        cps_weight: Weight of the CPS loss after the ramp.
        warmup_fraction: Share of the epochs in which the labels alone teach: 0; 0.1 with ``CutMix``, ``BCP``,
            ``Confidence`` or ``ClassBalance``.
        ramp_fraction: Share of the epochs after which the weight is reached, linearly from the warm-up on; 0.5, with
            those parts 0.4; 0 for no ramp.
        ramp_down_fraction: Share of the epochs, the last ones, in which the weight falls again: 0, with parts 0.15.
        ramp_down_end: Share of the weight that the last epoch has then.
        lr_schedule: Course of the learning rate: ``"poly"`` (nnU-Net's, and the released code's) or ``"plateau"`` (the
            paper's table).
        use_unlabeled: Whether to train on unlabelled patches, too.
        unlabeled_every: Steps from one with unlabelled patches to the next; the others learn from labels alone. Above 1
            only where pseudo-labels are learnt on unlabelled patches alone.
        unlabeled_batch_size: Unlabelled patches of a step, over all processes; None for as many as labelled ones.
        views: ``"same"``: both networks see what they label, as in 3D-CPS; ``"weak_strong"``: they label weak views of
            unlabelled patches, and each learns strong views of its own. None takes ``"same"`` for CPS alone, and
            ``"weak_strong"`` with ``CutMix``, ``BCP``, ``Confidence`` or ``ClassBalance``.
        pseudo_on: ``"both"``: pseudo-labels are learnt on labelled and unlabelled patches, as in 3D-CPS; or
            ``"unlabelled"``. None takes ``"both"`` for the same views without boxes, else ``"unlabelled"``.
        second_geometry: Whether strong views are mirrored and turned by 90 degrees once more, with their labels, alike
            for both networks: along the axes that may be mirrored, and in planes of equal size and spacing.
        peer_ema: Whether the running mean of each network's weights labels weak views in its place.
        ema_decay: Decay of that mean a step; None takes a window of 2 % of the steps, 0.99 to 0.9995.
        missing_class_patience: Epochs after which a class that is missing from the pseudo-labels is warned of.
        validate_second_network: Whether network 2 and the average of both get a final validation, too.
        number_of_networks: Number of networks that are trained, for those who ask what a training takes.
        companion_bases: Base classes of what trains network 2, None where both networks are alike.
        companion: What trains network 2 where it is another kind of network, else None.
    """

    number_of_networks = 2
    companion_bases: ClassVar[tuple[type, ...] | None] = None
    companion: Any = None
    network_2: nn.Module
    optimizer_2: Any = None
    lr_scheduler_2: Any = None

    def set_defaults(self) -> None:
        """Set the weight and the ramp of CPS, and what is watched of it."""
        super().set_defaults()
        self.cps_weight = 0.5
        schedule = SCHEDULE if self._has_parts() else SCHEDULE_OF_3D_CPS
        self.warmup_fraction, self.ramp_fraction, self.ramp_down_fraction, self.ramp_down_end = schedule
        self.lr_schedule = "poly"
        self.use_unlabeled = True
        self.unlabeled_every = 1
        self.unlabeled_batch_size: int | None = None
        self.views: str | None = None
        self.pseudo_on: str | None = None
        self.second_geometry = False
        self.peer_ema = False
        self.ema_decay: float | None = None
        self.missing_class_patience = 3
        self.validate_second_network = True

    def changed_plans(self, plans: dict[str, Any], configuration: str) -> dict[str, Any]:
        """Return a copy of the plans that names network 2, too, where it is another one."""
        changed = super().changed_plans(plans, configuration)
        if self.companion_bases is None:
            return changed
        return _companion.with_second(type(self), changed, plans, configuration)

    def refuse_unsupported(self) -> None:
        """Refuse the cascade, as unlabelled cases have no prediction of its previous stage, and what does not fit."""
        super().refuse_unsupported()
        if self.companion_bases is not None:
            self.companion = _companion.make_companion(self)
            self.companion.refuse_unsupported()
        semi_supervised.refuse_unsupported(self)
        check_decay(self.ema_decay)
        refuse_senseless_steps(self)
        mixer = ("BCP", "bcp") if isinstance(self, BCPPart) else ("CutMix", "cutmix")
        cps_settings.refuse_senseless(self, mixer if self._exchanges_boxes() else None)

    def build_networks(self) -> None:
        """Build both networks, each from a seed of its own."""
        super().build_networks()
        if self.companion is None:
            self.network_2, self.optimizer_2, self.lr_scheduler_2 = self.make_network(1)
        else:
            self.network_2, self.optimizer_2, self.lr_scheduler_2 = _companion.build(self.companion, self)
        second_network.check_networks_differ(self.network, self.network_2)

    def initialize(self) -> None:
        """Initialise as nnU-Net does, then make the step from what is there."""
        super().initialize()
        self.cps_step = self.make_cps_step()
        kind = CPSViewsMonitor if self._has_views_step() else cps_monitor.CPSMonitor
        self.monitor = kind(semi_supervised.first_class(self), self.missing_class_patience)
        self.drift = DriftAlarm(semi_supervised.first_class(self))
        curves.register(self.logger, self._curves())

    def make_cps_step(self) -> CPSStep | CPSViewsStep:
        """Return 3D-CPS's step, or that of views of their own, of chosen, mixed or weighted pseudo-labels.

        Raises:
            ValueError: If that step would leave out a loss of pseudo-labels that is not CPS's own, or 3D-CPS's step
                would leave out what is asked for.
        """
        views, pseudo_on = self.views_and_halves()
        gates, mixer, balance = (self.make_gate(), self.make_gate()), self.make_mixer(), self.make_balance()
        agree = isinstance(self, ConfidencePart) and self.confidence_agree
        parts = [part for part in (*gates, mixer, balance) if part is not None]
        if (views, pseudo_on) == ("same", "both") and not parts and not agree:
            if self.peer_ema:
                raise ValueError(
                    "peer_ema has no place in plain 3D-CPS, whose networks label what they learn in one pass: set "
                    "views to 'weak_strong' or peer_ema to False"
                )
            return make_step(self)
        criterion = type(self.pseudo_criterion())
        if criterion is not CrossPseudoCriterion:
            raise ValueError(
                f"the loss of pseudo-labels {criterion.__name__} goes with plain CPS alone (views 'same', pseudo_on "
                "'both', no CutMix, BCP, Confidence or ClassBalance); with CWCD leave contour_pseudo_labels False"
            )
        self.print_to_log_file(f"CPS with views {views!r}, pseudo-labels learnt on {pseudo_on!r}")
        turner = patch_turner(self) if self.second_geometry else None
        teachers = self._peer_means() if self.peer_ema else None
        return make_views_step(self, pseudo_on == "both", gates, mixer, balance, turner, agree, teachers)

    def _peer_means(self) -> tuple[Teacher, Teacher]:
        steps = self.num_epochs * self.num_iterations_per_epoch
        first, second = (teacher_of(network, self.ema_decay, steps) for network in (self.network, self.network_2))
        if compat.compiles(self):
            for teacher in (first, second):
                teacher.network.compile(dynamic=False)
        return first, second

    def _has_parts(self) -> bool:
        return isinstance(self, (CutMixPart, BCPPart, ConfidencePart, ClassBalancePart))

    def _has_views_step(self) -> bool:
        return isinstance(self.cps_step, CPSViewsStep)

    def _curves(self) -> tuple[str, ...]:
        return cps_views_monitor.KEYS if self._has_views_step() else cps_monitor.KEYS

    def views_and_halves(self) -> tuple[str, str]:
        """Return ``views`` and ``pseudo_on``, where they are None by the parts of the trainer."""
        views = self.views or ("weak_strong" if self._has_parts() else "same")
        plain = views == "same" and not self._exchanges_boxes()
        return views, self.pseudo_on or ("both" if plain else "unlabelled")

    def _exchanges_boxes(self) -> bool:
        if isinstance(self, BCPPart):
            return self.bcp_probability != 0
        return isinstance(self, CutMixPart) and self.cutmix_probability != 0

    def pseudo_criterion(self) -> nn.Module:
        """Return the loss against the labels of the peer; a part with another loss may replace it."""
        return cross_pseudo_criterion(self)

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Return nnU-Net's optimiser, and its scheduler unless ``lr_schedule`` says otherwise."""
        optimizer, scheduler = super().configure_optimizers()
        return optimizer, PlateauScheduler(optimizer) if self.lr_schedule == "plateau" else scheduler

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of CPS."""
        names = (
            "cps_weight",
            "warmup_fraction",
            "ramp_fraction",
            "ramp_down_fraction",
            "ramp_down_end",
            "lr_schedule",
            "use_unlabeled",
            "unlabeled_every",
            "unlabeled_batch_size",
            "views",
            "pseudo_on",
            "second_geometry",
            "peer_ema",
            "ema_decay",
            "missing_class_patience",
            "validate_second_network",
        )
        settings = super().hyperparameters() | {name: getattr(self, name) for name in names}
        return settings if self.companion is None else settings | {"network_2": self.companion.hyperparameters()}

    def target_scales(self) -> list[list[float]] | None:
        """Return the scales of both networks."""
        if self.companion is None:
            return super().target_scales()
        return union_of_scales(*(compat.deep_supervision_scales(one) for one in (self, self.companion)))

    def target_choices(self) -> tuple[TargetChoice, TargetChoice]:
        """Return which of a batch's labels each network learns."""
        if self.companion is None:
            return AS_THEY_COME, AS_THEY_COME
        union = self.target_scales()
        first, second = (target_choice(compat.deep_supervision_scales(one), union) for one in (self, self.companion))
        return first, second

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Return the two-stream training loader and nnU-Net's validation loader."""
        unlabelled = self.unlabelled_cases() if self.use_unlabeled else None
        pin = self.device.type == "cuda"
        seed = self.loading_seed()
        seed_everything(seed)
        strong_views = 2 if self.views_and_halves()[0] == "weak_strong" else 0  # one a network
        train = in_background(
            two_stream_loader(self, unlabelled, strong_views, steps=unlabelled_steps(self)), pin, True, seed
        )
        val = in_background(validation_loader(self), pin, False, seed + 1)
        next(train), next(val)
        return train, val

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Switch deep supervision of both networks."""
        if self.companion is None:
            second_network.set_deep_supervision([self.network, self.network_2], enabled)
            return
        for one, network in ((self, self.network), (self.companion, self.network_2)):
            second_network.set_deep_supervision([network], enabled and one.enable_deep_supervision)

    def on_train_start(self) -> None:
        """Say where the next stage of a cascade finds what this one predicts."""
        super().on_train_start()
        next_stage.log_where_to_copy(self)

    def current_cps_weight(self) -> float:
        """Return lambda of the current epoch."""
        return ramped_weight(
            self.current_epoch,
            self.num_epochs,
            self.cps_weight,
            self.warmup_fraction,
            self.ramp_fraction,
            self.ramp_down_fraction,
            self.ramp_down_end,
        )

    def labels_teach_alone(self) -> bool:
        """Whether this epoch is one of the warm-up, before the first pseudo-labels."""
        warms_up = self.current_epoch < round(self.warmup_fraction * self.num_epochs)
        return super().labels_teach_alone() or bool(self.use_unlabeled and self.cps_weight and warms_up)

    def label_maker(self) -> tuple[nn.Module, float]:
        """Return a network that labels, and the weight that its labels have in this epoch."""
        means = self.cps_step.teachers if isinstance(self.cps_step, CPSViewsStep) else None
        return plain_module(self.network) if means is None else means[0].network, self.current_cps_weight()

    def on_train_epoch_start(self) -> None:
        """Prepare the second network as nnU-Net prepares the first."""
        super().on_train_epoch_start()
        self.network_2.train()
        self.lr_scheduler_2.step(self.current_epoch)
        if self.companion is not None:
            rate = self.optimizer_2.param_groups[0]["lr"]
            self.print_to_log_file(f"Current learning rate of network 2: {round(rate, 5)}")

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train both networks on one batch of the two-stream loader, then move their running means."""
        report = self.cps_step(batch, self.current_cps_weight())
        if isinstance(self.cps_step, CPSViewsStep):
            self.cps_step.follow()
        return report

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log nnU-Net's training loss (supervised, network 1) and the curves of CPS; warn of missing classes."""
        super().on_train_epoch_end([{"loss": o["loss"]} for o in train_outputs])
        values = self.monitor.epoch(train_outputs, self.current_cps_weight(), self.is_ddp)
        curves.log(self.logger, values, self.current_epoch)
        cps_monitor.log_epoch(self, values)
        if isinstance(self.cps_step, CPSViewsStep) and isinstance(self.monitor, CPSViewsMonitor):
            cps_views_monitor.log_kept(self, self.monitor, values, self.cps_step.chooses())
            if values["cps_lambda"]:
                warn_of_drift(self, values["pseudo_label_share"], "cps_weight")
        for scheduler, key in ((self.lr_scheduler, "supervised_loss_1"), (self.lr_scheduler_2, "supervised_loss_2")):
            if isinstance(scheduler, PlateauScheduler):
                weight = values["cps_lambda"]
                scheduler.observe(values[key] + (weight * values["cps_loss"] if weight else 0.0))

    def on_validation_epoch_start(self) -> None:
        """Set both networks to evaluation."""
        super().on_validation_epoch_start()
        self.network_2.eval()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Validate network 1 as nnU-Net does, and network 2 on the same patches."""
        choices = self.target_choices()
        # nnU-Net's step writes into the target on CPUs
        second = batch | {"target": choices[1].of(deepcopy(batch["target"]))}
        first = batch | {"target": choices[0].of(batch["target"])}
        report = super().validation_step(first)
        if self.companion is None:
            with self.using_network(self.network_2):
                other = super().validation_step(second)
        else:
            other = self.companion.validation_step(second)
        return report | {f"{key}_2": value for key, value in other.items()}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log the pseudo Dice of both networks; nnU-Net's own curves follow network 1."""
        super().on_validation_epoch_end(val_outputs)
        dice = self.logger.get_value("dice_per_class_or_region", step=-1)
        values = {
            "pseudo_dice_1": [float(d) for d in dice],
            "pseudo_dice_2": cps_monitor.pseudo_dice(val_outputs, "_2", self.is_ddp),
        }
        curves.log(self.logger, values, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Draw the curves of CPS beside nnU-Net's."""
        super().on_epoch_end()
        if self.local_rank == 0:
            cps_monitor.draw(self, cps_views_monitor.PANELS if self._has_views_step() else cps_monitor.PANELS)

    def refuse_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint whose network 2 was trained with other settings."""
        super().refuse_checkpoint(checkpoint)
        if self.companion_bases is not None:  # the networks may not be built yet
            _companion.make_companion(self).refuse_checkpoint(checkpoint)

    def extra_state(self) -> dict[str, Any]:
        """Add the second network and what belongs to it, under a key of its own."""
        second = second_network.state(self) | {"monitor": self.monitor.state()}
        if isinstance(self.cps_step, CPSViewsStep):
            second |= {"step": self.cps_step.state_dict(), "drift": self.drift.state_dict()}
        return super().extra_state() | {SECOND_NETWORK: second}

    def load_extra_state(self, checkpoint: dict[str, Any]) -> None:
        """Restore the second network; refuse a checkpoint without one."""
        super().load_extra_state(checkpoint)
        saved = second_network.load_state(self, checkpoint)
        self.monitor.load_state(saved["monitor"])
        if isinstance(self.cps_step, CPSViewsStep):
            self.cps_step.load_state_dict(saved.get("step", {}))
            if "drift" in saved:
                self.drift.load_state_dict(saved["drift"])
            semi_supervised.draw_apart(self, {BOXES: self.cps_step.mixer, TURNS: self.cps_step.turner})
        curves.register(self.logger, self._curves())

    def after_pretrained_weights(self, filename: str) -> None:
        """Give network 2 the pretrained weights that network 1 has taken; its heads keep their own seed."""
        second_network.pretrain(self, filename)
        if isinstance(self.cps_step, CPSViewsStep):
            self.cps_step.begin_anew()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate network 2 and the average of both, then network 1, whose results are nnU-Net's."""
        if self.validate_second_network:
            first, second = plain_module(self.network), plain_module(self.network_2)
            networks = {
                "network_2": second,
                "average": AverageOfNetworks(first, second, regions=self.label_manager.has_regions),
            }
            validate_networks(self, networks, super().perform_actual_validation)
        with next_stage.next_stages(self, next_stage.preprocessed_next_stages(self)):
            super().perform_actual_validation(save_probabilities)
        if self.validate_second_network and self.local_rank == 0:
            compare_validations(self, {"": "network 1", "network_2": "network 2", "average": "average"})
