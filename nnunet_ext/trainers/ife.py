"""The parts ``IFECurvature`` and ``IFEEntropy``: encoders that repeat their most telling channels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nnunet_ext.trainers._network import NetworkPart
from nnunet_ext.training import architecture, enhancement, pretrained


class IFEPart(NetworkPart):
    """Enhances skip connections of the plans' network; nothing else changes.

    What shapes the network is a class attribute, changed in a subclass. It is written into the plans beside the model,
    and inference builds from there.

    Attributes:
        ife_score: What channels are ranked by, ``"curvature"`` or ``"entropy"``.
        ife_stages: Encoder stages whose skips are enhanced, 0 the highest resolution; those without are left out.
        ife_ratios: Share of the channels that is appended, one a stage.
        ife_bins: Bins of each side of the entropy's joint histogram.
        ife_step: Step along each axis between the positions that the entropy counts.
    """

    ife_score = "curvature"
    ife_stages: tuple[int, ...] = (1, 2)
    ife_ratios: tuple[float, ...] = (0.75, 0.5)
    ife_bins = 64
    ife_step = 1

    network_keys = architecture.ENHANCED_KEYS
    network_architecture = staticmethod(enhancement.enhanced_architecture)

    def build_networks(self) -> None:
        """Build the networks, and say what is enhanced."""
        super().build_networks()
        for line in enhancement.describe(self.network):
            self.print_to_log_file(line)

    def hyperparameters(self) -> dict[str, Any]:
        """Add the settings of the enhancement."""
        names = ("ife_score", "ife_stages", "ife_ratios", "ife_bins", "ife_step")
        return super().hyperparameters() | {name: getattr(self, name) for name in names}

    @contextmanager
    def prepared_pretrained_weights(self, filename: str) -> Iterator[str]:
        """Give a file that fits: weights of the plain network get zeros for the input channels that it has not."""
        self.pretrained_file = filename
        pretrained.read_weights(filename)  # names what is no checkpoint
        if not self.was_initialized:
            self.initialize()
        with enhancement.widened_weights([self.network], filename) as (file, names):
            if names:
                self.print_to_log_file(
                    f"Pretrained weights of a plain network: added input channels are zero in {names}"
                )
            pretrained.refuse_unfit(self, pretrained.read_weights(file), filename)
            yield file


class IFECurvaturePart(IFEPart):
    """Instructive feature enhancement by curvature."""

    ife_score = "curvature"
    ife_ratios = (0.75, 0.5)


class IFEEntropyPart(IFEPart):
    """Instructive feature enhancement by entropy."""

    ife_score = "entropy"
    ife_ratios = (0.5, 0.5)
