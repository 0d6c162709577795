"""Planners for semi-supervised training."""

from __future__ import annotations

from pathlib import Path

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

STOCK_PLANS = (
    "nnUNetPlans",
    "nnUNetResEncUNetPlans",
    "nnUNetResEncUNetMPlans",
    "nnUNetResEncUNetLPlans",
    "nnUNetResEncUNetXLPlans",
    "nnUNetPlans_torchres",
    "nnUNetResEncUNetLPlans_torchres",
    "nnUNetResEncUNetLPlans_torchres_sepz",
    "nnUNetResEncUNetLPlans_noResampling",
)


def refuse_foreign_plans(dataset_name_or_id: str | int, plans_name: str, planner_name: str) -> None:
    """Refuse to overwrite plans of another planner, with which preprocessed data would be lost too.

    Raises:
        ValueError: If a stock planner uses the name, or another planner wrote plans of this name.
    """
    if plans_name in STOCK_PLANS:
        raise ValueError(
            f"{planner_name} must not write {plans_name}, which stock planners use; choose another name for "
            "-overwrite_plans_name"
        )
    plans_file = Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(dataset_name_or_id)
    plans_file = plans_file / f"{plans_name}.json"
    if plans_file.is_file():
        writer = load_json(str(plans_file)).get("experiment_planner_used")
        if writer != planner_name:
            raise ValueError(
                f"{plans_file} was written by {writer}; {planner_name} does not overwrite it. Choose another name for "
                "-overwrite_plans_name"
            )


class SemiSupervisedPlanner(ExperimentPlanner):
    """Plans as nnU-Net's :class:`ExperimentPlanner` does; its preprocessor makes the unlabelled cases as well.

    The plans are called ``SemiSupervisedPlans``; plans and preprocessed data of stock planners are never touched.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "SemiSupervisedPreprocessor",
        plans_name: str = "SemiSupervisedPlans",
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        refuse_foreign_plans(dataset_name_or_id, plans_name, type(self).__name__)
        if preprocessor_name == "DefaultPreprocessor":
            # nnU-Net's commands pass this name whenever the user gave none.
            preprocessor_name = "SemiSupervisedPreprocessor"
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return ``<plans name>_<configuration>``: no folder is shared with other plans."""
        return f"{self.plans_identifier}_{configuration_name}"
