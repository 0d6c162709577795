"""What all planners of ours have in common: plans and preprocessed data of others are never touched."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_ext.data.dataset_json import check_number_of_training_cases, check_raw_dataset, load_dataset_json
from nnunet_ext.files import only_here, read_json, sweep, write_json
from nnunet_ext.fingerprints.cases import FILE as FINGERPRINT
from nnunet_ext.fingerprints.cases import read_fingerprint

_PLANNED_NAMES = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
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


def check_before_planning(dataset_name_or_id: str | int, plans_name: str, planner_name: str) -> None:
    """Check what nnU-Net's planner is about to read, and that the plans may be written.

    Args:
        dataset_name_or_id: Dataset name or number.
        plans_name: Name of the plans to write.
        planner_name: Name of the planner.

    Raises:
        FileNotFoundError: If there is no dataset.json.
        ValueError: If dataset.json, the fingerprint or the plans that are there are no JSON, or something in
            dataset.json is wrong, or the plans are those of another planner.
    """
    raw = check_raw_dataset(dataset_name_or_id)
    check_number_of_training_cases(raw, load_dataset_json(raw))
    read_fingerprint(Path(str(nnUNet_preprocessed)) / raw.name / FINGERPRINT)
    refuse_foreign_plans(dataset_name_or_id, plans_name, planner_name)


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
        writer = read_json(plans_file, "restore it, or remove it to plan anew").get("experiment_planner_used")
        if writer != planner_name:
            raise ValueError(
                f"{plans_file} was written by {writer}; {planner_name} does not overwrite it. Choose another name for "
                "-overwrite_plans_name"
            )


class OwnPlans(ExperimentPlanner):
    """Plans with a folder of preprocessed data of their own."""

    def plan_experiment(self) -> dict[str, Any]:
        """Plan and write the plans, while nobody else plans or preprocesses with them.

        Raises:
            BusyError: If another process does.
        """
        plans_file = self.plans_file
        folder = plans_file.parent
        with ExitStack() as locks:
            locks.enter_context(only_here(plans_file, "planned"))
            configurations = read_json(plans_file).get("configurations", {}) if plans_file.is_file() else {}
            for name in sorted({*_PLANNED_NAMES, *configurations}):
                for data in (f"{self.plans_identifier}_{name}", f"{self.plans_identifier}_{name}_unlabeled"):
                    if (folder / f".{data}.lock").is_file():  # somebody preprocessed there, perhaps does now
                        locks.enter_context(only_here(folder / data, "preprocessed"))
            sweep(folder)
            plans: dict[str, Any] = super().plan_experiment()
            return plans

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return ``<plans name>_<configuration>``: no folder is shared with other plans."""
        return f"{self.plans_identifier}_{configuration_name}"

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans, whole or not at all, and say where.

        As in nnU-Net, configurations of an older file that were not planned now are added to ``plans``: those that
        users made. Those that an earlier planning made, of another fingerprint or memory target, are not.
        """
        recursive_fix_for_json_export(plans)
        plans_file = self.plans_file
        earlier = read_json(plans_file).get("configurations", {}) if plans_file.is_file() else {}
        planned = plans["configurations"]
        planned |= {name: plan for name, plan in earlier.items() if name not in {*planned, *_PLANNED_NAMES}}
        write_json(plans_file, plans, indent=4)
        print(f"Plans were saved to {plans_file}")

    @property
    def plans_file(self) -> Path:
        """File of the plans."""
        return Path(str(nnUNet_preprocessed)) / self.dataset_name / f"{self.plans_identifier}.json"
