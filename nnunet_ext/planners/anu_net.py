"""The planner of ANU-Net: patch and batch for the memory that a nested network really takes."""

from __future__ import annotations

from typing import Any

from nnunet_ext.networks import NestedAttentionUNet
from nnunet_ext.planners.fitting import FitsMemory, estimate_without_weights, planned
from nnunet_ext.planners.own_plans import OwnPlans, check_before_planning
from nnunet_ext.training.nesting import nested_step_memory

# Where activations are computed again the peak lies in convolutions, and cuDNN's workspaces come on top: 15 and 19 % of
# what is estimated without them, measured on a GPU (docs/benchmarks.md). Where they are kept it is 1 %.
_WITH_WORKSPACES = 1.2


class ANUNetPlanner(FitsMemory, OwnPlans):
    """Plans as nnU-Net's :class:`ExperimentPlanner` does, for :class:`~nnunet_ext.networks.NestedAttentionUNet`.

    At full resolution a nested network of L levels has L nodes beside each other, with (j + 1) times the channels in
    the j-th, so nnU-Net's measure, calibrated on its own U-Net, does not hold. Patch and batch are the largest of
    nnU-Net's whose training step takes at most ``memory_share`` of ``-gpu_memory_target`` (default 8 GB) less
    ``memory_reserve_gb``, found by running the step on tensors without values. The plans are called ``ANUNetPlans``;
    plans and preprocessed data of other planners are never touched.

    Attributes:
        aggregation: Aggregation of the trainer's network (its ``anu_aggregation``).
        gate_ratio: Ratio of the gates of the trainer's network (its ``anu_gate_ratio``).
        depth: Depth of the trainer's network (its ``anu_depth``); ``None`` is all that the stages of a patch allow,
            and plans with fewer stages are warned of.
        checkpointing: Plan for trainers with ``anu_checkpointing``, which fit larger patches.
        memory_reserve_gb: Memory that is kept for the CUDA context.
        memory_share: Share of the rest that a step may allocate; torch's allocator holds more than that.
    """

    default_plans_name = "ANUNetPlans"
    smallest_step = "of a nested network fits"
    aggregation = "concat"
    gate_ratio = 0.5
    depth: int | None = None
    checkpointing = False
    static_estimate_VRAM_usage = staticmethod(estimate_without_weights)  # noqa: N815 - nnU-Net's name
    memory_reserve_gb = 0.5
    memory_share = 0.9

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

    def plan_experiment(self) -> dict[str, Any]:
        """Plan, write the plans, and print what a step needs.

        Raises:
            ValueError: If not even the smallest patch fits, or ``depth`` is below 1.
        """
        if self.depth is not None and self.depth < 1:
            raise ValueError(f"depth must be 1 or more, or None for all that the stages allow, got {self.depth}")
        self.fit_into(self.memory_budget_in_gb, self.memory_target_in_gb)
        plans: dict[str, Any] = super().plan_experiment()
        heading = (
            "GPU memory that a training step of ANU-Net allocates (estimated for mixed precision without\n"
            "torch.compile, without what the allocator holds beyond it):"
        )
        self.print_memory(plans, heading, "batch {n}")
        for name, plan in planned(plans).items():
            deepest = plan["architecture"]["arch_kwargs"]["n_stages"] - 1
            if self.depth is not None and deepest < self.depth:
                print(f"  WARNING: {name} allows a depth of {deepest}, not {self.depth}: set anu_depth to {deepest}")
        return plans

    @property
    def memory_budget_in_gb(self) -> float:
        """What a training step may allocate."""
        return self.memory_share * (self.memory_target_in_gb - self.memory_reserve_gb)

    def step_arguments(self, plan: dict[str, Any]) -> tuple[Any, ...]:
        """Return what an estimate depends on, with the network that the trainer makes of the plans' one."""
        architecture, *others = super().step_arguments(plan)
        deepest = architecture["arch_kwargs"]["n_stages"] - 1
        depth = deepest if self.depth is None else min(self.depth, deepest)
        nested = {"aggregation": self.aggregation, "gate_ratio": self.gate_ratio, "depth": depth}
        return architecture | {"arch_kwargs": architecture["arch_kwargs"] | nested}, *others, self.checkpointing

    def estimate_step(self, *arguments: Any) -> int:
        """Return the bytes that a training step of a nested network allocates, see :func:`nested_step_memory`."""
        estimate = nested_step_memory(*arguments)
        return int(_WITH_WORKSPACES * estimate) if self.checkpointing else estimate
