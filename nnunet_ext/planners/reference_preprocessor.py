"""The preprocessor of plans with the position of each slice: the one of our other plans, and a channel more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.data.position import BY_INDEX, COUNTED_BY, INDEX, append_position
from nnunet_ext.planners.preprocessor import SemiSupervisedPreprocessor, print_info


class ReferencePreprocessor(SemiSupervisedPreprocessor):
    """Appends the position of each slice in its whole scan as the last channel, to every case alike.

    Labelled, unlabelled and test cases come through :meth:`run_case_npy`, so that training and prediction agree.
    """

    _counted_by: str | None = None

    def run_case_npy(
        self,
        data: np.ndarray,
        seg: np.ndarray | None,
        properties: dict[str, Any],
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        dataset_json: dict[str, Any] | str,
    ) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        """Preprocess an image as nnU-Net does, and append the position.

        Args:
            data: Image ``(C, *S)`` as nnU-Net's readers return it.
            seg: Segmentation ``(1, *S)``, or None.
            properties: Properties of the image from the reader.
            plans_manager: Plans of the dataset.
            configuration_manager: A 2d configuration of the plans.
            dataset_json: Content of dataset.json.

        Raises:
            ValueError: If the configuration is not 2d.
        """
        if len(configuration_manager.spacing) != 2:
            raise ValueError(
                f"{type(self).__name__} appends the position of slices, which only a 2d configuration keeps; for "
                f"{len(configuration_manager.spacing)}D name SemiSupervisedPreprocessor in the plans"
            )
        made, seg, properties = super().run_case_npy(
            data, seg, properties, plans_manager, configuration_manager, dataset_json
        )
        made = append_position(made, properties, plans_manager.transpose_forward)
        self._counted_by = properties[COUNTED_BY]
        return made, seg, properties

    def run_case_save(self, *arguments: Any, **named: Any) -> str | None:  # type: ignore[override]
        """Preprocess and write one labelled case; return what its positions count from."""
        super().run_case_save(*arguments, **named)
        return self._counted_by

    def _run_isolated(
        self, arguments: dict[str, tuple], num_processes: int, stage: str, at_success: Callable[[Any], None]
    ) -> None:
        counted: Counter[str] = Counter()

        def succeeded(counted_by: Any) -> None:
            counted[counted_by] += 1
            at_success(counted_by)

        super()._run_isolated(arguments, num_processes, stage, succeeded)
        if counted[INDEX]:
            print_info(f"INFO: in {counted[INDEX]} of {counted.total()} labelled cases {BY_INDEX}.")
