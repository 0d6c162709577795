"""Planners for semi-supervised training: the names after ``-pl``."""

from __future__ import annotations

import warnings
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunet_ext.data.case_files import file_problem
from nnunet_ext.data.preprocessors import PREPROCESSOR, SAME_PER_CASE
from nnunet_ext.data.reading import choose_reader
from nnunet_ext.data.unlabeled_only import labelled_cases
from nnunet_ext.fingerprints.cases import GLOBAL_KEY, SHAPES_KEY, SPACINGS_KEY
from nnunet_ext.planners.fitting import FitsMemory
from nnunet_ext.planners.own_plans import OwnPlans, check_before_planning
from nnunet_ext.training.step_memory import cps_step_memory


class SemiSupervisedPlanning(FitsMemory, OwnPlans):
    """What the planners below have in common; comes before a planner of nnU-Net in their bases.

    Attributes:
        intensity_source: ``"global"``: CT is normalised by all voxels of all images, as in 3D-CPS; ``"foreground"``: by
            the labelled foreground, as in nnU-Net. The plans say which was used.
        spacing_source: ``"all"``: spacing and shape are planned from labelled and unlabelled cases, as the released
            code of 3D-CPS does; ``"labeled"``: from the labelled ones only.
        one_network_in_gb: nnU-Net's memory target for one network, where the user names none for the whole step.
        default_plans_name: Name of the plans where the user gives none.
        memory_reserve_gb: Part of an explicit memory target that is kept for the CUDA context and cuDNN's workspaces.
    """

    intensity_source = "global"
    spacing_source = "all"
    memory_reserve_gb = 1.0
    one_network_in_gb: float = 8
    default_plans_name = "SemiSupervisedPlans"
    smallest_step = "with two labelled and two unlabelled ones fits a step of cross pseudo supervision"
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
        check_before_planning(dataset_name_or_id, plans_name, type(self).__name__)
        if preprocessor_name == SAME_PER_CASE[PREPROCESSOR]:
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
        self._used_sources: dict[str, str] = {}

    def determine_reader_writer(self) -> type[BaseReaderWriter]:
        """Return nnU-Net's choice; a damaged first image does not decide it."""
        names = self.dataset.keys()  # a dataset without labels has keys, but iterates over nothing
        images = (image for name in names for image in self.dataset[name]["images"])
        return choose_reader(self.dataset_json, (image for image in images if file_problem(image) is None))

    def plan_experiment(self) -> dict[str, Any]:
        """Plan from the sources that the attributes name, write the plans, and print what a CPS step needs.

        Raises:
            ValueError: If an attribute has a value that is not offered.
        """
        target = self.cps_memory_target_in_gb
        if target is not None:
            self.fit_into(target - self.memory_reserve_gb, target)
        self._used_sources = self._swap_sources()
        if not labelled_cases(self.dataset):
            # nnU-Net caps the batch at a share of the training voxels; without labels all images are for training.
            self.dataset_json = self._found_dataset_json | {"numTraining": len(self.dataset_fingerprint["spacings"])}
        plans = super().plan_experiment()
        self._print_memory(plans)
        return plans

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans, with the sources that were used."""
        plans.update(self._used_sources)
        super().save_plans(plans)

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
        sources = {"intensity_source": self.intensity_source, "spacing_source": self.spacing_source}
        has_labels = bool(labelled_cases(self.dataset))
        if GLOBAL_KEY not in fingerprint:
            sources = {"intensity_source": "foreground", "spacing_source": "labeled"}
            if (self.intensity_source, self.spacing_source) != ("foreground", "labeled"):
                warnings.warn(
                    f"the fingerprint of {self.dataset_name} has no global statistics, so {type(self).__name__} plans "
                    "with those of the labelled foreground. To add them: nnUNetv2_extract_fingerprint -d "
                    f"{int(self.dataset_name[7:10])} -fpe GlobalIntensityFingerprintExtractor, then plan again.",
                    stacklevel=2,
                )
        elif not has_labels:
            # nnU-Net's own keys hold the global values already.
            if sources != {"intensity_source": "global", "spacing_source": "all"}:
                raise ValueError(
                    f"{self.dataset_name} has no labels, so {type(self).__name__} can only plan with intensity_source "
                    f"'global' and spacing_source 'all', got {self.intensity_source!r} and {self.spacing_source!r}"
                )
            sources = {"intensity_source": "global", "spacing_source": "all"}
        else:
            if self.intensity_source == "global":
                fingerprint["foreground_intensity_properties_per_channel"] = fingerprint[GLOBAL_KEY]
            if self.spacing_source == "all":
                fingerprint["spacings"] = [*fingerprint["spacings"], *fingerprint[SPACINGS_KEY]]
                fingerprint["shapes_after_crop"] = [*fingerprint["shapes_after_crop"], *fingerprint[SHAPES_KEY]]
        self.dataset_fingerprint = fingerprint
        return sources

    def plan_as_nnunet(self, *arguments: Any) -> dict[str, Any]:
        """Plan one configuration as nnU-Net does; without labels, with a 2D batch that is not larger than usual."""
        plan = super().plan_as_nnunet(*arguments)
        if len(plan["patch_size"]) == 2 and not labelled_cases(self.dataset):
            plan["batch_size"] = min(plan["batch_size"], self.UNet_reference_val_corresp_bs_2d)
        return plan

    def step_memory(self, plan: dict[str, Any]) -> int:
        """Return :meth:`cps_memory`, which subclasses may override."""
        return self.cps_memory(plan)

    def cps_memory(self, plan: dict[str, Any]) -> int:
        """Return the bytes that a CPS step of a configuration allocates."""
        return super().step_memory(plan)

    def estimate_step(self, *arguments: Any) -> int:
        """Return the bytes that a CPS step allocates, see :func:`cps_step_memory`."""
        return cps_step_memory(*arguments)

    def _print_memory(self, plans: dict[str, Any]) -> None:
        heading = (
            "GPU memory that a step of cross pseudo supervision allocates (two networks, labelled and unlabelled\n"
            "patches; estimated for mixed precision without torch.compile, cuDNN's workspaces not included):"
        )
        self.print_memory(plans, heading, "{n} + {n}")
        if self.cps_memory_target_in_gb is None:
            print("Patch and batch are those of one network; -gpu_memory_target N fits the whole step into N GB.\n")


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
