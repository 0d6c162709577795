"""The networks that are asked: each fold of each model, both networks of CPS, teacher and student of a mean teacher."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.data.dataset_json import channel_names
from nnunet_ext.data.signature import digest
from nnunet_ext.inference.checks import check_model
from nnunet_ext.model_sharing.choice_of_network import SECOND, networks_of
from nnunet_ext.model_sharing.folders import as_folds, find_folds, read_model_json, sha256_of
from nnunet_ext.training.architecture import second_architecture
from nnunet_ext.training.safe_load import load_checkpoint
from nnunet_ext.training.trusted_classes import trusted_by_environment


@dataclass(frozen=True)
class Member:
    """One network.

    Attributes:
        model: Folder of the trained model.
        fold: Fold of the model.
        checkpoint: Name of the checkpoint file in the fold's folder.
        network: ``""`` for the only network of a checkpoint, else ``"1"``, ``"2"``, ``"teacher"`` or ``"student"``.
        trainer: Name of the trainer.
        plans: Name of the plans.
        configuration: Name of the configuration.
        dataset: Name of the dataset that it was trained on.
        sha256: Of the checkpoint file.
        settings: Digest of plans.json, which decides what the network gets to see.
        is_of_another_kind: Whether it is network 2 of a model whose two networks have different architectures.
    """

    model: Path
    fold: int | str
    checkpoint: str
    network: str
    trainer: str
    plans: str
    configuration: str
    dataset: str
    sha256: str
    settings: str
    is_of_another_kind: bool = False

    @property
    def file(self) -> Path:
        """Checkpoint file."""
        return self.model / f"fold_{self.fold}" / self.checkpoint

    @property
    def name(self) -> str:
        """Name for messages."""
        which = {"": "", "1": ", network 1", "2": ", network 2"}.get(self.network, f", {self.network}")
        return f"{self.model.parent.name}/{self.model.name} fold {self.fold}{which}"

    @property
    def identity(self) -> list[str]:
        """What the network is, wherever it lies."""
        return [self.sha256, self.network, self.settings]

    def describe(self) -> dict[str, Any]:
        """Return the member for records, as JSON values."""
        names = ("fold", "checkpoint", "network", "trainer", "plans", "configuration", "dataset", "sha256")
        return {"model": str(self.model)} | {name: getattr(self, name) for name in names}

    def weights(self, trusted: bool = False) -> dict[str, Any]:
        """Load the weights of this network.

        Args:
            trusted: Whether the checkpoint may hold code.
        """
        content = load_checkpoint(self.file, mapped=True, trusted=trusted or trusted_by_environment())
        return {key: value.clone() for key, value in networks_of(content)[self.network].items()}


def find_members(
    models: Sequence[Path],
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    trusted: bool = False,
) -> list[Member]:
    """Find the networks of models, and check that they answer the same question.

    Args:
        models: Folders of trained models; that of one fold, ``MODEL/fold_0``, stands for this fold alone.
        folds: Folds to take of each other model; None takes all that have the checkpoint.
        checkpoint: Name of the checkpoint file in each fold's folder.
        trusted: Whether checkpoints and plans may hold code.

    Raises:
        FileNotFoundError: If a model, a fold or a file of it is missing.
        ValueError: If there are fewer than two networks, one is there twice, they differ in labels, channels or file
            ending, one needs the prediction of another stage, or a checkpoint holds code.
    """
    members: list[Member] = []
    firsts: list[tuple[Path, dict[str, Any]]] = []
    for named in models:
        model, own_folds = _model_and_folds(named, folds)
        check_model(model, own_folds, checkpoint, trusted)
        plans, dataset_json = (read_model_json(model / name) for name in ("plans.json", "dataset.json"))
        if firsts:
            refuse_other_question(*firsts[0], model, dataset_json)
        firsts.append((model, dataset_json))
        members += _members_of(model, plans, find_folds(model, own_folds, checkpoint), checkpoint, trusted)
    _refuse_repeated(members)
    if len(members) < 2:
        names = members[0].name if members else "none"
        raise ValueError(
            f"agreement needs two networks or more, got one ({names}): train another fold and leave out -f, name a "
            "second model after -m, or take a model of CPS or of a mean teacher, which has two"
        )
    return members


def _model_and_folds(named: Path, folds: Sequence[int | str] | None) -> tuple[Path, Sequence[int | str] | None]:
    found = re.fullmatch(r"fold_(all|0|[1-9][0-9]*)", named.name)
    return (named, folds) if found is None else (named.parent, as_folds([found[1]]))


def members_digest(members: Sequence[Member]) -> str:
    """Return a digest of what the members are; it changes when one is trained anew."""
    return digest({"members": sorted(member.identity for member in members)})


def refuse_other_question(
    first: Path, first_json: Mapping[str, Any], other: Path, other_json: Mapping[str, Any]
) -> None:
    """Compare what two models, or a model and a dataset, are about; an ignored label makes no difference.

    Args:
        first: Folder of the one.
        first_json: Content of its dataset.json.
        other: Folder of the other.
        other_json: Content of its dataset.json.

    Raises:
        ValueError: If they differ; names the first difference.
    """
    questions = [_question(dict(content)) for content in (first_json, other_json)]
    for key, meaning in questions[0].items():
        if meaning == questions[1][key]:
            continue
        one, two = meaning, questions[1][key]
        if isinstance(one, dict) and isinstance(two, dict):
            name = next(name for name in [*one, *two] if one.get(name) != two.get(name))
            key, one, two = f"{key[:-1]} {name!r}", one.get(name, "missing"), two.get(name, "missing")
        raise ValueError(
            f"{first / 'dataset.json'} and {other / 'dataset.json'} differ in {key}: {one!r} and {two!r}; networks can "
            "only agree about the same labels of the same images, so leave one out, or train it with the other's "
            "dataset.json"
        )


def _question(content: dict[str, Any]) -> dict[str, Any]:
    labels = {
        name: tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else int(value)
        for name, value in content["labels"].items()
        if name != "ignore"
    }
    regions = any(isinstance(value, tuple) and len(value) > 1 for value in labels.values())
    order = [int(label) for label in content.get("regions_class_order") or ()] if regions else None
    return {
        "labels": labels,
        "regions_class_order": order,
        "order of the regions": list(labels) if regions else None,  # which channel is which
        "channel_names": channel_names(content),
        "file_ending": content["file_ending"],
    }


def _members_of(
    model: Path, plans: dict[str, Any], folds: Sequence[int | str], checkpoint: str, trusted: bool
) -> list[Member]:
    found = []
    configurations = set()
    asked = _question(read_model_json(model / "dataset.json"))  # the same logits may be other labels
    for fold in folds:
        file = model / f"fold_{fold}" / checkpoint
        content = load_checkpoint(file, mapped=True, trusted=trusted or trusted_by_environment())
        configuration = str(content["init_args"]["configuration"])
        configurations.add(configuration)
        if len(configurations) > 1:
            raise ValueError(
                f"{model} has folds of several configurations ({', '.join(sorted(configurations))}), expected one; "
                "choose folds of one with -f"
            )
        _refuse_later_stage(model, plans, configuration)
        sha256, settings = sha256_of(file), digest({"plans": plans, "asked": asked})
        names = (str(content["trainer_name"]), str(plans.get("plans_name")), configuration)
        dataset = str(plans.get("dataset_name"))
        pair = second_architecture(plans, configuration) is not None
        found += [
            Member(model, fold, checkpoint, network, *names, dataset, sha256, settings, pair and network == SECOND)
            for network in networks_of(content)
        ]
    return found


def _refuse_later_stage(model: Path, plans: dict[str, Any], configuration: str) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    stage = PlansManager(plans).get_configuration(configuration).previous_stage_name
    if stage is not None:
        raise ValueError(
            f"{model} is of {configuration}, which needs predictions of {stage}, expected a model that predicts from "
            "the images alone; leave it out, or take one of 3d_fullres"
        )


def _refuse_repeated(members: Sequence[Member]) -> None:
    seen: dict[tuple[str, ...], Member] = {}
    for member in members:
        key = tuple(member.identity)
        if key in seen:
            raise ValueError(
                f"{member.name} is the very same network as {seen[key].name}, which would agree with itself; name it "
                "once"
            )
        seen[key] = member


def checkpoint_files(model: Path, checkpoint: str = "checkpoint_final.pth") -> list[Path]:
    """Return the checkpoints that a model, or the folder of one fold, stands for.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder, folds = _model_and_folds(model, None)
    return [folder / f"fold_{fold}" / checkpoint for fold in find_folds(folder, folds, checkpoint)]
