"""The planner of the reference module: 2D, whole slices, CT in Hounsfield units, and memory for two networks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from nnunet_ext.data.dataset_json import channel_names
from nnunet_ext.data.hounsfield import HOUNSFIELD
from nnunet_ext.data.preprocessors import PREPROCESSOR, REFERENCE_PREPROCESSOR, SAME_PER_CASE
from nnunet_ext.networks import ReferenceUNet
from nnunet_ext.planners.fitting import Plan, estimate_without_weights
from nnunet_ext.planners.semi_supervised import SemiSupervisedPlanning
from nnunet_ext.plugin import compat
from nnunet_ext.training.step_memory import GIB, cps_step_memory, optimizer_of

Windows = Mapping[str, Sequence[float]]

# Pham et al.: each is the union of two windows of radiologists, in Hounsfield units.
WINDOWS: Windows = MappingProxyType({"abdomen": (-150, 250), "chest": (-1350, 225), "bone": (-500, 1300)})
_SIDE = 32  # patches of these multiples fit every network of the module
_OUR_NAMES = (SAME_PER_CASE[PREPROCESSOR], PREPROCESSOR, REFERENCE_PREPROCESSOR)


class _NotPlanned(dict):
    """What stands for a 3D configuration until plans are written; nnU-Net's planner looks at patch and spacing."""

    def __repr__(self) -> str:
        return "none: the networks of the reference module are 2D"


def _of_part(
    name: str, configuration: ConfigurationManager, channels: int, heads: int
) -> tuple[Callable[[], nn.Module], str]:
    """Return what makes the network of a part or a trainer, and the name of its optimiser.

    Raises:
        RuntimeError: If there is no such part or trainer.
    """
    own = name == "UNet"
    trainer = "nnUNetTrainer" if own else name if name.startswith("nnUNetTrainer") else f"nnUNetTrainer{name}"
    cls: Any = recursive_find_trainer_class_by_name(trainer)

    def make() -> nn.Module:
        network: nn.Module = compat.build_network(cls, None, configuration, channels, heads, True)
        return network

    return make, optimizer_of(cls)


class ReferencePlanner(SemiSupervisedPlanning):
    """Plans one 2d configuration for the networks of the reference module.

    CT stays in Hounsfield units, which the network windows; other channels keep nnU-Net's normalisation. Patches are
    nnU-Net's, which are whole slices where a batch of two fits into memory, with sides of multiples of 32. The plans
    are called ``ReferencePlans``; plans and preprocessed data of other planners are never touched.

    Attributes:
        windows: Name and ``(lower, upper)`` in Hounsfield units of each window that networks see CT in; empty or None
            for none. Left as it is it does not count for data without CT.
        use_position: Whether networks get the position of the slice in its scan.
        networks: The two networks that are trained, for the memory they take: names of parts such as ``"UNet"`` (the
            plans' own), ``"TransUNet"``, or of trainers of your own.
        memory_limit_gb: What a CPS step of both, with the reserve, takes at most where the user names no target: patch
            and batch are nnU-Net's for one network as long as they fit.
    """

    default_plans_name = "ReferencePlans"
    windows: Windows | None = WINDOWS
    use_position = True
    networks: tuple[str, str] = ("TransUNet", "DeepLabV3Plus")
    memory_limit_gb: float = 12
    preprocessor_name: str
    static_estimate_VRAM_usage = staticmethod(estimate_without_weights)  # noqa: N815 - nnU-Net's name

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = PREPROCESSOR,
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        self.UNet_class = ReferenceUNet

    def plan_experiment(self) -> dict[str, Any]:
        """Plan the 2d configuration, write the plans, and print what a CPS step needs.

        Raises:
            ValueError: If a window is empty, or windows are asked for without CT, or not even the smallest patch fits.
        """
        self._check_windows()
        if self.preprocessor_name in _OUR_NAMES:
            self.preprocessor_name = REFERENCE_PREPROCESSOR if self.use_position else PREPROCESSOR
        elif self.use_position:
            raise ValueError(
                f"the preprocessor {self.preprocessor_name} does not write the position of slices; set use_position of "
                f"{type(self).__name__} to False, or leave -preprocessor_name out"
            )
        return super().plan_experiment()

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans, with the names of the windows, and without what stood for 3D."""
        plans["configurations"] = {
            name: plan for name, plan in plans["configurations"].items() if not isinstance(plan, _NotPlanned)
        }
        if self._hounsfield_channels():
            plans["windows"] = {name: [float(bound) for bound in bounds] for name, bounds in self._windows().items()}
        super().save_plans(plans)

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """Return nnU-Net's choice, but CT in Hounsfield units / 1000."""
        schemes, masks = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        return [HOUNSFIELD if scheme == CTNormalization.__name__ else scheme for scheme in schemes], masks

    def get_plans_for_configuration(self, spacing: Any, median_shape: Any, *others: Any) -> Plan:
        """Plan the 2d configuration, and no 3D one.

        Args:
            spacing: Target spacing in mm.
            median_shape: Median shape of the cases at that spacing, in voxels.
            others: The remaining arguments of nnU-Net's method.

        Raises:
            ValueError: If slices are too small for a network of two stages.
        """
        if len(spacing) == 3:
            return _NotPlanned(patch_size=list(median_shape), spacing=spacing)
        edge = self.UNet_featuremap_min_edge_length
        if not any(get_pool_and_conv_props(spacing, median_shape, edge, 1)[0]):
            size = " x ".join(f"{side:g}" for side in median_shape)
            raise ValueError(
                f"the median slice of {self.dataset_name} has {size} voxels, too few to halve them to {edge} for a "
                "second stage of the network; take a finer spacing with -overwrite_target_spacing, or plans of 3D"
            )
        plan = super().get_plans_for_configuration(spacing, median_shape, *others)
        if self._fit is None and self.step_memory(plan) > (self.memory_limit_gb - self.memory_reserve_gb) * GIB:
            self.fit_into(self.memory_limit_gb - self.memory_reserve_gb, self.memory_limit_gb)
            plan = super().get_plans_for_configuration(spacing, median_shape, *others)
        return plan

    def plan_as_nnunet(self, *arguments: Any) -> Plan:
        """Plan as nnU-Net does, with sides of multiples of 32, and what the network does to its input."""
        plan = super().plan_as_nnunet(*arguments)
        channels = self._hounsfield_channels()
        windows = list(self._windows().values()) if channels else []
        plan["patch_size"] = [math.ceil(int(side) / _SIDE) * _SIDE for side in plan["patch_size"]]
        plan["architecture"]["arch_kwargs"] |= {
            "windows": [[float(bound) for bound in window] for window in windows] or None,
            "hounsfield_channels": channels,
            "position": self.use_position,
        }
        return plan

    def step_arguments(self, plan: Plan) -> tuple[Any, ...]:
        """Return what an estimate depends on: the networks, too."""
        return (*super().step_arguments(plan), *self.networks)

    def estimate_step(self, architecture: dict[str, Any], *others: Any) -> int:
        """Return the bytes that a CPS step of both networks allocates, see :func:`cps_step_memory`.

        Args:
            architecture: Architecture of the plans' own network.
            others: The remaining values of :meth:`step_arguments`.
        """
        if architecture["arch_kwargs"]["n_stages"] < 2:  # so small a patch that nnU-Net plans a network without outputs
            return sys.maxsize
        patch_size, batch_size, channels, heads, regions, *names = others
        plan = ConfigurationManager({"architecture": architecture, "patch_size": patch_size, "batch_size": batch_size})
        made = [_of_part(name, plan, channels, heads) for name in names]
        (first, *_), (second, *_) = made
        optimizers = (made[0][1], made[1][1])
        size = (patch_size, batch_size, channels, heads, regions)
        return cps_step_memory(first, *size, second=second, optimizers=optimizers)

    def _print_memory(self, plans: dict[str, Any]) -> None:
        heading = (
            f"GPU memory that a step of cross pseudo supervision allocates ({' and '.join(self.networks)}, labelled\n"
            "and unlabelled slices; estimated for mixed precision without torch.compile and cuDNN's workspaces):"
        )
        self.print_memory(plans, heading, "{n} + {n}")

    def _windows(self) -> Windows:
        return self.windows or {}

    def _hounsfield_channels(self) -> list[int]:
        """Return the channels that nnU-Net takes for CT."""
        names = channel_names(self.dataset_json)
        return [number for number, name in enumerate(names) if get_normalization_scheme(name) is CTNormalization]

    def _check_windows(self) -> None:
        owner = f"{type(self).__name__}.windows"
        if not isinstance(self._windows(), Mapping):
            raise ValueError(f"{owner} must map names to (lower, upper) in Hounsfield units, got {self.windows!r}")
        for name, bounds in self._windows().items():
            try:
                low, high = (float(bound) for bound in bounds)
            except (TypeError, ValueError):
                low = high = math.nan
            if not -math.inf < low < high < math.inf:
                raise ValueError(
                    f"{owner} has {name} {bounds!r}, expected a lower and a higher bound in Hounsfield units, e.g. "
                    "(-150, 250)"
                )
        if self._windows() and self.windows is not WINDOWS and not self._hounsfield_channels():
            names = ", ".join(channel_names(self.dataset_json))
            raise ValueError(
                f"{owner} asks for windows in Hounsfield units, but {self.dataset_name} has no CT (channel_names: "
                f"{names}); set it to None, or name the channels with CT 'CT' in dataset.json"
            )
