"""One run: members, consensus of each scan, selection, report, new dataset; every stage can be taken up again."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from tqdm import tqdm

from nnunet_ext import files
from nnunet_ext.data.classes import classes_of
from nnunet_ext.data.pool import map_isolated
from nnunet_ext.data.signature import source_signature
from nnunet_ext.inference.case import Prepared
from nnunet_ext.inference.prediction_run import REMEDY
from nnunet_ext.model_sharing.folders import read_model_json
from nnunet_ext.pseudo_labels import report
from nnunet_ext.pseudo_labels.annotate import annotate_first
from nnunet_ext.pseudo_labels.cases import Source, find_source
from nnunet_ext.pseudo_labels.consensus import features_of, find_consensus
from nnunet_ext.pseudo_labels.dataset import (
    NewDataset,
    Roots,
    output_name,
    refuse_existing,
    split_of_true_cases,
    write_dataset,
)
from nnunet_ext.pseudo_labels.members import Member, find_members, refuse_other_question
from nnunet_ext.pseudo_labels.panel import Panel, Settings, prepare_for_all
from nnunet_ext.pseudo_labels.provenance import next_cycle
from nnunet_ext.pseudo_labels.selection import CaseScores, Rule, Selection, nothing_accepted, select
from nnunet_ext.pseudo_labels.store import Store

NONE_ACCEPTED = 3  # exit status of the command


@dataclass(frozen=True)
class Options:
    """What is wanted.

    Attributes:
        score: ``"volume"`` or ``"slice"``, see :class:`~nnunet_ext.inference.agreement_scores.Agreement`.
        rule: What is accepted.
        ignore_uncertain: Give uncertain voxels of accepted scans nnU-Net's ignore label.
        partial: Accept every scan that has a score, with uncertain voxels ignored.
        min_probability: Mean probability below which a voxel is uncertain, too.
        diverse: Number of clusters of alike scans that take turns in the list of scans to annotate.
        settings: How the members predict.
        processes: For preprocessing; 0 works in this process.
        progress_bar: Show one.
    """

    score: str = "volume"
    rule: Rule = field(default_factory=Rule)
    ignore_uncertain: bool = False
    partial: bool = False
    min_probability: float = 0.0
    diverse: int = 1
    settings: Settings = field(default_factory=Settings)
    processes: int = 1
    progress_bar: bool = True

    def __post_init__(self) -> None:
        """Refuse a probability out of range, and thresholds that would do nothing.

        Raises:
            ValueError: If it is not between 0 and 1, or all scans are accepted and a rule is given, too.
        """
        if self.partial and self.rule != Rule():
            raise ValueError(
                "--partial accepts every scan in part, so that thresholds of scores would do nothing; leave out "
                "--partial, or --min_score, --min_class_score and --top"
            )
        if not 0 <= self.min_probability < 1:
            raise ValueError(f"min_probability must be 0 or more and below 1, got {self.min_probability}")


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        selection: Scans by what becomes of them.
        annotate: Scans with their clusters, the first to annotate first.
        failures: Scan -> why it has no consensus.
        members: Networks that were asked.
        kept: Number of scans whose results were there before.
        changed: Scans of an earlier cycle whose images are others now, which were predicted anew.
        report: Folder of the tables and pictures.
        dataset: Folder of the new dataset, None where no scan is accepted.
        message: Why there is none.
    """

    selection: Selection
    annotate: list[tuple[CaseScores, int]]
    failures: dict[str, str]
    members: list[Member]
    kept: int
    changed: list[str]
    report: Path
    dataset: Path | None
    message: str = ""


def pseudo_label(
    dataset: str | int,
    models: Sequence[Path],
    output: str,
    options: Options | None = None,
    images: Path | None = None,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
) -> Outcome:
    """Label the unlabelled scans of a dataset by the consensus of networks, and make a dataset of the certain ones.

    Args:
        dataset: Number or name of the dataset with the true labels.
        models: Folders of trained models.
        output: Number or name of the new dataset.
        options: What is wanted.
        images: Folder of the scans; None takes the unlabelled ones of the dataset.
        folds: Folds of the models; None takes all that have the checkpoint.
        checkpoint: Name of the checkpoint file in each fold's folder.

    Raises:
        BusyError: If another process does the same.
        DiskFullError: If there is no room.
        FileExistsError: If there is a dataset of the output's number.
        FileNotFoundError: If something that is read is missing.
        ValueError: If the models, the dataset or the options do not go together; says what to do.
    """
    options = options or Options()
    roots = find_roots()
    members = find_members([Path(model) for model in models], folds, checkpoint, options.settings.trusted)
    source = find_source(dataset, roots.preprocessed, images)
    model_json = read_model_json(members[0].model / "dataset.json")
    refuse_other_question(members[0].model, model_json, source.raw, source.dataset_json)
    name = output_name(str(output), source.name)
    refuse_existing(name, roots)
    split_of_true_cases(source)  # refused now, not after hours
    preprocessed = roots.preprocessed / source.name
    store = Store(preprocessed, members, _prediction_options(options), source.dataset_json["file_ending"])
    with files.only_here(store.folder, "pseudo-labelled"):
        store.begin()
        failures, kept = predict_scans(source.scans, members, store, options)
        done = [scan for scan in source.scans if scan not in failures]
        scores = [store.scores(scan, options.score) for scan in done]
        selection = _accept(scores, options)
        ordered = annotate_first(scores, {n: store.record(n)["features"] for n in done}, options.diverse)
        beside = _report(store, source, members, selection, ordered, options)
        outcome = Outcome(
            selection, ordered, source.failures | failures, members, kept, source.changed, store.folder, None
        )
        if not selection.accepted:
            return replace(outcome, message=nothing_accepted(scores, options.rule))
        record = _record(outcome, source, options, roots)
        accepted = [case.name for case in selection.accepted]
        ignore = options.partial or options.ignore_uncertain
        new = NewDataset(name, source, accepted, ignore, record, list(outcome.failures), beside)
        return replace(outcome, dataset=write_dataset(new, store, roots, _reader(members)()))


def find_roots() -> Roots:
    """Return nnU-Net's folders.

    Raises:
        ValueError: If one is not set.
    """
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

    for folder, variable in ((nnUNet_raw, "nnUNet_raw"), (nnUNet_preprocessed, "nnUNet_preprocessed")):
        if not folder.is_set():
            raise ValueError(f"{variable} is not set, one of nnU-Net's folders; set the environment variable")
    return Roots(Path(str(nnUNet_raw)), Path(str(nnUNet_preprocessed)))


def predict_scans(
    scans: Mapping[str, tuple[str, ...]], members: Sequence[Member], store: Store, options: Options
) -> tuple[dict[str, str], int]:
    """Find the consensus of each scan that has none in the store; a bad scan costs no other.

    Args:
        scans: Scan -> image files.
        members: Networks that are asked; they are loaded only where there is something to do.
        store: Keeps the results.
        options: How.

    Returns:
        Scan -> why it has no consensus; and the number of scans that had one.

    Raises:
        DiskFullError: If there is no room; the others would fail as well.
    """
    failures: dict[str, str] = {}
    todo = {name: images for name, images in scans.items() if not store.is_done(name, images)}
    kept = len(scans) - len(todo)
    if not todo:
        return failures, kept
    panel = Panel(members, options.settings)
    signatures: dict[str, dict[str, Any]] = {}
    for name in list(todo):
        try:
            signatures[name] = source_signature(todo[name])
        except OSError as error:
            failures[name] = str(error)
            del todo[name]
    calls = {name: (images, panel.models) for name, images in todo.items()}
    processes = options.processes
    # one more than there are processes, so that they work while the networks do
    prepared_cases = map_isolated(
        prepare_for_all, calls, processes, always_spawn=processes > 0, handed_out=processes + 1, remedy=REMEDY
    )
    for name, prepared, wrong in tqdm(prepared_cases, "scans", len(calls), disable=not options.progress_bar):
        try:
            if wrong is not None:
                raise wrong
            _predict_scan(panel, prepared, store, name, signatures[name], options.min_probability)
        except files.DiskFullError:
            raise
        except Exception as failure:
            failures[name] = str(failure).strip() or type(failure).__name__
            tqdm.write(f"{name} failed: {failures[name]}", file=sys.stderr)
    return failures, kept


def _predict_scan(
    panel: Panel,
    prepared: list[Prepared],
    store: Store,
    name: str,
    source: dict[str, Any],
    min_probability: float,
) -> None:
    model = panel.groups[0].model
    features = features_of(prepared[0], model)
    properties = {**prepared[0].properties, "spacing": prepared[0].true_spacing}
    found = find_consensus(panel, prepared, store.folder, min_probability)
    store.save(name, source, found, features, model.plans.image_reader_writer_class(), properties)


def _prediction_options(options: Options) -> dict[str, Any]:
    """Return what the results in the store depend on beside the members."""
    return {
        "step_size": options.settings.step_size,
        "mirroring": options.settings.mirroring,
        "min_probability": options.min_probability,
    }


def accepted_by(options: Options) -> dict[str, Any]:
    """Return what decides which labels are accepted, as ``pseudo_labels.json`` says it."""
    return {
        "score": options.score,
        "min_score": options.rule.min_score,
        "min_class_score": options.rule.min_class_score,
        "top": options.rule.top,
        "partial": options.partial,
        "ignore_uncertain": options.partial or options.ignore_uncertain,
        **_prediction_options(options),
    }


def _accept(scores: Sequence[CaseScores], options: Options) -> Selection:
    if not options.partial:
        return select(scores, options.rule)
    return select(scores, Rule(top=1.0))


def _report(
    store: Store,
    source: Source,
    members: Sequence[Member],
    selection: Selection,
    ordered: Sequence[tuple[CaseScores, int]],
    options: Options,
) -> list[Path]:
    model = members[0].model
    names = list(classes_of(read_model_json(model / "plans.json"), read_model_json(model / "dataset.json")).regions)
    written = [
        report.write_scores(store.folder, selection, store, names),
        report.write_annotate_first(store.folder, ordered, source),
    ]
    rule = None if options.partial else options.rule
    reader = _reader(members)()
    return written + report.draw_pictures(store.folder, selection, rule, store, source, names, reader)


def _record(outcome: Outcome, source: Source, options: Options, roots: Roots) -> dict[str, Any]:
    rejected = {"rejected": outcome.selection.rejected, "without any class": outcome.selection.empty}
    return {
        "cycle": next_cycle(roots.raw, {source.name, *(member.dataset for member in outcome.members)}),
        "members": [member.describe() for member in outcome.members],
        "accepted_by": accepted_by(options),
        "not_accepted": {
            case.name: {"reason": reason, "score": None if reason != "rejected" else case.score}
            for reason, cases in rejected.items()
            for case in cases
        },
        "failed": outcome.failures,
    }


def _reader(members: Sequence[Member]) -> Any:
    return PlansManager(read_model_json(members[0].model / "plans.json")).image_reader_writer_class
