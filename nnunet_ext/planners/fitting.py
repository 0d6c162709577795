"""Patches and batches that fit what is really trained into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.data.dataset_json import number_of_channels
from nnunet_ext.training.step_memory import GIB

Plan = dict[str, Any]

_FARTHEST = 64


class MemoryFit:
    """Searches nnU-Net's own memory target, meant for its plain U-Net, at which a training step takes a budget.

    Memory grows with that target in steps, so it is bisected; the lower-resolution configurations, of which nnU-Net
    plans dozens while it looks for a spacing, start from what was found for the same number of dimensions.

    Args:
        memory: Function that returns the bytes that a training step of a configuration allocates.
        budget_in_gb: Memory that the step may take at most.
        highest: Target of nnU-Net to begin with, in GB; larger ones are tried where it fits.
    """

    def __init__(self, memory: Callable[[Plan], int], budget_in_gb: float, highest: float) -> None:
        self.memory, self.budget_in_gb, self.highest = memory, budget_in_gb, highest
        self._targets: dict[int, float] = {}

    def search(self, dimensions: int, plan_at: Callable[[float], Plan]) -> Plan | None:
        """Return the plan of the highest target found that fits, or None.

        Args:
            dimensions: Number of dimensions of the configuration.
            plan_at: Function that plans for a memory target of nnU-Net, in GB.
        """

        def attempt(target: float) -> tuple[Plan, bool]:
            plan = plan_at(target)
            return plan, self.memory(plan) <= self.budget_in_gb * GIB

        best: Plan | None = None
        if dimensions in self._targets:
            best, fits = attempt(self._targets[dimensions])
            while not fits and self._targets[dimensions] > self.highest / _FARTHEST:
                self._targets[dimensions] *= 0.9
                best, fits = attempt(self._targets[dimensions])
            return best if fits else None
        low, high = 0.0, self.highest
        plan, fits = attempt(high)
        # What is trained may take less than nnU-Net thinks, so that its own targets are no bound.
        while fits and high < _FARTHEST * self.highest:
            best, low, high = plan, high, 2 * high
            plan, fits = attempt(high)
            if _size(plan) == _size(best):
                break  # the data allow no more
        if fits:
            best, low, high = plan, high, high
        for _ in range(0 if fits else 7):
            middle = (low + high) / 2
            plan, fits = attempt(middle)
            if fits:
                best, low = plan, middle
            else:
                high = middle
        self._targets[dimensions] = low
        return best


def _size(plan: Plan) -> tuple[list[int], int]:
    return [int(n) for n in plan["patch_size"]], int(plan["batch_size"])


class FitsMemory(ExperimentPlanner):
    """Plans patch and batch such that a training step of what is really trained takes at most a budget.

    Comes before a planner of nnU-Net in the bases. Those that use it override :meth:`estimate_step`, call
    :meth:`fit_into` before they plan, and name ``smallest_step`` for the error.

    Attributes:
        smallest_step: End of the sentence about the smallest patch, for the error: whose patch it is, and the verb.
    """

    smallest_step = "of a training step fits"
    dataset_json: dict[str, Any]
    _fit: MemoryFit | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._estimates: dict[str, int] = {}

    def fit_into(self, budget_in_gb: float, target_in_gb: float) -> None:
        """Let the plans that are made from now on fit.

        Args:
            budget_in_gb: Memory that a training step may allocate.
            target_in_gb: Memory of the GPU as the user gives it; nnU-Net's own measure begins with it.
        """
        self._fit = MemoryFit(self.step_memory, budget_in_gb, target_in_gb)

    def step_memory(self, plan: Plan) -> int:
        """Return the bytes that a training step of a configuration allocates; each is estimated once."""
        arguments = self.step_arguments(plan)
        key = repr(arguments)
        if key not in self._estimates:
            self._estimates[key] = self.estimate_step(*arguments)
        return self._estimates[key]

    def step_arguments(self, plan: Plan) -> tuple[Any, ...]:
        """Return what an estimate depends on: architecture, patch, batch, channels, heads, and whether of regions."""
        labels = LabelManager(
            self.dataset_json["labels"], regions_class_order=self.dataset_json.get("regions_class_order")
        )
        return (
            plan["architecture"],
            [int(n) for n in plan["patch_size"]],
            int(plan["batch_size"]),
            number_of_channels(self.dataset_json),
            labels.num_segmentation_heads,
            labels.has_regions,
        )

    def estimate_step(self, *arguments: Any) -> int:
        """Return the bytes that a training step allocates.

        Args:
            arguments: What :meth:`step_arguments` returns.
        """
        raise NotImplementedError

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, Any],
    ) -> Plan:
        """Plan one configuration; where there is a budget, such that a training step fits into it.

        Raises:
            ValueError: If not even the smallest patch fits.
        """
        arguments = (spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)
        if self._fit is None:
            return self.plan_as_nnunet(*arguments)

        def plan_at(target: float) -> Plan:
            self.UNet_vram_target_GB = target
            return self.plan_as_nnunet(*arguments)

        plan = self._fit.search(len(spacing), plan_at)
        if plan is None:
            raise ValueError(
                f"-gpu_memory_target {self._fit.highest:g}: not even the smallest patch {self.smallest_step} into it "
                f"({len(spacing)}D); allow more memory"
            )
        return plan

    def plan_as_nnunet(self, *arguments: Any) -> Plan:
        """Plan one configuration as nnU-Net does, for its own measure of memory.

        Args:
            arguments: Arguments of :meth:`get_plans_for_configuration`.
        """
        plan: Plan = super().get_plans_for_configuration(*arguments)
        return plan

    def print_memory(self, plans: dict[str, Any], heading: str, batch: str) -> None:
        """Print what a training step of each configuration takes.

        Args:
            plans: Plans that were made.
            heading: Text above the figures: what is allocated, and what is left out of the estimate.
            batch: Description of a batch, with ``{n}`` for its size.
        """
        print(heading)
        for name, plan in planned(plans).items():
            patch = " x ".join(str(int(n)) for n in plan["patch_size"])
            size = batch.format(n=plan["batch_size"])
            print(f"  {name}: {self.step_memory(plan) / GIB:.1f} GB (patch {patch}, {size})")


def estimate_without_weights(
    patch_size: tuple[int, ...],
    input_channels: int,
    output_channels: int,
    arch_class_name: str,
    arch_kwargs: dict[str, Any],
    arch_kwargs_req_import: tuple[str, ...],
) -> Any:
    """Return nnU-Net's measure, from a network without weights, which are most of the time it takes.

    The arguments are those of nnU-Net's ``static_estimate_VRAM_usage``.
    """
    with torch.device("meta"):
        return ExperimentPlanner.static_estimate_VRAM_usage(
            patch_size, input_channels, output_channels, arch_class_name, arch_kwargs, arch_kwargs_req_import
        )


def planned(plans: dict[str, Any]) -> dict[str, Plan]:
    """Return the configurations of plans that have a network of their own, by name."""
    configurations = {name: plans["configurations"].get(name) for name in ("2d", "3d_lowres", "3d_fullres")}
    return {name: plan for name, plan in configurations.items() if plan is not None and "architecture" in plan}
