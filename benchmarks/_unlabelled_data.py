"""Datasets of unlabelled.py: written, planned and preprocessed by the stock commands."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import _atrium
import accuracy
import numpy as np
from _unlabelled_runs import ANNOTATED, FULL, LISTED_BY, PLANS, SMALL, TASKS, Run, UnlabelledTask

from nnunet_ext.data.splits import FILE as SPLITS
from nnunet_ext.files import BusyError, only_here, write_json

PHANTOMS, PHANTOM_TESTS = 40, 40
SOURCES = {
    "hippocampus5": "Dataset904_HippocampusSSL",
    "hippocampus10": "Dataset904_HippocampusSSL",
    "multiorgan4": "Dataset907_AbdomenMR",
}
ATRIUM = "NNUNET_EXT_ATRIUM"


def prepare(name: str) -> None:
    """Write the datasets of a task, preprocess them with the stock commands, and add the small configuration."""
    task = TASKS[name]
    raw = accuracy.WORK / "raw" / task.dataset
    with waiting(raw, "prepared"):
        if not (raw / "dataset.json").is_file():
            _write_raw(name)
        plans_file = accuracy.WORK / "preprocessed" / task.dataset / f"{PLANS}.json"
        if not plans_file.is_file():
            accuracy.stock(f"nnUNetv2_plan_and_preprocess -d {task.number} -pl {task.planner} -c {FULL} -np 1 -npfp 1")
        plans = json.loads(plans_file.read_text())
        if SMALL not in plans["configurations"]:
            full = plans["configurations"][FULL]
            plans["configurations"][SMALL] = accuracy.small_configuration(task, FULL, full)
            write_json(plans_file, plans, indent=1)
        if task.ceiling:
            _prepare_ceiling(task.ceiling, plans, plans_file.parent)


def _prepare_ceiling(dataset: str, plans: dict, few_labels: Path) -> None:
    """Preprocess the dataset with all labels by the plans of the few: labels are all that differs."""
    ceiling = accuracy.WORK / "preprocessed" / dataset
    if not (ceiling / "gt_segmentations").is_dir():
        for file in ("dataset.json", "dataset_fingerprint.json"):
            write_json(ceiling / file, json.loads((few_labels / file).read_text()), indent=1)
        write_json(ceiling / f"{PLANS}.json", plans | {"dataset_name": dataset}, indent=1)
        accuracy.stock(f"nnUNetv2_preprocess -d {dataset[7:10]} -plans_name {PLANS} -c {FULL} -np 1")


def label_scans(run: Run, folds: Sequence[Path]) -> None:
    """Make the dataset of a self-training by the stock commands.

    Args:
        run: It says which labels are accepted.
        folds: Folders of the networks that label.
    """
    task, raw = TASKS[run.task], accuracy.WORK / "raw" / run.dataset
    preprocessed, number = accuracy.WORK / "preprocessed" / run.dataset, int(run.dataset[7:10])
    source = accuracy.WORK / "preprocessed" / task.dataset
    if not (source / SPLITS).is_file():  # with so few cases nnU-Net makes none; nothing is chosen by this one
        names = sorted(file.name.partition(".")[0] for file in (source / "gt_segmentations").iterdir())
        write_json(source / SPLITS, [{"train": names, "val": names[:1]}], indent=1)
    if not (raw / "pseudo_labels.json").is_file():
        members = " ".join(map(str, folds))
        how = " ".join(["-device cpu -npp 0 --no_pbar --disable_tta", *run.accept])
        accuracy.stock(f"nnUNetv2_ext pseudo_label -d {task.number} -m {members} -o {run.dataset} {how}")
    if not (preprocessed / "dataset_fingerprint.json").is_file():
        accuracy.stock(f"nnUNetv2_extract_fingerprint -d {number} -np 1")
    accuracy.stock(f"nnUNetv2_move_plans_between_datasets -s {task.number} -t {number} -sp {PLANS} -tp {PLANS}")
    if not (preprocessed / "labelled").is_file():
        accuracy.stock(f"nnUNetv2_preprocess -d {number} -plans_name {PLANS} -c {task.configuration} -np 1")
        (preprocessed / "labelled").touch()


def annotate_scans(run: Run) -> None:
    """Make a dataset of the few labelled scans and some more with their true labels; nothing is preprocessed anew."""
    task = TASKS[run.task]
    few, everything, new = (
        accuracy.WORK / "preprocessed" / str(name) for name in (task.dataset, task.ceiling, run.dataset)
    )
    if (new / "annotated.json").is_file():
        return
    with (accuracy.WORK / "raw" / run.other(LISTED_BY).dataset / "annotate_first.csv").open() as file:
        listed = [row["case"] for row in csv.DictReader(file)]
    if run.annotated == "listed":
        chosen = listed[:ANNOTATED]
    else:
        draw = np.random.default_rng(int(run.annotated.removeprefix("random")))
        chosen = sorted(draw.choice(sorted(listed), ANNOTATED, replace=False).tolist())
    shutil.copytree(few, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns("pseudo_labels", "*_unlabeled", ".*"))
    data = json.loads((few / f"{PLANS}.json").read_text())["configurations"][FULL]["data_identifier"]
    for name in chosen:
        for file in (everything / data).glob(f"{name}[._]*"):
            shutil.copy(file, new / data / file.name)
        shutil.copy(everything / "gt_segmentations" / f"{name}.nii.gz", new / "gt_segmentations")
    write_json(new / "annotated.json", chosen)


@contextlib.contextmanager
def waiting(folder: Path, doing: str, seconds: float = 5) -> Iterator[None]:
    """Do something in a place once no other process does it there."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(only_here(folder, doing))
                break
            except BusyError as error:
                print(error, flush=True)
                time.sleep(seconds)
        yield


def _write_raw(name: str) -> None:
    if name == "phantoms4":
        _write_phantoms(TASKS[name])
    elif name == "atrium8":
        _write_atria(TASKS[name], atrium_folder())
    else:
        _write_from(SOURCES[name], TASKS[name])


def atrium_folder() -> Path:
    """Return the folder of left atria that the user names, or end with what is missing."""
    folder = os.environ.get(ATRIUM)
    if not folder:
        sys.exit(f"the runs of atrium8 need a folder of left atria; name it by --atrium FOLDER or {ATRIUM}")
    return Path(folder)


def _write_from(source_name: str, task: UnlabelledTask) -> None:
    """Link the scans of a dataset of NNUNET_EXT_DATA; with a ceiling, its labels of unlabelled scans go there alone."""
    source = accuracy.DATA / source_name
    if not source.is_dir():
        sys.exit(f"{source} is missing; set NNUNET_EXT_DATA to the folder that has it")
    raw, ceiling = accuracy.WORK / "raw" / task.dataset, task.ceiling and accuracy.WORK / "raw" / task.ceiling
    labels = {file.name: file for file in sorted((source / "labelsTr").iterdir())}
    hidden = {file.name: file for file in sorted((source / "imagesUnlabeled").iterdir())}
    for number, (name, label) in enumerate(labels.items()):
        scan = name.replace(".nii.gz", "_0000.nii.gz")
        _link(source / "imagesTr" / scan, raw / ("imagesTr" if number < task.few else "imagesUnlabeled") / scan)
        if number < task.few:
            _link(label, raw / "labelsTr" / name)
    for scan, image in hidden.items():
        _link(image, raw / "imagesUnlabeled" / scan)
    for folder in ("imagesTs", "labelsTs"):
        for file in sorted((source / folder).iterdir()):
            _link(file, raw / folder / file.name)
    content = json.loads((source / "dataset.json").read_text())
    if ceiling:
        labels |= {file.name: file for file in sorted((source / "labelsUnlabeled").iterdir())}
        for name, label in labels.items():
            scan = name.replace(".nii.gz", "_0000.nii.gz")
            _link(hidden.get(scan, source / "imagesTr" / scan), ceiling / "imagesTr" / scan)
            _link(label, ceiling / "labelsTr" / name)
        write_json(ceiling / "dataset.json", content | {"numTraining": len(labels)}, indent=1)
    write_json(raw / "dataset.json", content | {"numTraining": task.few}, indent=1)


def _write_phantoms(task: UnlabelledTask) -> None:
    import SimpleITK

    from nnunet_ext.demo.phantom import LABELS, make_phantom

    raw, ceiling = accuracy.WORK / "raw" / task.dataset, accuracy.WORK / "raw" / str(task.ceiling)
    margin = [accuracy.AIR_VOXELS, accuracy.AIR_VOXELS, 0]
    for kind, number in (("Tr", PHANTOMS), ("Ts", PHANTOM_TESTS)):
        for index in range(number):
            image, label = make_phantom(7 if kind == "Tr" else 8, index).to_images()
            case, holder = f"phantom_{index:03d}", ceiling if kind == "Tr" else raw
            for volume, air, target in (
                (image, -1000, holder / f"images{kind}" / f"{case}_0000.nii.gz"),
                (label, 0, holder / f"labels{kind}" / f"{case}.nii.gz"),
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                SimpleITK.WriteImage(SimpleITK.ConstantPad(volume, margin, margin, air), str(target))
            if kind == "Tr":
                scan = ceiling / "imagesTr" / f"{case}_0000.nii.gz"
                _link(scan, raw / ("imagesTr" if index < task.few else "imagesUnlabeled") / scan.name)
                if index < task.few:
                    _link(ceiling / "labelsTr" / f"{case}.nii.gz", raw / "labelsTr" / f"{case}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
    write_json(ceiling / "dataset.json", content | {"numTraining": PHANTOMS}, indent=1)
    write_json(raw / "dataset.json", content | {"numTraining": task.few}, indent=1)


def _write_atria(task: UnlabelledTask, folder: Path) -> None:
    """Write the scans at half resolution; the labels of unlabelled ones are left where they are."""
    try:
        few, hidden, tests = _atrium.divide(_atrium.find_cases(folder))
        raw = accuracy.WORK / "raw" / task.dataset
        for kind, cases in (("Tr", few), ("Unlabeled", hidden), ("Ts", tests)):
            _write_atria_of(kind, cases, raw)
    except ValueError as error:
        sys.exit(str(error))
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "atrium": 1}, "file_ending": ".nii.gz"}
    write_json(raw / "dataset.json", content | {"numTraining": len(few)}, indent=1)


def _write_atria_of(kind: str, cases: Sequence[_atrium.AtriumCase], raw: Path) -> None:
    import SimpleITK

    for case in cases:
        image, label, spacing = _atrium.read_case(case)
        volumes = {f"images{kind}/{case.name}_0000.nii.gz": image}
        if kind != "Unlabeled":
            volumes[f"labels{kind}/{case.name}.nii.gz"] = label
        for name, array in volumes.items():
            volume = SimpleITK.GetImageFromArray(array)
            volume.SetSpacing(spacing[::-1])
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            SimpleITK.WriteImage(volume, str(raw / name))


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(Path(source).resolve())


def describe(name: str, task: UnlabelledTask) -> str:
    """Return one line on a task, for the report."""
    unknown = "" if task.ceiling or task.ceiling_of else "; no ceiling: nothing is trained with all labels"
    other = f"; the ceiling is that of {task.ceiling_of}, the same scans and test cases" if task.ceiling_of else ""
    return f"{name}: {task.few} labelled and {task.hidden} unlabelled scans, {task.tests} test cases{other}{unknown}"
