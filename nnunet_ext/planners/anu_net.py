"""The planner of ANU-Net: patch and batch for the memory that a nested network really takes."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.data.unlabeled import number_of_channels
from nnunet_ext.networks import NestedAttentionUNet
from nnunet_ext.planners.fitting import MemoryFit
from nnunet_ext.planners.own_plans import OwnPlans, check_before_planning
from nnunet_ext.training.memory import GIB
from nnunet_ext.training.nesting import nested_step_memory

# Where activations are computed again the peak lies in convolutions, and cuDNN's workspaces come on top: 15 and 19 % of
# what is estimated without them, measured on a GPU (docs/benchmarks.md). Where they are kept it is 1 %.
_WITH_WORKSPACES = 1.2


class ANUNetPlanner(OwnPlans):
    """Plans as nnU-Net's :class:`ExperimentPlanner` does, for :class:`~nnunet_ext.networks.NestedAttentionUNet`.

    At full resolution a nested network of L levels has L nodes beside each other, with (j + 1) times the channels in
    the j-th, so nnU-Net's measure, calibrated on its own U-Net, does not hold. Patch and batch are the largest of
    nnU-Net's whose training step takes at most ``memory_share`` of ``-gpu_memory_target`` (default 8 GB) less
    ``memory_reserve_gb``, found by running the step on tensors without values. The plans are called ``ANUNetPlans``;
    plans and preprocessed data of other planners are never touched.

    Attributes:
        aggregation: Of the trainer's network (its ``anu_aggregation``).
        gate_ratio: Likewise (``anu_gate_ratio``).
        depth: Likewise (``anu_depth``); ``None`` is all that the stages of a patch allow, and plans with fewer stages
            are warned of.
        checkpointing: Plan for trainers with ``anu_checkpointing``, which fit larger patches.
        memory_reserve_gb: What is kept for the CUDA context.
        memory_share: Of the rest, what a step may allocate; torch's allocator holds more than that.
    """

    default_plans_name = "ANUNetPlans"
    aggregation = "concat"
    gate_ratio = 0.5
    depth: int | None = None
    checkpointing = False
    memory_reserve_gb = 0.5
    memory_share = 0.9
    dataset_json: dict[str, Any]

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        plans_name = plans_name or self.default_plans_name
        check_before_planning(dataset_name_or_id, plans_name, type(self).__name__)
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        self.UNet_class = NestedAttentionUNet
        self.memory_target_in_gb = gpu_memory_target_in_gb
        self._estimates: dict[str, int] = {}
        self._fit: MemoryFit

    def plan_experiment(self) -> dict[str, Any]:
        """Plan, write the plans, and print what a step needs.

        Raises:
            ValueError: If not even the smallest patch fits, or ``depth`` is below 1.
        """
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"depth must be 1 or more, or None for all that the stages allow, got {self.depth}")
        self._fit = MemoryFit(self.step_memory, self.memory_budget_in_gb, self.memory_target_in_gb)
        plans: dict[str, Any] = super().plan_experiment()
        print("GPU memory that a training step of ANU-Net allocates (estimated for mixed precision without")
        print("torch.compile, without what the allocator holds beyond it):")
        for name in ("2d", "3d_lowres", "3d_fullres"):
            plan = plans["configurations"].get(name)
            if plan is not None and "architecture" in plan:
                patch = " x ".join(str(int(n)) for n in plan["patch_size"])
                print(f"  {name}: {self.step_memory(plan) / GIB:.1f} GB (patch {patch}, batch {plan['batch_size']})")
                deepest = plan["architecture"]["arch_kwargs"]["n_stages"] - 1
                if self.depth is not None and deepest < self.depth:
                    print(
                        f"  WARNING: {name} allows a depth of {deepest}, not {self.depth}: set anu_depth to {deepest}"
                    )
        return plans

    @property
    def memory_budget_in_gb(self) -> float:
        """What a training step may allocate."""
        return self.memory_share * (self.memory_target_in_gb - self.memory_reserve_gb)

    @staticmethod
    def static_estimate_VRAM_usage(  # noqa: N802 - nnU-Net's name
        patch_size: tuple[int, ...],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: tuple[str, ...],
    ) -> Any:
        """Return nnU-Net's measure, from a network without weights, which are most of the time it takes."""
        with torch.device("meta"):
            return ExperimentPlanner.static_estimate_VRAM_usage(
                patch_size, input_channels, output_channels, arch_class_name, arch_kwargs, arch_kwargs_req_import
            )

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, Any],
    ) -> dict[str, Any]:
        """Plan one configuration such that a training step fits."""
        arguments = (spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)

        def plan_at(target: float) -> dict[str, Any]:
            self.UNet_vram_target_GB = target
            return super(ANUNetPlanner, self).get_plans_for_configuration(*arguments)

        plan = self._fit.search(len(spacing), plan_at)
        if plan is None:
            raise ValueError(
                f"-gpu_memory_target {self.memory_target_in_gb:g}: not even the smallest patch of a nested "
                f"network fits into it ({len(spacing)}D); allow more memory"
            )
        return plan

    def step_memory(self, plan: dict[str, Any]) -> int:
        """Return the bytes that a training step of a configuration allocates."""
        architecture = plan["architecture"]
        deepest = architecture["arch_kwargs"]["n_stages"] - 1
        depth = deepest if self.depth is None else min(self.depth, deepest)
        own = {"aggregation": self.aggregation, "gate_ratio": self.gate_ratio, "depth": depth}
        kwargs = architecture["arch_kwargs"] | own
        key = repr((plan["patch_size"], plan["batch_size"], kwargs, self.checkpointing))
        if key not in self._estimates:
            labels = LabelManager(
                self.dataset_json["labels"], regions_class_order=self.dataset_json.get("regions_class_order")
            )
            estimate = nested_step_memory(
                architecture | {"arch_kwargs": kwargs},
                [int(n) for n in plan["patch_size"]],
                int(plan["batch_size"]),
                number_of_channels(self.dataset_json),
                labels.num_segmentation_heads,
                labels.has_regions,
                self.checkpointing,
            )
            self._estimates[key] = int(_WITH_WORKSPACES * estimate) if self.checkpointing else estimate
        return self._estimates[key]
