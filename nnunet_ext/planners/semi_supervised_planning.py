"""What the planners for semi-supervised training have in common."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.data.fingerprint import GLOBAL_KEY, SHAPES_KEY, SPACINGS_KEY
from nnunet_ext.data.reading import choose_reader
from nnunet_ext.data.unlabeled import labelled_cases, number_of_channels
from nnunet_ext.training.memory import GIB, cps_step_memory

PREPROCESSOR = "SemiSupervisedPreprocessor"
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


class SemiSupervisedPlanning(ExperimentPlanner):
    """What the planners below have in common; comes before a planner of nnU-Net in their bases.

    Attributes:
        intensity_source: ``"global"``: CT is normalised by all voxels of all images, as in 3D-CPS; ``"foreground"``: by
            the labelled foreground, as in nnU-Net. The plans say which was used.
        spacing_source: ``"all"``: spacing and shape are planned from labelled and unlabelled cases, as the released
            code of 3D-CPS does; ``"labeled"``: from the labelled ones only.
        one_network_in_gb: nnU-Net's memory target for one network, where the user names none for the whole step.
        default_plans_name: Of the plans.
        memory_reserve_gb: Of an explicit memory target, what is kept for the CUDA context and cuDNN's workspaces.
    """

    intensity_source = "global"
    spacing_source = "all"
    memory_reserve_gb = 1.0
    one_network_in_gb: float = 8
    default_plans_name = "SemiSupervisedPlans"
    dataset_json: dict[str, Any]
    dataset_fingerprint: dict[str, Any]

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = PREPROCESSOR,
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        plans_name = plans_name or self.default_plans_name
        refuse_foreign_plans(dataset_name_or_id, plans_name, type(self).__name__)
        if preprocessor_name == "DefaultPreprocessor":
            # nnU-Net's commands pass this name whenever the user gave none.
            preprocessor_name = PREPROCESSOR
        super().__init__(
            dataset_name_or_id,
            self.one_network_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )
        self.cps_memory_target_in_gb = gpu_memory_target_in_gb
        self._found_fingerprint = self.dataset_fingerprint
        self._found_dataset_json = self.dataset_json
        self._estimates: dict[str, int] = {}
        self._fitted: dict[int, float] = {}
        self._used_sources: dict[str, str] = {}

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return ``<plans name>_<configuration>``: no folder is shared with other plans."""
        return f"{self.plans_identifier}_{configuration_name}"

    def determine_reader_writer(self) -> type[BaseReaderWriter]:
        """Return nnU-Net's choice; a damaged first image does not decide it."""
        names = self.dataset.keys()  # a dataset without labels has keys, but iterates over nothing
        return choose_reader(self.dataset_json, (image for name in names for image in self.dataset[name]["images"]))

    def plan_experiment(self) -> dict[str, Any]:
        """Plan from the sources that the attributes name, write the plans, and print what a CPS step needs.

        Raises:
            ValueError: If an attribute has a value that is not offered.
        """
        self._fitted = {}
        self._used_sources = self._swap_sources()
        if not labelled_cases(self.dataset):
            # nnU-Net caps the batch at a share of the training voxels; without labels all images are for training.
            self.dataset_json = self._found_dataset_json | {"numTraining": len(self.dataset_fingerprint["spacings"])}
        plans = super().plan_experiment()
        self._print_memory(plans)
        return plans

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans, with the sources that were used.

        nnU-Net keeps the configurations of an older file that it did not plan now. Those that users added stay; those
        that an earlier planning made, of another fingerprint or memory target, do not.
        """
        plans.update(self._used_sources)
        planned = set(plans["configurations"])
        super().save_plans(plans)
        stale = (set(_PLANNED_NAMES) & set(plans["configurations"])) - planned
        if stale:
            for name in stale:
                del plans["configurations"][name]
            plans_file = Path(str(nnUNet_preprocessed)) / self.dataset_name / f"{self.plans_identifier}.json"
            save_json(plans, str(plans_file), sort_keys=False)

    def _swap_sources(self) -> dict[str, str]:
        """Put what the attributes name where nnU-Net's planning looks; return what was really used."""
        for attribute, offered in (
            ("intensity_source", ("global", "foreground")),
            ("spacing_source", ("all", "labeled")),
        ):
            if getattr(self, attribute) not in offered:
                raise ValueError(
                    f"{type(self).__name__}.{attribute} is {getattr(self, attribute)!r}, expected one of {offered}"
                )
        fingerprint = dict(self._found_fingerprint)
        used = {"intensity_source": self.intensity_source, "spacing_source": self.spacing_source}
        has_labels = bool(labelled_cases(self.dataset))
        if GLOBAL_KEY not in fingerprint:
            used = {"intensity_source": "foreground", "spacing_source": "labeled"}
            if (self.intensity_source, self.spacing_source) != ("foreground", "labeled"):
                warnings.warn(
                    f"the fingerprint of {self.dataset_name} has no global statistics, so {type(self).__name__} plans "
                    "with those of the labelled foreground. To add them: nnUNetv2_extract_fingerprint -d "
                    f"{int(self.dataset_name[7:10])} -fpe GlobalIntensityFingerprintExtractor, then plan again.",
                    stacklevel=2,
                )
        elif not has_labels:
            # nnU-Net's own keys hold the global values already.
            if used != {"intensity_source": "global", "spacing_source": "all"}:
                raise ValueError(
                    f"{self.dataset_name} has no labels, so {type(self).__name__} can only plan with intensity_source "
                    f"'global' and spacing_source 'all', got {self.intensity_source!r} and {self.spacing_source!r}"
                )
            used = {"intensity_source": "global", "spacing_source": "all"}
        else:
            if self.intensity_source == "global":
                fingerprint["foreground_intensity_properties_per_channel"] = fingerprint[GLOBAL_KEY]
            if self.spacing_source == "all":
                fingerprint["spacings"] = [*fingerprint["spacings"], *fingerprint[SPACINGS_KEY]]
                fingerprint["shapes_after_crop"] = [*fingerprint["shapes_after_crop"], *fingerprint[SHAPES_KEY]]
        self.dataset_fingerprint = fingerprint
        return used

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, Any],
    ) -> dict[str, Any]:
        """Plan one configuration; with an explicit memory target, such that a CPS step fits into it."""
        arguments = (spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache)
        if self.cps_memory_target_in_gb is None:
            plan = self._plan_one(*arguments)
        else:
            plan = self._plan_to_fit(arguments, self.cps_memory_target_in_gb - self.memory_reserve_gb)
        return plan

    def _plan_one(self, *arguments: Any) -> dict[str, Any]:
        plan = super().get_plans_for_configuration(*arguments)
        if len(plan["patch_size"]) == 2 and not labelled_cases(self.dataset):
            plan["batch_size"] = min(plan["batch_size"], self.UNet_reference_val_corresp_bs_2d)
        return plan

    def _plan_to_fit(self, arguments: tuple, budget_in_gb: float) -> dict[str, Any]:
        """Search nnU-Net's own target, for one network, at which a CPS step takes the budget.

        Memory grows with that target in steps, so it is bisected; the lower-resolution configurations, of which nnU-Net
        plans dozens while it looks for a spacing, start from what was found for the same number of dimensions.
        """
        dimensions = len(arguments[0])
        explicit = float(self.cps_memory_target_in_gb or 0)

        def attempt(target: float) -> tuple[dict[str, Any], bool]:
            self.UNet_vram_target_GB = target
            plan = self._plan_one(*arguments)
            return plan, self.cps_memory(plan) <= budget_in_gb * GIB

        low, high = 0.0, explicit
        best: dict[str, Any] | None = None
        if dimensions in self._fitted:
            best, fits = attempt(self._fitted[dimensions])
            while not fits and self._fitted[dimensions] > explicit / 64:
                self._fitted[dimensions] *= 0.9
                best, fits = attempt(self._fitted[dimensions])
            best = best if fits else None
        else:
            for _ in range(7):
                middle = (low + high) / 2
                plan, fits = attempt(middle)
                if fits:
                    best, low = plan, middle
                else:
                    high = middle
            self._fitted[dimensions] = low
        if best is None:
            raise ValueError(
                f"-gpu_memory_target {explicit:g}: not even the smallest patch with two labelled and two unlabelled "
                f"ones fits a step of cross pseudo supervision into it ({dimensions}D); allow more memory"
            )
        return best

    def cps_memory(self, plan: dict[str, Any]) -> int:
        """Return the bytes that a CPS step of a configuration allocates, see :func:`cps_step_memory`."""
        architecture = plan["architecture"]
        key = repr((plan["patch_size"], plan["batch_size"], architecture["arch_kwargs"]))
        if key not in self._estimates:
            labels = LabelManager(
                self.dataset_json["labels"], regions_class_order=self.dataset_json.get("regions_class_order")
            )
            self._estimates[key] = cps_step_memory(
                architecture,
                [int(n) for n in plan["patch_size"]],
                int(plan["batch_size"]),
                number_of_channels(self.dataset_json),
                labels.num_segmentation_heads,
                labels.has_regions,
            )
        return self._estimates[key]

    def _print_memory(self, plans: dict[str, Any]) -> None:
        print("GPU memory that a step of cross pseudo supervision allocates (two networks, labelled and unlabelled")
        print("patches; estimated for mixed precision without torch.compile, cuDNN's workspaces not included):")
        for name in ("2d", "3d_lowres", "3d_fullres"):
            plan = plans["configurations"].get(name)
            if plan is not None and "architecture" in plan:
                patch = " x ".join(str(int(n)) for n in plan["patch_size"])
                print(
                    f"  {name}: {self.cps_memory(plan) / GIB:.1f} GB (patch {patch}, {plan['batch_size']} + "
                    f"{plan['batch_size']})"
                )
        if self.cps_memory_target_in_gb is None:
            print("Patch and batch are those of one network; -gpu_memory_target N fits the whole step into N GB.\n")
