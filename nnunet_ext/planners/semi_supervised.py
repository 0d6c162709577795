"""Planners for semi-supervised training: the names after ``-pl``."""

from __future__ import annotations

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from nnunet_ext.planners.semi_supervised_planning import PREPROCESSOR, SemiSupervisedPlanning


class SemiSupervisedPlanner(SemiSupervisedPlanning):
    """Plans as nnU-Net's :class:`ExperimentPlanner` does, from labelled and unlabelled images.

    Its preprocessor makes the unlabelled cases as well. The plans are called ``SemiSupervisedPlans``; plans and
    preprocessed data of stock planners are never touched.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = PREPROCESSOR,
        plans_name: str = "SemiSupervisedPlans",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            8,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
            gpu_memory_target_in_gb,
        )


class SemiSupervisedPlannerResEncM(SemiSupervisedPlanning, nnUNetPlannerResEncM):
    """As :class:`SemiSupervisedPlanner`, with nnU-Net's residual encoder M (8 GB for one network)."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = PREPROCESSOR,
        plans_name: str = "SemiSupervisedResEncMPlans",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            8,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
            gpu_memory_target_in_gb,
        )


class SemiSupervisedPlannerResEncL(SemiSupervisedPlanning, nnUNetPlannerResEncL):
    """As :class:`SemiSupervisedPlanner`, with nnU-Net's residual encoder L (24 GB for one network)."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = PREPROCESSOR,
        plans_name: str = "SemiSupervisedResEncLPlans",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            24,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
            gpu_memory_target_in_gb,
        )


class SemiSupervisedPlannerResEncXL(SemiSupervisedPlanning, nnUNetPlannerResEncXL):
    """As :class:`SemiSupervisedPlanner`, with nnU-Net's residual encoder XL (40 GB for one network)."""

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = PREPROCESSOR,
        plans_name: str = "SemiSupervisedResEncXLPlans",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            40,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
            gpu_memory_target_in_gb,
        )
