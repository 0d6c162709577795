"""The part ``Confidence``: only pseudo-labels that the network that made them is sure of count."""

from __future__ import annotations

from typing import Any

from nnunet_ext.trainers._mixin import TrainerMixin
from nnunet_ext.training.confidence import ConfidenceGate
from nnunet_ext.training.criteria import summed_counts
from nnunet_ext.training.labelled_scans import labelled_share
from nnunet_ext.training.mean_teacher_step import Gate

_GATES = ("global", "per_class")
_THRESHOLDS = {2: 0.95, 3: 0.8}  # by the axes of a patch: DPMS and AD-MT


class ConfidencePart(TrainerMixin):
    """Leaves out pseudo-labels below a threshold of confidence.

    Attributes:
        confidence_gate: ``"global"``, one threshold, or ``"per_class"``, a lower one for classes of which the
            network that labels is less sure, so that a share of each is kept.
        confidence_threshold: Least probability of the label, from 0; None takes 0.8 in 3D and 0.95 in 2D. 0 keeps all.
        confidence_keep: Share of each class that ``"per_class"`` keeps at least.
        confidence_silence: Whether labels say nothing of a class as long as the network that makes them finds less than
            half of what the labelled scans have of it, and again where it is down to a quarter: other labels do not
            deny it then. Without it a class that is learnt late is not learnt at all. Nothing with an ignore label.
        confidence_guard: Whether background labels that may be a class that is being lost are left out. A class is
            lost where the pseudo-labels of late have less than a fifth of its share in the labelled scans.
        confidence_agree: Whether a label counts only where both networks of CPS have it, or its probability is 0.95 or
            more.
    """

    def set_defaults(self) -> None:
        """Set one threshold for all classes."""
        super().set_defaults()
        self.confidence_gate = "per_class"
        self.confidence_threshold: float | None = None
        self.confidence_keep = 0.8
        self.confidence_silence = False
        self.confidence_guard = False
        self.confidence_agree = False

    def refuse_unsupported(self) -> None:
        """Refuse settings that make no sense."""
        super().refuse_unsupported()
        if self.confidence_gate not in _GATES:
            raise ValueError(f"confidence_gate must be one of {', '.join(_GATES)}, got {self.confidence_gate!r}")
        if self.confidence_threshold is not None and not 0 <= self.confidence_threshold < 1:
            raise ValueError(f"confidence_threshold must be None or lie in [0, 1), got {self.confidence_threshold}")
        if self.confidence_guard and self.label_manager.has_ignore_label:
            raise ValueError(
                "confidence_guard compares with the share of each class in the labelled scans, which says nothing "
                "where most voxels have the ignore label; set confidence_guard to False"
            )
        if self.confidence_agree and getattr(self, "number_of_networks", 1) < 2:
            raise ValueError(
                f"confidence_agree compares the labels of two networks, but {type(self).__name__} has one that labels: "
                "set confidence_agree to False, or take a trainer with CPS"
            )
        if not 0 < self.confidence_keep <= 1:
            raise ValueError(f"confidence_keep must lie in (0, 1], got {self.confidence_keep}")

    def make_gate(self) -> Gate | None:
        """Return what chooses the pseudo-labels that count; without threshold and guard all of them do."""
        threshold = self.confidence_threshold
        if threshold is None:
            threshold = _THRESHOLDS[len(self.configuration_manager.patch_size)]
        # Sparse labels do not say how much of a class there is.
        silence = self.confidence_silence and not self.label_manager.has_ignore_label
        if self.confidence_silence and not silence:
            self.print_to_log_file(
                "confidence_silence does nothing with an ignore label, which hides how much of each class there is"
            )
        if threshold == 0 and not self.confidence_guard and not silence:
            return super().make_gate()
        return ConfidenceGate(
            self.label_manager.num_segmentation_heads,
            threshold,
            self.confidence_gate,
            self.confidence_keep,
            self.confidence_guard,
            self.label_manager.has_regions,
            device=self.device,
            sum_over_processes=summed_counts if self.is_ddp else None,
            labelled_share=labelled_share(self) if self.confidence_guard or silence else None,
            silence=silence,
        )

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of the gate."""
        names = (
            "confidence_gate",
            "confidence_threshold",
            "confidence_keep",
            "confidence_silence",
            "confidence_guard",
            "confidence_agree",
        )
        return super().hyperparameters() | {name: getattr(self, name) for name in names}
