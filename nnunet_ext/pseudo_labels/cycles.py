"""The commands that a self-training consists of, and whether what each makes is there.

Nothing is kept in memory of a run: a step is done where its files are there and whole, whoever made them, this command
or a job on a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext import files
from nnunet_ext.data import unlabeled_store
from nnunet_ext.data.dataset_json import FILE as DATASET_JSON
from nnunet_ext.data.dataset_json import load_dataset_json
from nnunet_ext.data.labelled import images_and_problems
from nnunet_ext.data.preprocessors import OUR_PREPROCESSORS
from nnunet_ext.data.splits import FILE as SPLITS
from nnunet_ext.data.splits import hidden_cases, load_splits
from nnunet_ext.data.training_cases import labelled_damage
from nnunet_ext.data.unlabeled import find_unlabeled_cases
from nnunet_ext.evaluation.summary import read_summary
from nnunet_ext.model_sharing.folders import model_folder, sha256_of
from nnunet_ext.pseudo_labels.dataset import Roots
from nnunet_ext.pseudo_labels.members import checkpoint_files
from nnunet_ext.pseudo_labels.provenance import read_record

FINAL = "checkpoint_final.pth"
_FINGERPRINT = "dataset_fingerprint.json"
TRAINING, LABELLING, COUNTED, TIMED = "training", "labelling", "counted", "timed"


@dataclass(frozen=True)
class Scheme:
    """What is trained, and how a cycle follows from the one before.

    Attributes:
        source: Name of the dataset with the true labels.
        configuration: Name of the configuration.
        trainer: Name of the trainer of the first training, cycle 0.
        student: Name of the trainer of all others.
        plans: Name of the plans, the same for all.
        folds: That are trained, and whose networks label.
        others: Folders of further models that label in each cycle.
        selection: Options of ``nnUNetv2_ext pseudo_label``, as words.
        accepted_by: What these options come to in ``pseudo_labels.json``.
        warm_start: Whether a training begins with the weights of the same fold in the cycle before.
    """

    source: str
    configuration: str
    trainer: str
    student: str
    plans: str
    folds: tuple[int, ...]
    others: tuple[str, ...] = ()
    selection: tuple[str, ...] = ()
    accepted_by: Mapping[str, Any] = field(default_factory=dict)
    warm_start: bool = False

    def describe(self) -> dict[str, Any]:
        """Return the scheme as JSON values, the same on every machine: models by the end of their paths."""
        content = asdict(self) | {"folds": sorted(self.folds)}
        content["others"] = sorted(_end_of(Path(other)) for other in self.others)
        del content["selection"]  # said by accepted_by
        return content


@dataclass(frozen=True)
class Machine:
    """Where the commands run; makes no difference to what they make.

    Attributes:
        device: Of trainings and predictions.
        processes: Of preprocessing.
        trusted: Whether models may hold code.
    """

    device: str = "cuda"
    processes: int = 4
    trusted: bool = False


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: Of its log.
        title: For the progress bar.
        kind: ``TRAINING``, ``LABELLING``, or what its output tells: ``COUNTED`` a count, ``TIMED`` nothing.
        words: Returns the command as it has to be run now: a training that was begun is continued.
        is_done: Whether there is nothing left to do.
        place: What is worked on; no two commands of self-trainings do so at once.
    """

    name: str
    title: str
    kind: str
    words: Callable[[], list[str]]
    is_done: Callable[[], bool]
    place: Path


class Cycles:
    """The steps of each cycle.

    Args:
        scheme: What is trained.
        outputs: Names of the datasets of cycles 1, 2, ...
        roots: nnU-Net's folders.
        machine: Where.
        learns_unlabelled: Whether the student's trainer uses unlabelled scans.
    """

    def __init__(
        self,
        scheme: Scheme,
        outputs: tuple[str, ...],
        roots: Roots,
        machine: Machine,
        learns_unlabelled: bool = False,
    ) -> None:
        self.scheme, self.outputs, self.roots, self.machine = scheme, outputs, roots, machine
        self.learns_unlabelled = learns_unlabelled

    def dataset(self, cycle: int) -> str:
        """Return the name of the dataset that a cycle trains with."""
        return self.scheme.source if cycle == 0 else self.outputs[cycle - 1]

    def model(self, cycle: int) -> Path:
        """Return the folder of the model that a cycle trains."""
        scheme = self.scheme
        trainer = scheme.trainer if cycle == 0 else scheme.student
        return model_folder(self.dataset(cycle), trainer, scheme.plans, scheme.configuration)

    def is_finished(self, cycle: int) -> bool:
        """Whether all folds of a cycle are trained, whatever else is still there of it."""
        return all(self.is_trained(cycle, fold) for fold in self.scheme.folds)

    def steps(self, cycle: int) -> Iterator[Step]:
        """Yield the steps of a cycle in their order; none where it is finished.

        Raises:
            ValueError: If the cycle was made otherwise than is wanted.
        """
        if cycle > 0:
            self.refuse_others_labels(cycle)
        if self.is_finished(cycle):
            return
        if cycle > 0:
            yield self._pseudo_label(cycle)
            yield from self._preprocess(cycle)
        for fold in self.scheme.folds:
            yield self._train(cycle, fold)

    def summary(self, cycle: int, fold: int) -> Path:
        """Return where nnU-Net writes what it measured on the validation cases of a fold."""
        return self.model(cycle) / f"fold_{fold}" / "validation" / "summary.json"

    def _step(
        self,
        cycle: int,
        name: str,
        kind: str,
        words: Callable[[], list[str]],
        is_done: Callable[[], bool],
        place: Path | None = None,
    ) -> Step:
        # a name of our own: commands lock their places themselves
        place = place or self.roots.preprocessed / f"{self.dataset(cycle)}_self_train"
        return Step(f"cycle{cycle}_{name.replace(' ', '_')}", f"cycle {cycle}: {name}", kind, words, is_done, place)

    def _pseudo_label(self, cycle: int) -> Step:
        scheme = self.scheme
        output, before = self.dataset(cycle), self.model(cycle - 1)
        members = [str(before / f"fold_{fold}") for fold in scheme.folds]
        words = ["nnUNetv2_ext", "pseudo_label", "-d", number_of(scheme.source), "-m", *members, *scheme.others]
        words += ["-o", output, *scheme.selection, "-device", self.machine.device]
        words += ["--trust_model"] * self.machine.trusted

        def is_done() -> bool:
            return bool(self.refuse_others_labels(cycle))

        return self._step(cycle, "pseudo label", LABELLING, lambda: words, is_done)

    def refuse_others_labels(self, cycle: int) -> dict[str, Any]:
        """Return the record of the pseudo-labels of a cycle, empty where there is none.

        Raises:
            ValueError: If they were made of another dataset, by other networks, or accepted otherwise.
        """
        name = self.dataset(cycle)
        record = read_record(self.roots.raw / name)
        if not record:
            return {}
        why, expected = None, dict(self.scheme.accepted_by)
        accepted = {key: record.get("accepted_by", {}).get(key) for key in expected}
        if record.get("source_dataset") != self.scheme.source:
            why = f"it was made of {record.get('source_dataset')}, not of {self.scheme.source}"
        elif accepted != expected:
            key = next(key for key in expected if accepted[key] != expected[key])
            why = f"its labels were accepted with {key} {accepted[key]}, not {expected[key]}"
        elif not self._labelled_by_these(cycle, {member.get("sha256") for member in record.get("members", ())}):
            why = f"other networks labelled it than those of cycle {cycle - 1} are now"
        if why is not None:
            raise ValueError(
                f"{self.roots.raw / name} is not cycle {cycle} of this self-training: {why}. Remove {name} from "
                "nnUNet_raw, nnUNet_preprocessed and nnUNet_results if nobody needs it, or begin another self-training "
                "with --name NAME"
            )
        return record

    def _labelled_by_these(self, cycle: int, made_by: set[Any]) -> bool:
        expected = [self.model(cycle - 1) / f"fold_{fold}" / FINAL for fold in self.scheme.folds]
        for other in map(Path, self.scheme.others):
            expected += checkpoint_files(other, FINAL) if other.is_dir() else [other / FINAL]
        hashes = {sha256_of(file) for file in expected if file.is_file()}
        # networks that were removed since cannot be compared
        return hashes == made_by or (hashes < made_by and not all(file.is_file() for file in expected))

    def restore_splits(self, cycle: int) -> None:
        """Put splits and dataset.json, which lie in the raw dataset, where nnU-Net looks for them; they may be gone.

        Raises:
            ValueError: If the splits are not those of the first dataset any more.
        """
        raw, preprocessed = (root / self.dataset(cycle) for root in (self.roots.raw, self.roots.preprocessed))
        for name in (SPLITS, DATASET_JSON):
            if (raw / name).is_file() and not (preprocessed / name).is_file():
                files.write_json(
                    preprocessed / name, files.read_json(raw / name, kind=list if name == SPLITS else dict), 4
                )
        own, first = (load_splits(self.roots.preprocessed / name) for name in (self.dataset(cycle), self.scheme.source))
        for fold in self.scheme.folds if own and first else ():
            if fold >= len(own) or own[fold]["val"] != first[fold]["val"]:
                raise ValueError(
                    f"{preprocessed / SPLITS}, fold {fold}, has other validation cases than {self.scheme.source}: its "
                    "splits were changed since. Restore them, or begin another self-training with --name NAME"
                )

    def _preprocess(self, cycle: int) -> Iterator[Step]:
        scheme, number = self.scheme, number_of(self.dataset(cycle))
        folder = self.roots.preprocessed / self.dataset(cycle)
        processes = ["-np", str(self.machine.processes)]
        # --clean: it runs where there is none, or half of one that a killed run left
        words = ["nnUNetv2_extract_fingerprint", "-d", number, "--clean", *processes]
        yield self._step(cycle, "fingerprint", TIMED, lambda: words, lambda: _is_json(folder / _FINGERPRINT))
        moved = ["nnUNetv2_move_plans_between_datasets", "-s", number_of(scheme.source), "-t", number]
        moved += ["-sp", scheme.plans, "-tp", scheme.plans]
        yield self._step(cycle, "plans", TIMED, lambda: moved, lambda: self._has_plans(cycle))
        labelled = ["nnUNetv2_preprocess", "-d", number, "-plans_name", scheme.plans, "-c", scheme.configuration]
        yield self._step(
            cycle, "preprocess", COUNTED, lambda: labelled + processes, lambda: self._is_preprocessed(cycle)
        )
        if self.learns_unlabelled and not self._preprocesses_unlabelled:
            more = ["nnUNetv2_ext", "preprocess_unlabeled", "-d", number, "-p", scheme.plans]
            more += ["-c", scheme.configuration, *processes]
            yield self._step(cycle, "preprocess unlabelled", COUNTED, lambda: more, lambda: self._has_unlabelled(cycle))

    def _plans(self) -> dict[str, Any]:
        content: dict[str, Any] = files.read_json(
            self.roots.preprocessed / self.scheme.source / f"{self.scheme.plans}.json"
        )
        return content

    @property
    def _configuration(self) -> ConfigurationManager:
        return PlansManager(self._plans()).get_configuration(self.scheme.configuration)

    @property
    def _preprocesses_unlabelled(self) -> bool:
        """Whether the plans' preprocessor makes the unlabelled scans, too."""
        return self._configuration.configuration["preprocessor_name"] in OUR_PREPROCESSORS

    def _has_plans(self, cycle: int) -> bool:
        file = self.roots.preprocessed / self.dataset(cycle) / f"{self.scheme.plans}.json"
        if not _is_json(file):
            return False
        if _but_names(files.read_json(file)) != _but_names(self._plans()):
            raise ValueError(
                f"{file} differs from the plans of {self.scheme.source}, which all cycles share: one was changed "
                f"or planned anew. Remove it, and what was trained with it, or {self.dataset(cycle)} as a whole"
            )
        return True

    def _is_preprocessed(self, cycle: int) -> bool:
        raw = self.roots.raw / self.dataset(cycle)
        folder = self.roots.preprocessed / self.dataset(cycle) / self._configuration.data_identifier
        content = load_dataset_json(raw)
        names, _ = images_and_problems(raw, content)
        truth = folder.parent / "gt_segmentations"  # copied at the very end, and needed by the validation
        if not all(_has_content(truth / f"{name}{content['file_ending']}") for name in names):
            return False
        if any(labelled_damage(folder, name) is not None for name in names):
            return False
        return not (self.learns_unlabelled and self._preprocesses_unlabelled) or self._has_unlabelled(cycle)

    def _has_unlabelled(self, cycle: int) -> bool:
        raw, preprocessed = (root / self.dataset(cycle) for root in (self.roots.raw, self.roots.preprocessed))
        folder = unlabeled_store.unlabeled_folder(preprocessed, self._configuration.data_identifier)
        cases, _ = find_unlabeled_cases(raw, load_dataset_json(raw), hidden_cases(preprocessed))
        known = {*unlabeled_store.finished_cases(folder), *unlabeled_store.failed_cases(folder)}
        return set(cases) <= known

    def _train(self, cycle: int, fold: int) -> Step:
        scheme, folder = self.scheme, self.model(cycle) / f"fold_{fold}"
        trainer = scheme.trainer if cycle == 0 else scheme.student
        fixed = ["nnUNetv2_train", number_of(self.dataset(cycle)), scheme.configuration, str(fold)]
        fixed += ["-tr", trainer, "-p", scheme.plans, "-device", self.machine.device]

        def words() -> list[str]:
            if (folder / FINAL).is_file():
                return [*fixed, "--val"]
            if any((folder / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best")):
                return [*fixed, "--c"]
            if scheme.warm_start and cycle > 0:
                return [*fixed, "-pretrained_weights", str(self.model(cycle - 1) / f"fold_{fold}" / FINAL)]
            return fixed

        return self._step(cycle, f"train fold {fold}", TRAINING, words, lambda: self.is_trained(cycle, fold), folder)

    def is_trained(self, cycle: int, fold: int) -> bool:
        """Whether a training is finished and validated."""
        file = self.summary(cycle, fold)
        if not (file.parent.parent / FINAL).is_file():
            return False
        try:
            return bool(read_summary(file, ""))
        except (OSError, ValueError):  # nnU-Net writes it in place, so that a killed run leaves half of it
            return False


def _end_of(model: Path) -> str:
    """Return dataset and model, and fold where one is named."""
    return "/".join(model.parts[-3:] if model.name.startswith("fold_") else model.parts[-2:])


def number_of(dataset: str) -> str:
    """Return the number of a dataset, as nnU-Net's commands take it."""
    return str(int(dataset[7:10]))


def _has_content(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _is_json(file: Path) -> bool:
    try:
        return bool(files.read_json(file))
    except (OSError, ValueError):
        return False


def _but_names(plans: dict[str, Any]) -> dict[str, Any]:
    """Return plans without what moving them to another dataset changes."""
    return {key: value for key, value in plans.items() if key not in ("dataset_name", "image_reader_writer")}
