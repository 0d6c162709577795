"""Members with their weights, in groups that see a scan on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_ext.data.classes import Classes, classes_of
from nnunet_ext.data.signature import digest, plans_signature
from nnunet_ext.inference.case import Model, Prepared, prepare
from nnunet_ext.inference.comparison import why_not_compared
from nnunet_ext.inference.predictor import Predictor
from nnunet_ext.inference.spacing import PlansSpacing
from nnunet_ext.model_sharing.choice_of_network import FIRST, SECOND
from nnunet_ext.pseudo_labels.members import Member


@dataclass(frozen=True)
class Settings:
    """How the networks predict, as options of nnUNetv2_predict.

    Attributes:
        device: ``"cuda"``, ``"cpu"`` or ``"mps"``.
        step_size: Step of the sliding window, as a share of the patch.
        mirroring: Whether predictions of mirrored patches are averaged, where the training mirrored.
        trusted: Whether checkpoints and plans may hold code.
    """

    device: str = "cuda"
    step_size: float = 0.5
    mirroring: bool = True
    trusted: bool = False


@dataclass(frozen=True)
class Seat:
    """A member that is ready to predict.

    Attributes:
        member: Which network.
        predictor: Of its model; shared by the members of one model that have one architecture.
        weights: Of the network.
    """

    member: Member
    predictor: Predictor
    weights: dict[str, Any]

    def take(self) -> Predictor:
        """Return the predictor with the weights of this member."""
        self.predictor.list_of_parameters = [self.weights]
        return self.predictor


@dataclass(frozen=True)
class Group:
    """Members that see the same voxels of a scan.

    Attributes:
        model: Plans by which a scan is prepared for all of them.
        seats: The members.
    """

    model: Model
    seats: list[Seat] = field(default_factory=list)


class Panel:
    """All members.

    Args:
        members: From :func:`~nnunet_ext.pseudo_labels.members.find_members`.
        settings: How they predict.

    Attributes:
        groups: Members by what they see.
        members: In the order of the groups.
        classes: Classes or regions that they find.

    Raises:
        ValueError: If a model cannot be one of several: other files are read, or labels made in a way of its own.
    """

    def __init__(self, members: Sequence[Member], settings: Settings) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        by_kind: dict[str, Group] = {}
        predictors: dict[tuple[Path, bool], Predictor] = {}
        for member in members:
            key = member.model, member.is_of_another_kind
            predictor = predictors.get(key)
            if predictor is None:
                predictor = predictors[key] = self._load(member)
            kind = _kind(predictor)
            group = by_kind.setdefault(kind, Group(predictor.model_of_cases))
            group.seats.append(Seat(member, predictor, member.weights(settings.trusted)))
        self.groups = list(by_kind.values())
        self.members = [seat.member for group in self.groups for seat in group.seats]
        _refuse_other_readers(self.groups)
        first = self.groups[0].model
        self.classes: Classes = classes_of(first.plans.plans, first.dataset_json)
        self.labels: LabelManager = first.plans.get_label_manager(first.dataset_json)

    @property
    def models(self) -> list[Model]:
        """Plans of each group, by which its scans are prepared; they can be pickled."""
        return [group.model for group in self.groups]

    def _load(self, member: Member) -> Predictor:
        predictor = Predictor(
            tile_step_size=self.settings.step_size,
            use_mirroring=self.settings.mirroring,
            perform_everything_on_device=self.device.type == "cuda",
            device=self.device,
            allow_tqdm=False,
            fast_export=True,
            trust_model=self.settings.trusted,
            network=SECOND if member.is_of_another_kind else FIRST,
        )
        predictor.initialize_from_trained_model_folder(str(member.model), (member.fold,), member.checkpoint)
        predictor.check_preprocessor()
        reason = why_not_compared(predictor.label_manager)
        if reason is not None:
            raise ValueError(f"{member.model} cannot be one of several models: {reason}; leave it out")
        return predictor


def prepare_for_all(images: tuple[str, ...], models: Sequence[Model]) -> list[Prepared]:
    """Read and preprocess a scan for each group.

    Args:
        images: Image files, one a channel.
        models: Plans of each group.
    """
    return [prepare(images, None, PlansSpacing(), model) for model in models]


def _kind(predictor: Predictor) -> str:
    """Return a digest of all that decides which voxels a network sees, and how its logits go back to the scan."""
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    names = ("resampling_fn_probabilities", "resampling_fn_probabilities_kwargs")
    return digest(
        plans_signature(plans, configuration)
        | {name: configuration.configuration[name] for name in names}
        | {"transpose_backward": plans.transpose_backward}
    )


def _refuse_other_readers(groups: Sequence[Group]) -> None:
    readers = [group.model.plans.image_reader_writer_class for group in groups]
    for group, reader in zip(groups, readers, strict=True):
        if reader is not readers[0]:
            first, other = groups[0].seats[0].member, group.seats[0].member
            raise ValueError(
                f"{first.name} reads images by {readers[0].__name__} and {other.name} by {reader.__name__}, which may "
                "turn axes; networks can only agree about images that are read alike, so leave one out"
            )
