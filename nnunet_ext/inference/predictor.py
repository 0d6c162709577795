"""nnU-Net's predictor with spacings of its own choice and a fast export; one bad case never costs the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.helpers import empty_cache
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_ext import files
from nnunet_ext.inference.case_predictor import CasePredictor
from nnunet_ext.inference.checks import BadInputError as BadInputError
from nnunet_ext.inference.image_folder import list_inputs
from nnunet_ext.inference.prediction_run import PredictionFailedError, Result, Run, Task, name_cases, nnunet_result
from nnunet_ext.inference.spacing_report import SpacingReport
from nnunet_ext.inference.writing import export
from nnunet_ext.plugin import compat


class Predictor(CasePredictor):
    """A drop-in ``nnUNetPredictor`` with options of ours. Without them it is nnU-Net's own, voxel for voxel.

    With one of them, cases are isolated: if some fail, the others are predicted and written all the same, and then
    ``PredictionFailedError`` is raised. Files appear under their names only when they are complete, and
    ``spacing_report.json`` beside them says what was done with each case.

    Args:
        arguments: Positional arguments of CasePredictor, which are those of nnUNetPredictor.
        part: Number of this part and of all parts, for ``predict_from_files_sequential``, whose signature has none.
        keywords: Keyword arguments of CasePredictor: ``spacing``, ``fast_export``, ``propagate``,
            ``propagate_references``, ``network``, ``agreement``, ``min_agreement``, ``prune_depth``, ``trust_model``,
            ``engine``, ``precision``, ``skip_background`` and those of nnUNetPredictor.
    """

    def __init__(self, *arguments: Any, part: tuple[int, int] = (0, 1), **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.part = part

    @property
    def _leaves_the_loop_to_stock(self) -> bool:
        """A preprocessor with a way of its own is kept where only the network differs."""
        if not self.has_options or self._changes_cases:
            return not self.has_options
        return self.configuration_manager.preprocessor_class.run_case is not DefaultPreprocessor.run_case

    def predict_from_files(  # noqa: D102 - documented by nnU-Net
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | list[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        num_processes_preprocessing: int = default_num_processes,
        num_processes_segmentation_export: int = default_num_processes,
        folder_with_segs_from_prev_stage: str | None = None,
        num_parts: int = 1,
        part_id: int = 0,
    ) -> list[Any] | None:
        call = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        if self._leaves_the_loop_to_stock:
            return super().predict_from_files(**call)
        return self._predict_files(call)

    def predict_from_files_sequential(  # noqa: D102 - documented by nnU-Net
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | list[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        folder_with_segs_from_prev_stage: str | None = None,
    ) -> list[Any] | None:
        call = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        if self._leaves_the_loop_to_stock:
            return super().predict_from_files_sequential(**call)
        no_processes = {"num_processes_preprocessing": 0, "num_processes_segmentation_export": 0}
        return self._predict_files(call | no_processes | {"part_id": self.part[0], "num_parts": self.part[1]})

    def predict_from_list_of_npy_arrays(  # noqa: D102 - documented by nnU-Net
        self,
        image_or_list_of_images: np.ndarray | list[np.ndarray],
        segs_from_prev_stage_or_list_of_segs_from_prev_stage: np.ndarray | list[np.ndarray] | None,
        properties_or_list_of_properties: dict | list[dict],
        truncated_ofname: str | list[str] | None,
        num_processes: int = 3,
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
    ) -> list[Any]:
        call = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        if self._leaves_the_loop_to_stock:
            return super().predict_from_list_of_npy_arrays(**call)
        self._check_model(save_probabilities)
        images, properties = _as_list(image_or_list_of_images), _as_list(properties_or_list_of_properties)
        previous = _as_list(segs_from_prev_stage_or_list_of_segs_from_prev_stage) or [None] * len(images)
        outputs = _as_list(truncated_ofname) or [None] * len(images)
        tasks = [
            Task((image, image_properties), seg, output)
            for image, image_properties, seg, output in zip(images, properties, previous, outputs, strict=True)
        ]
        try:
            return self._run(tasks, save_probabilities, num_processes, num_processes_segmentation_export, None)
        finally:
            self._say_least_agreement_of(tasks)

    def predict_single_npy_array(  # noqa: D102 - documented by nnU-Net
        self,
        input_image: np.ndarray,
        image_properties: dict,
        segmentation_previous_stage: np.ndarray | None = None,
        output_file_truncated: str | None = None,
        save_or_return_probabilities: bool = False,
    ) -> Result:
        call = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        if self._leaves_the_loop_to_stock:
            return super().predict_single_npy_array(**call)
        self._check_model(save_or_return_probabilities)
        source = (input_image, image_properties)
        prepared = self.prepare_case(source, segmentation_previous_stage, self.rule, self.model_of_cases)
        output = output_file_truncated
        folder = None if output is None else Path(output).parent
        logits = self.predict_logits(prepared, folder, save_or_return_probabilities)
        self.say_agreement("the image" if output is None else Path(output).name, prepared.record)
        export_fast = self.exports_fast(prepared, logits, save_or_return_probabilities)
        exported = export(
            logits,
            prepared,
            self.model_of_cases,
            output,
            save_or_return_probabilities,
            export_fast,
            self.export_device,
        )
        return nnunet_result(exported, save_or_return_probabilities)

    def predict_from_data_iterator(  # noqa: D102 - documented by nnU-Net
        self,
        data_iterator: Iterable[dict[str, Any]],
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
    ) -> list[Any]:
        if self._changes_cases:
            raise BadInputError(
                f"predict_from_data_iterator takes preprocessed data, where {self.rule.describe()}, propagate, "
                "fast_export and agreement come too late; call predict_from_files, predict_from_list_of_npy_arrays or "
                "predict_single_npy_array"
            )
        return super().predict_from_data_iterator(data_iterator, save_probabilities, num_processes_segmentation_export)

    def _predict_files(self, call: dict[str, Any]) -> list[Any] | None:
        """Do what ``predict_from_files`` does around its loop, then the loop."""
        outputs = call["output_folder_or_list_of_truncated_output_files"]
        part = call["part_id"], call["num_parts"]
        self._check_call(call, part)
        source = call["list_of_lists_or_source_folder"]
        wrong: dict[str, str] = {}
        if isinstance(source, str):
            source, wrong = self._list_inputs(source)
            wrong = dict(sorted(wrong.items())[part[0] :: part[1]])
        folder = Path(outputs) if isinstance(outputs, str) else Path(outputs[0]).parent if outputs else None
        if folder is not None:
            self._describe_run(folder, call)
        # which are done already is looked at here
        images_of, names, previous = compat.input_and_output_lists(
            self, source, outputs, call["folder_with_segs_from_prev_stage"], True, *part
        )
        tasks = [
            Task(tuple(str(image) for image in images), seg, None if output is None else str(output))
            for images, seg, output in zip(images_of, previous, names or [None] * len(images_of), strict=True)
        ]
        report = None if folder is None else SpacingReport(folder, part)
        earlier: list[str] = []
        if report is not None and not call["overwrite"]:
            ending, probabilities = self.dataset_json["file_ending"], call["save_probabilities"]
            to_do, messages = report.resume(names, ending, probabilities, part[1] == 1, self.describe_options())
            earlier = [Path(names[index]).name for index in sorted({*range(len(names))} - {*to_do})]
            tasks = [tasks[index] for index in to_do]
            print("\n".join(messages))
        processes = call["num_processes_preprocessing"], call["num_processes_segmentation_export"]
        try:
            return self._run(tasks, call["save_probabilities"], *processes, report, wrong)
        finally:
            if report is not None:
                self.say_least_agreement(report.content["cases"], earlier, [*name_cases(tasks), *earlier])
            else:
                self._say_least_agreement_of(tasks)

    def _say_least_agreement_of(self, tasks: list[Task]) -> None:
        """Say which cases agree least, where no report has their records."""
        done = {name: {"agreement": found} for name, found in self.agreements.items()}
        self.say_least_agreement(done, [], list(name_cases(tasks)))

    def _check_call(self, call: dict[str, Any], part: tuple[int, int]) -> None:
        stage, previous = self.configuration_manager.previous_stage_name, call["folder_with_segs_from_prev_stage"]
        if stage is not None and previous is None:
            raise BadInputError(
                f"this configuration is a cascade and needs the predictions of {stage}; pass their folder with "
                "-prev_stage_predictions (folder_with_segs_from_prev_stage)"
            )
        if previous is not None and not Path(previous).is_dir():
            raise BadInputError(f"there is no folder {previous} of the previous stage's predictions; name it")
        self._check_model(call["save_probabilities"])
        if not 0 <= part[0] < part[1]:
            raise BadInputError(f"part_id must lie in 0 to {part[1] - 1} (num_parts - 1), got {part[0]}")

    def _list_inputs(self, source: str) -> tuple[list[list[str]], dict[str, str]]:
        try:
            return list_inputs(Path(source), self.dataset_json["file_ending"])
        except FileNotFoundError as error:
            raise BadInputError(str(error)) from error

    def _check_model(self, save_probabilities: bool) -> None:
        self.check_preprocessor()
        self.check_propagation(save_probabilities)
        self.check_agreement()

    def _describe_run(self, folder: Path, call: dict[str, Any]) -> None:
        """Write the files that nnU-Net puts beside predictions."""
        folder.mkdir(parents=True, exist_ok=True)
        files.sweep(folder)
        arguments = dict(call) | {"nnunet_ext": self.describe_options()}
        recursive_fix_for_json_export(arguments)
        files.write_json(folder / "predict_from_raw_data_args.json", arguments, 4, sort_keys=True)
        files.write_json(folder / "dataset.json", self.dataset_json, 4)
        files.write_json(folder / "plans.json", self.plans_manager.plans, 4)

    def _run(
        self,
        cases: list[Task],
        save_probabilities: bool,
        preprocessing: int,
        exporting: int,
        report: SpacingReport | None,
        wrong: Mapping[str, str] = MappingProxyType({}),
    ) -> list[Any]:
        tasks = name_cases(cases)
        self.expected_cases = len(tasks)
        run = Run(self, tasks, save_probabilities, report)
        if tasks:
            self.warm_up()
        try:
            run.work(list(tasks), preprocessing, exporting)
            while run.suspects and not run.stopped:  # whichever of them made a worker die does so alone now
                name = run.suspects.pop(0)
                run.work([name], preprocessing, min(exporting, 1), alone=True)
        finally:
            compute_gaussian.cache_clear()
            empty_cache(self.device)
        results = [run.results.get(name) for name in tasks]
        failures = {name: run.failures[name] for name in tasks if name in run.failures} | dict(wrong)
        if failures:
            unfinished = [name for name in tasks if name not in run.results and name not in failures]
            not_begun = unfinished if run.stopped else []
            raise PredictionFailedError(failures, [*results, *[None] * len(wrong)], not_begun)
        return results


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
