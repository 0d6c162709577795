"""Fingerprints over labelled and unlabelled images: which cases are to be read, and what they make together."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from tqdm import tqdm

from nnunet_ext.data.dataset_json import load_dataset_json, number_of_channels
from nnunet_ext.data.failures import LABELLED, UNLABELLED, Failure
from nnunet_ext.data.labelled import usable_labelled
from nnunet_ext.data.leftovers import sweep_all
from nnunet_ext.data.parts import ALL, Part, only_part
from nnunet_ext.data.pool import map_isolated
from nnunet_ext.data.reading import choose_reader
from nnunet_ext.data.signature import case_source
from nnunet_ext.data.unlabeled import UnlabeledCase, find_unlabeled_cases, where_looked
from nnunet_ext.data.unlabeled_only import labelled_cases
from nnunet_ext.files import DiskFullError, read_json, write_json
from nnunet_ext.fingerprints.case_statistics import CaseStatistics, analyze, case_file, load, merge
from nnunet_ext.fingerprints.intensity import IntensityStatistics

FILE = "dataset_fingerprint.json"
_NAMED = 10  # cases named in an error; the others are counted
FOLDER = "fingerprint_cases"
GLOBAL_KEY = "global_intensity_properties_per_channel"
SPACINGS_KEY = "unlabeled_spacings"
SHAPES_KEY = "unlabeled_shapes_after_crop"
STOCK_KEYS = (
    "spacings",
    "shapes_after_crop",
    "foreground_intensity_properties_per_channel",
    "median_relative_size_after_cropping",
)


@dataclass
class CaseTable:
    """What is known of the cases of a dataset, kept in files, one a case.

    Attributes:
        folder: Folder of the files.
        dataset_json: The dataset's dataset.json.
        labelled: Files of the labelled cases, ``{"images": [...], "label": ...}``, by name.
        unlabelled: The unlabelled cases by name.
        reader_class: nnU-Net's reader of the images.
        failures: Cases that could not be read.
        found: Cases that were read, without their distributions, by kind and name.
    """

    folder: Path
    dataset_json: dict[str, Any]
    labelled: dict[str, dict[str, Any]]
    unlabelled: dict[str, UnlabeledCase]
    reader_class: type[BaseReaderWriter]
    failures: list[Failure] = field(default_factory=list)
    found: dict[str, dict[str, CaseStatistics]] = field(default_factory=lambda: {LABELLED: {}, UNLABELLED: {}})

    def files(self, kind: str, name: str) -> tuple[tuple[str, ...], str | None]:
        """Return the image files and the label file of a case."""
        if kind == LABELLED:
            return tuple(self.labelled[name]["images"]), self.labelled[name]["label"]
        return self.unlabelled[name].images, None

    def names(self) -> list[tuple[str, str]]:
        """Return kind and name of every case, labelled ones first."""
        return [(LABELLED, name) for name in self.labelled] + [(UNLABELLED, name) for name in self.unlabelled]

    def path(self, kind: str, name: str) -> Path:
        """Return where a case is kept."""
        return case_file(self.folder / kind, name)

    def source(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return what the case's files are like now, or None if one is missing."""
        images, label = self.files(kind, name)
        try:
            files = images if label is None else (*images, label)
            return case_source(files, self.reader_class, number_of_channels(self.dataset_json))
        except OSError:
            return None

    def kept(self, kind: str, name: str) -> CaseStatistics | None:
        """Return what is kept of a case, if its files are as they were."""
        source = self.source(kind, name)
        return None if source is None else load(self.path(kind, name), source)

    def kept_cases(self, kind: str) -> Iterator[tuple[str, CaseStatistics]]:
        """Yield the cases of one kind that were read; few are held at a time."""
        for name in self.labelled if kind == LABELLED else self.unlabelled:
            case = self.kept(kind, name)
            if case is not None:
                yield name, case

    def remove_others(self) -> None:
        """Remove what was kept of cases that are no longer part of the dataset, and what killed runs left."""
        files_in_use = {self.path(kind, name) for kind, name in self.names()}
        for kind in (LABELLED, UNLABELLED):
            sweep_all(self.folder / kind)
            for path in (self.folder / kind).glob("[!.]*.npz"):
                if path not in files_in_use:
                    path.unlink(missing_ok=True)
        for folder in (self.folder.parent, self.folder, self.folder / "samples"):
            sweep_all(folder)

    def alone(self, part: Part = ALL) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from reading the same cases meanwhile.

        Args:
            part: Which of the cases are read.

        Raises:
            BusyError: On entering, if another process reads them.
        """
        return only_part(self.folder, "fingerprinted", part)


def case_table(dataset_name: str, dataset: dict[str, Any]) -> CaseTable:
    """Return the table of a dataset, nothing read yet.

    Args:
        dataset_name: Name of the dataset's folder.
        dataset: Labelled cases as nnU-Net's ``get_filenames_of_train_images_and_targets`` returns them.

    Raises:
        FileNotFoundError: If the dataset has no case at all.
        ValueError: If cases contradict each other, or no image can be opened.
    """
    raw = Path(str(nnUNet_raw)) / dataset_name
    dataset_json = load_dataset_json(raw)
    unlabelled, failures = find_unlabeled_cases(raw, dataset_json)
    labelled = labelled_cases(dataset)
    if not labelled and not unlabelled and not failures:
        raise FileNotFoundError(f"{dataset_name} has no case at all. {where_looked(raw)}")
    labelled, unusable = usable_labelled(raw, dataset_json, labelled, "fingerprint")
    failures += unusable
    images = [image for files in labelled.values() for image in files["images"]]
    images += [image for case in unlabelled.values() for image in case.images]
    if not images:
        reasons = [f"  {failure.case}: {failure.reason}" for failure in failures]
        rest = [f"  ... and {len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
        raise ValueError("\n".join([f"{dataset_name} has no case that can be read:", *reasons[:_NAMED], *rest]))
    folder = Path(str(nnUNet_preprocessed)) / dataset_name / FOLDER
    return CaseTable(folder, dataset_json, labelled, unlabelled, choose_reader(dataset_json, images), failures)


def samples_file(table: CaseTable, name: str, number: int) -> Path:
    """Return where the foreground voxels that nnU-Net's statistics draw from a case are kept until all are there."""
    source = json.dumps([table.source(LABELLED, name), number], sort_keys=True)
    return table.folder / "samples" / f"{hashlib.sha256(source.encode()).hexdigest()}.npy"


def read_cases(
    table: CaseTable,
    num_processes: int,
    samples: int | None = None,
    show_progress_bar: bool = True,
    part: Part = ALL,
) -> int:
    """Look at every case that is new or changed; what was done is kept at once, so that a killed run continues.

    Args:
        table: Table of the cases; failures are added to it.
        num_processes: Number of worker processes.
        samples: Number of foreground voxels to draw from each labelled case for nnU-Net's own statistics, or None.
        show_progress_bar: Show a tqdm bar.
        part: Which of the cases to look at; of the failures in the table, those of other parts are dropped.

    Returns:
        How many cases were read.
    """
    if part.is_all:  # the files of other parts are nobody else's
        table.remove_others()
    own = set(part.take({*table.names(), *((failure.kind, failure.case) for failure in table.failures)}))
    table.failures = [failure for failure in table.failures if (failure.kind, failure.case) in own]
    channels = number_of_channels(table.dataset_json)
    tasks: dict[str, tuple] = {}
    failed = {(failure.kind, failure.case) for failure in table.failures}
    for kind, name in table.names():
        files, label = table.files(kind, name)
        if (kind, name) in failed or (kind, name) not in own:
            continue
        sampling = None
        if samples is not None and kind == LABELLED:
            file = samples_file(table, name, samples)
            sampling = None if file.is_file() else (str(file), samples)
        if sampling is not None or table.kept(kind, name) is None:
            tasks[f"{kind}/{name}"] = (
                files,
                label,
                table.reader_class,
                channels,
                str(table.path(kind, name)),
                sampling,
            )
    with contextlib.closing(map_isolated(analyze, tasks, num_processes)) as results:
        bar = tqdm(results, "Extracting dataset fingerprint", len(tasks), disable=not show_progress_bar or not tasks)
        for task, _, error in bar:
            if isinstance(error, DiskFullError):
                raise error  # every other case would fail as well
            if error is not None:
                kind, name = task.split("/", 1)
                table.failures.append(Failure(name, kind, str(error), "fingerprint"))
    return len(tasks)


def stock_properties(table: CaseTable, samples: int) -> dict[str, Any]:
    """Return nnU-Net's own keys, computed as nnU-Net does from the voxels that its own function drew.

    Args:
        table: Table of cases that :func:`read_cases` has read.
        samples: Number of foreground voxels that were drawn there.

    Raises:
        RuntimeError: If no labelled case has a foreground voxel.
    """
    cases, sampled = [], []
    for name, case in table.kept_cases(LABELLED):
        file = samples_file(table, name, samples)
        if file.is_file():
            cases.append(case)
            sampled.append(np.load(file, allow_pickle=False))
    if not sampled:
        raise RuntimeError(
            "no labelled case could be read, so nnU-Net's foreground statistics cannot be computed; mend the cases "
            "that are listed and run again, what was found of the others is kept"
        )
    properties = {}
    for channel in range(number_of_channels(table.dataset_json)):
        voxels = np.concatenate([sample[channel] for sample in sampled])
        if len(voxels) == 0:
            raise RuntimeError(
                "no labelled case has a voxel with a label above 0, so nnU-Net's foreground statistics do not exist; "
                "correct the labels"
            )
        low, median, high = np.percentile(voxels, np.array((0.5, 50.0, 99.5)))
        properties[str(channel)] = {
            "mean": float(np.mean(voxels)),
            "median": float(median),
            "std": float(np.std(voxels)),
            "min": float(np.min(voxels)),
            "max": float(np.max(voxels)),
            "percentile_99_5": float(high),
            "percentile_00_5": float(low),
        }
    return _geometry(cases) | {"foreground_intensity_properties_per_channel": properties}


def _geometry(cases: list[CaseStatistics]) -> dict[str, Any]:
    relative = [np.prod(case.shape_after_crop) / np.prod(case.shape) for case in cases]
    return {
        "spacings": [case.spacing for case in cases],
        "shapes_after_crop": [case.shape_after_crop for case in cases],
        "median_relative_size_after_cropping": float(np.median(relative, 0)),
    }


def global_properties(table: CaseTable) -> dict[str, Any]:
    """Return our keys of the fingerprint, and nnU-Net's where the dataset has no label at all.

    Fills ``table.found``.

    Raises:
        RuntimeError: If no case could be read.
    """

    def channels() -> Iterator[list[IntensityStatistics]]:
        for kind in (LABELLED, UNLABELLED):
            for name, case in table.kept_cases(kind):
                table.found[kind][name] = without_distributions(case)
                yield case.images

    merged = merge(channels())
    if not merged:
        raise RuntimeError("no case could be read, so there is no fingerprint; the reasons are listed")
    cases = list(table.found[UNLABELLED].values())
    intensities = {str(channel): statistics.summary() for channel, statistics in enumerate(merged)}
    result = {
        GLOBAL_KEY: intensities,
        SPACINGS_KEY: [case.spacing for case in cases],
        SHAPES_KEY: [case.shape_after_crop for case in cases],
    }
    if not table.labelled:
        result |= _geometry(cases) | {"foreground_intensity_properties_per_channel": intensities}
    return result


def without_distributions(case: CaseStatistics) -> CaseStatistics:
    """Return a case without its distributions, for lists of thousands."""
    return replace(case, images=[], foreground=None)


def write_fingerprint(fingerprint: dict[str, Any], path: Path) -> None:
    """Write the fingerprint, whole or not at all; nnU-Net's keys come first."""
    write_json(path, {key: fingerprint[key] for key in STOCK_KEYS} | fingerprint, indent=4)


def read_fingerprint(path: Path) -> dict[str, Any]:
    """Return the fingerprint that is there, or an empty one."""
    return read_json(path, "remove it, it is made again") if path.is_file() else {}


class Provenance:
    """Of which labelled cases nnU-Net's own keys were made, as far as we made them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "foreground.json"

    def fits(self, table: CaseTable, fingerprint: dict[str, Any]) -> bool:
        """Whether nnU-Net's keys describe the labelled cases that there are now.

        A damaged case that was left out counts as described until its files change or it can be read after all.
        """
        if any(key not in fingerprint for key in STOCK_KEYS):
            return False
        if not self._file.is_file():
            # Made by nnU-Net itself, which takes all labelled cases.
            return len(fingerprint["spacings"]) == len(table.labelled) > 0
        provenance = {"used": {}, "failed": {}} | read_json(self._file, "remove it, it is made again")
        if provenance["used"] | provenance["failed"] != {name: table.source(LABELLED, name) for name in table.labelled}:
            return False
        return not any(table.kept(LABELLED, name) for name in provenance["failed"])

    def note(self, table: CaseTable) -> None:
        """Remember the labelled cases of which the keys were just made, and those that had to be left out."""
        described = {name: table.source(LABELLED, name) for name in table.found[LABELLED]}
        left_out = {name: table.source(LABELLED, name) for name in table.labelled if name not in described}
        write_json(self._file, {"used": described, "failed": left_out}, indent=None)


def remove_samples(table: CaseTable) -> None:
    """Remove the drawn voxels once nnU-Net's keys are written."""
    shutil.rmtree(table.folder / "samples", ignore_errors=True)
