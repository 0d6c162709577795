"""nnU-Net's predictor for one case at a time, with options of ours: how it is prepared, predicted and exported."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnunet_ext.inference.case import Model, Prepared, prepare
from nnunet_ext.inference.checks import BadInputError
from nnunet_ext.inference.coarse_references import carry_prediction, check_how, propagation_line
from nnunet_ext.inference.process_memory import peak_memory_mib
from nnunet_ext.inference.propagated import Carrier
from nnunet_ext.inference.propagation_model import PropagationModel, check_partner, check_probabilities, open_model
from nnunet_ext.inference.several_networks import SeveralNetworks
from nnunet_ext.inference.spacing import PlansSpacing, SpacingRule
from nnunet_ext.inference.spacing_report import spacing_line
from nnunet_ext.inference.writing import export, why_not_fast
from nnunet_ext.planners.preprocessor import SemiSupervisedPreprocessor
from nnunet_ext.plugin import compat
from nnunet_ext.propagation.driver import PropagationSettings
from nnunet_ext.propagation.references import How


class CasePredictor(SeveralNetworks):
    """Predicts prepared cases.

    Args:
        arguments: Positional arguments of SeveralNetworks, which are those of nnUNetPredictor.
        spacing: Rule that chooses spacings: ``ForcedSpacing``, ``TargetSpacing`` or ``MaxVoxels``; ``None`` is
            nnU-Net's own.
        fast_export: Make the label map without interpolating logits where the winner is known. Equal to stock up to
            float ties; where it cannot be done, nnU-Net's export does it, and a line is printed.
        propagate: Folder of a propagation model, which carries what is segmented in a few slices through the volume.
        propagate_references: Which segmented slices it starts from: ``"largest"`` (of each class the one with its
            largest area), ``"uniform"`` (all in which there is a class) or a number of these.
        keywords: Keyword arguments of SeveralNetworks: ``network``, ``agreement``, ``min_agreement``, ``prune_depth``,
            ``trust_model``, ``engine``, ``precision``, ``skip_background`` and those of nnUNetPredictor.

    Raises:
        ValueError: If there is no such choice of references.
    """

    def __init__(
        self,
        *arguments: Any,
        spacing: SpacingRule | None = None,
        fast_export: bool = False,
        propagate: str | Path | None = None,
        propagate_references: How = "largest",
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.spacing, self.fast_export = spacing, fast_export
        self.propagate = None if propagate is None else Path(propagate)
        self.propagate_references = check_how(propagate_references)
        self._propagation: PropagationModel | None = None
        self._carrier: Carrier | None = None

    @property
    def propagation(self) -> PropagationModel | None:
        """Propagation model that carries what is segmented, if there is one.

        Raises:
            BadInputError: If it is none.
        """
        if self.propagate is not None and self._propagation is None:
            try:
                self._propagation = open_model(self.propagate, trusted=self.trust_model, flag="--propagate")
            except (ValueError, FileNotFoundError) as error:
                raise BadInputError(str(error)) from error
        return self._propagation

    @property
    def prepare_case(self) -> Callable[..., Prepared]:
        """Function that prepares a case of a source, a previous stage, a rule and a model; it can be pickled."""
        return prepare if self.propagation is None else partial(prepare, carrier=self.propagation.model)

    def check_propagation(self, save_probabilities: bool) -> None:
        """Check the propagation model, where there is one, and load its networks.

        Raises:
            BadInputError: If it cannot be used, or does not fit the model that segments.
        """
        if self.propagation is None:
            return
        try:
            check_partner(self.propagation, self.plans_manager, self.configuration_manager, self.dataset_json)
            check_probabilities(self.propagation, save_probabilities)
            self._networks_of(self.propagation)
        except ValueError as error:
            raise BadInputError(str(error)) from error

    def _networks_of(self, found: PropagationModel) -> Carrier:
        if self._carrier is None:
            settings = PropagationSettings()
            self._carrier = Carrier(found.load(self.device), found.model, self.device, settings, self.allow_tqdm)
        return self._carrier

    def _propagation_text(self) -> str | None:
        if self.propagation is None:
            return None
        return f"{self.propagation.describe()}, references {self.propagate_references}"

    @property
    def has_options(self) -> bool:
        """Whether anything differs from nnU-Net's predictor."""
        return super().has_options or self._changes_cases

    @property
    def _changes_cases(self) -> bool:
        """Whether cases are prepared, exported or recorded otherwise than by nnU-Net."""
        return bool(self.spacing is not None or self.fast_export or self.agreement or self.propagate)

    @property
    def rule(self) -> SpacingRule:
        """Rule that chooses the spacings of each case."""
        return self.spacing or PlansSpacing()

    @property
    def model_of_cases(self) -> Model:
        """Trained model, as workers that prepare and export cases get it."""
        # the label map is to be the same with agreement as without it, where nnU-Net's own loop makes it
        stock = self.spacing is None and not self.fast_export and self.prune_depth is None
        managers = self.plans_manager, self.configuration_manager
        return Model(*managers, self.dataset_json, self.verbose_preprocessing, stock)

    def describe_options(self) -> dict[str, Any]:
        """Return the options that change a prediction, for reports."""
        return {
            "spacing": self.rule.describe(),
            "fast_export": self.fast_export,
            "prune_depth": self.prune_depth,
            "network": self.chosen_network,
            "propagate": self._propagation_text(),
            **self.describe_engine(),
            "tile_step_size": self.tile_step_size,
            "mirroring": bool(self.use_mirroring and self.allowed_mirroring_axes),
            "device": str(self.device),
        }

    def check_preprocessor(self) -> None:
        """Refuse a preprocessor with a way of its own to read a case, which preparing cases one by one passes by.

        Raises:
            BadInputError: If the plans have one.
        """
        kind = self.configuration_manager.preprocessor_class
        if kind.run_case not in (DefaultPreprocessor.run_case, SemiSupervisedPreprocessor.run_case):
            raise BadInputError(
                f"the plans' preprocessor {kind.__name__} has a run_case of its own, which spacings, propagate, "
                "fast_export and agreement would bypass; predict without them, or move what it does to run_case_npy"
            )

    def predict_logits(
        self, prepared: Prepared, folder: Path | None = None, save_probabilities: bool = False
    ) -> torch.Tensor:
        """Return the logits ``(K, *S)`` of a case, and complete its record.

        Args:
            prepared: The case; it is emptied of its image.
            folder: On whose disk the logits of each network lie meanwhile, where they are compared.
            save_probabilities: Whether probabilities of all classes are to be made of them.
        """
        if self.propagation is None:
            return self._compared_logits(prepared, folder)
        logits = carry_prediction(
            prepared,
            self.model_of_cases,
            self._networks_of(self.propagation),
            self.propagate_references,
            partial(self._compared_logits, folder=folder),
            self._label_map,
            save_probabilities,
        )
        self._note_gpu_peak(prepared.record)
        return logits

    def _compared_logits(self, prepared: Prepared, folder: Path | None) -> torch.Tensor:
        with self.comparing(prepared, self.model_of_cases, folder, self.export_device):
            return self._predict_logits(prepared)

    def _label_map(self, logits: torch.Tensor, prepared: Prepared) -> np.ndarray:
        """Return the label map of logits on the image's own grid."""
        fast = self.exports_fast(prepared, logits, False)
        labels = export(logits, prepared, self.model_of_cases, None, fast=fast, device=self.export_device).segmentation
        if labels is None:
            raise RuntimeError("an export without a file has no label map")
        return labels

    def _predict_logits(self, prepared: Prepared) -> torch.Tensor:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        logits = self.predict_logits_from_preprocessed_data(torch.from_numpy(prepared.data)).cpu()
        prepared.record["seconds"]["network"] = time.perf_counter() - start
        prepared.record["peak_memory_mib"]["network"] = peak_memory_mib()
        self._note_gpu_peak(prepared.record)
        prepared.record["patches"] = self._number_of_patches(prepared.data.shape[1:])
        if self.runs_windows:
            prepared.record["engine"], prepared.record["patches_skipped"] = self.engine_used, self.skipped
        prepared.record["predicted_with"] = self.describe_options()
        prepared.data = np.empty(0, np.float32)
        return logits

    def _note_gpu_peak(self, record: dict[str, Any]) -> None:
        if self.device.type == "cuda":
            record["peak_memory_mib"]["gpu"] = round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)

    def _number_of_patches(self, shape: tuple[int, ...]) -> int:
        patch = self.configuration_manager.patch_size
        padded = [*shape[: len(shape) - len(patch)], *map(max, shape[-len(patch) :], patch)]
        self.verbose, verbose = False, self.verbose
        try:
            return len(compat.sliding_window_slicers(self, tuple(padded)))
        finally:
            self.verbose = verbose

    @property
    def export_device(self) -> torch.device:
        """Device that fast exports interpolate on."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def exports_fast(self, prepared: Prepared, logits: torch.Tensor, save_probabilities: bool) -> bool:
        """Whether a case is exported fast; prints why it cannot be, once."""
        model = self.model_of_cases if prepared.exported is None else prepared.exported.model
        reason = why_not_fast(model, prepared, logits.shape[1:], save_probabilities)
        if self.fast_export and reason is not None:
            self.say_once(f"--fast_export: {reason}; nnU-Net's own export is used.")
        return self.fast_export and reason is None

    def say_spacing(self, name: str, record: dict[str, Any]) -> None:
        """Print which spacings a case got."""
        if self.spacing is None:
            return
        if len(self.configuration_manager.spacing) == 2:
            self.say_once(
                f"{self.rule.describe()}: this is a 2d configuration, and nnU-Net never resamples between its slices, "
                "so only the in-plane values act."
            )
        if not record["direction_known"]:
            self.say_once(
                "These images have no direction: their first array axis is taken for the axial one (z), their last "
                "for x."
            )
        print(spacing_line(name, record))

    def say_agreement(self, name: str, record: Mapping[str, Any]) -> None:
        """Print what the networks agree about in a case, and what was carried from slice to slice."""
        super().say_agreement(name, record)
        if "propagation" in record:
            print(propagation_line(name, record["propagation"]))
