"""What is looked at before a self-training begins, because it would fail after days."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext import files
from nnunet_ext.data.splits import load_splits
from nnunet_ext.inference.checks import check_model
from nnunet_ext.model_sharing.folders import read_model_json
from nnunet_ext.pseudo_labels.cases import Source, find_source
from nnunet_ext.pseudo_labels.cycles import FINAL, Machine, Scheme, number_of
from nnunet_ext.pseudo_labels.dataset import Roots, split_of_true_cases
from nnunet_ext.pseudo_labels.members import checkpoint_files, refuse_other_question
from nnunet_ext.trainers._network import NetworkPart
from nnunet_ext.trainers.cps import CPSPart
from nnunet_ext.trainers.mean_teacher import MeanTeacherPart

_MEMBERS = (
    "agreement needs two networks or more: train several folds (-f 0 1), take a trainer with two networks "
    "(nnUNetTrainerCPS), or name other models with -m"
)


@dataclass(frozen=True)
class Kind:
    """What a trainer leaves.

    Attributes:
        networks: Number of networks of a checkpoint.
        learns_unlabelled: Whether it trains with unlabelled scans.
        network_parts: Names of the parts that change the plans' network.
        is_cps: Whether its two networks are trained apart from each other.
    """

    networks: int
    learns_unlabelled: bool
    network_parts: frozenset[str]
    is_cps: bool = False


def kind_of(trainer: str) -> Kind:
    """Return what a trainer leaves.

    Raises:
        ValueError: If there is no such trainer.
    """
    try:
        found = recursive_find_trainer_class_by_name(trainer)
    except RuntimeError as error:  # nnU-Net's names the folders where it looked
        raise ValueError(f"there is no trainer {trainer}; see nnUNetv2_ext trainers") from error
    semi = issubclass(found, (CPSPart, MeanTeacherPart))
    parts = [base.__name__ for base in found.__mro__ if issubclass(base, NetworkPart) and base is not NetworkPart]
    own = frozenset(name for name in parts if name.endswith("Part"))
    return Kind(2 if semi else 1, semi, own, issubclass(found, CPSPart))


def check_scheme(scheme: Scheme, cycles: int, roots: Roots, machine: Machine) -> bool:
    """Check a scheme.

    Args:
        scheme: What is trained.
        cycles: Number of cycles after the first training.
        roots: nnU-Net's folders.
        machine: Whether models are trusted.

    Returns:
        Whether the student learns from unlabelled scans.

    Raises:
        FileNotFoundError: If plans, scans or models are missing.
        ValueError: If something does not go together; says what to do.
    """
    preprocessed = roots.preprocessed / scheme.source
    _check_plans(scheme, preprocessed)
    source = find_source(scheme.source, roots.preprocessed)
    split_of_true_cases(source)
    number = len(load_splits(preprocessed)) or 5
    for fold in scheme.folds:
        if fold >= number:
            raise ValueError(
                f"-f is {fold}, expected 0 to {number - 1}: of any other fold nnU-Net draws a split of its own, which "
                "may validate with pseudo-labels"
            )
    kinds = [kind_of(name) for name in (scheme.trainer, scheme.student)]
    label = kinds[:cycles]  # those of the last cycle do not
    if not scheme.others and min(kind.networks for kind in label) * len(scheme.folds) < 2:
        raise ValueError(f"one network cannot agree with itself; {_MEMBERS}")
    _check_others(scheme, source, machine)
    if kinds[1].learns_unlabelled and (scheme.accepted_by.get("partial") or scheme.accepted_by.get("top") == 1):
        raise ValueError(
            f"all scans would get labels, and {scheme.student} needs some without: train the cycles with a supervised "
            "trainer (--student nnUNetTrainer), or leave out --partial and accept fewer"
        )
    if scheme.warm_start and kinds[0].network_parts != kinds[1].network_parts:
        raise ValueError(
            f"--warm_start begins with the weights of {scheme.trainer}, whose network {scheme.student} does not have; "
            "leave it out, or take trainers with the same network"
        )
    return kinds[1].learns_unlabelled


def warnings_of(scheme: Scheme) -> list[str]:
    """Return what a user should know of a scheme before it costs days."""
    first, student = kind_of(scheme.trainer), kind_of(scheme.student)
    said = []
    if len(scheme.folds) == 1 and not scheme.others and first.networks == 2 and not first.is_cps:
        said.append(
            "teacher and student of one training are nearly the same network, so that they agree about their errors, "
            "too; more folds (-f), another model (-m) or CPS select better"
        )
    if scheme.warm_start and student.is_cps:
        said.append(
            "--warm_start gives both networks of CPS the same weights but for their heads, so that they agree more "
            "than they should in the cycle after"
        )
    return said


def _check_plans(scheme: Scheme, preprocessed: Path) -> None:
    file = preprocessed / f"{scheme.plans}.json"
    plans = files.read_json(
        file, f"run nnUNetv2_plan_and_preprocess -d {number_of(scheme.source)}, or name other plans with -p"
    )
    for key, expected in (("plans_name", scheme.plans), ("dataset_name", scheme.source)):
        if plans.get(key) != expected:  # nnU-Net names the model's folder by them
            raise ValueError(f"{file} has {key} {plans.get(key)!r}, expected {expected!r}; correct it in the file")
    configurations: Mapping[str, Any] = plans.get("configurations", {})
    if scheme.configuration not in configurations:
        raise ValueError(
            f"-c is {scheme.configuration}, expected one of the plans {scheme.plans}: {', '.join(configurations)}"
        )
    stage = PlansManager(plans).get_configuration(scheme.configuration).previous_stage_name
    if stage is not None:
        raise ValueError(f"-c is {scheme.configuration}, which needs predictions of {stage}; take 3d_fullres instead")


def _check_others(scheme: Scheme, source: Source, machine: Machine) -> None:
    for other in map(Path, scheme.others):
        found = checkpoint_files(other, FINAL)
        model = found[0].parents[1]
        names = [file.parent.name.removeprefix("fold_") for file in found]
        check_model(model, [name if name == "all" else int(name) for name in names], FINAL, machine.trusted)
        refuse_other_question(model, read_model_json(model / "dataset.json"), source.raw, source.dataset_json)
