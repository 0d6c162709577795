"""Planners for semi-supervised training: the names after ``-pl``."""

from __future__ import annotations

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)

from nnunet_ext.planners.semi_supervised_planning import SemiSupervisedPlanning


class SemiSupervisedPlanner(SemiSupervisedPlanning):
    """Plans as nnU-Net's :class:`ExperimentPlanner` does, from labelled and unlabelled images.

    Its preprocessor makes the unlabelled cases as well. The plans are called ``SemiSupervisedPlans``; plans and
    preprocessed data of stock planners are never touched.
    """


class SemiSupervisedPlannerResEncM(SemiSupervisedPlanning, nnUNetPlannerResEncM):
    """As :class:`SemiSupervisedPlanner`, with nnU-Net's residual encoder M (8 GB for one network)."""

    default_plans_name = "SemiSupervisedResEncMPlans"


class SemiSupervisedPlannerResEncL(SemiSupervisedPlanning, nnUNetPlannerResEncL):
    """As :class:`SemiSupervisedPlanner`, with nnU-Net's residual encoder L (24 GB for one network)."""

    one_network_in_gb = 24
    default_plans_name = "SemiSupervisedResEncLPlans"


class SemiSupervisedPlannerResEncXL(SemiSupervisedPlanning, nnUNetPlannerResEncXL):
    """As :class:`SemiSupervisedPlanner`, with nnU-Net's residual encoder XL (40 GB for one network)."""

    one_network_in_gb = 40
    default_plans_name = "SemiSupervisedResEncXLPlans"
