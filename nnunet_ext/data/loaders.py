"""The two-stream loader: labelled and unlabelled patches in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_ext.data.host import Trainer
from nnunet_ext.data.pool import end_with_parent
from nnunet_ext.data.position import refuse_stale_channels
from nnunet_ext.data.reference_transforms import for_data_of, say_what_is_left_out
from nnunet_ext.data.training_cases import labelled_command, reading_problem, unlabelled_command
from nnunet_ext.data.transforms import with_validity
from nnunet_ext.data.unlabelled_steps import ALL_STEPS, InOrder, UnlabelledSteps
from nnunet_ext.data.views import STRONG, StrongTable, foreign_steps, strong_key, with_strong_views
from nnunet_ext.plugin import compat


class NamingLoader(nnUNetDataLoader):
    """nnU-Net's loader; where a preprocessed file is damaged, the error names it and the command that mends it.

    Attributes:
        remedy: What to do, with ``{case}`` for the name of the case.
    """

    remedy = ""
    _keys: Any = ()

    def get_indices(self) -> Any:
        """Draw the cases of a batch as nnU-Net does."""
        self._keys = super().get_indices()
        return self._keys

    def generate_train_batch(self) -> dict[str, Any]:
        """Make a batch.

        Raises:
            RuntimeError: If a file of one of its cases cannot be read.
        """
        try:
            batch = self.make_batch()
        except Exception as error:
            for key in dict.fromkeys(self._keys):
                dataset = compat.dataset_of(self)
                problem = reading_problem(dataset, str(key))
                if problem is not None:
                    what = f"the preprocessed case {key} in {dataset.source_folder} cannot be read ({problem})"
                    raise RuntimeError(f"{what}; {self.remedy.format(case=key)}") from error
            raise
        return batch

    def make_batch(self) -> dict[str, Any]:
        """Make a batch as nnU-Net does; whose cases are noted in ``_keys`` before they are read."""
        batch: dict[str, Any] = super().generate_train_batch()
        return batch


def look_at_reference_data(trainer: Trainer) -> None:
    """Refuse data of the reference module that are stale, and say how they are augmented."""
    refuse_stale_channels(trainer, labelled_command(trainer))
    say_what_is_left_out(trainer)


@contextmanager
def naming_damaged_cases(trainer: Trainer) -> Iterator[None]:
    """Let the loaders that nnU-Net's trainer makes inside the block name a damaged case and the command that mends it.

    They also augment data of the reference module as these have to be.

    Args:
        trainer: An initialised nnU-Net trainer.
    """
    look_at_reference_data(trainer)

    def naming_loader(*arguments: Any, **options: Any) -> NamingLoader:
        if options.get("transforms") is not None:
            options["transforms"] = for_data_of(trainer, options["transforms"])
        loader = NamingLoader(*arguments, **options)
        loader.remedy = f"run: {labelled_command(trainer)}"
        return loader

    with compat.loaders_made_by(naming_loader):
        yield


class TwoStreamLoader:
    """Yields a labelled and an unlabelled batch as one dictionary; at some steps the labelled one alone.

    Both loaders end their targets with a validity mask (:func:`nnunet_ext.data.transforms.with_validity`).

    Args:
        labelled: Loader of the labelled stream.
        unlabelled: Loader of the unlabelled stream, or None.
        strong_views: Number of strong views that stand before the mask among the targets of the unlabelled stream.
        steps: Which steps have unlabelled patches; for the others none are made.
        deep_supervision: Whether the labels are a list over the scales, of which there may be one.
    """

    def __init__(
        self,
        labelled: nnUNetDataLoader,
        unlabelled: nnUNetDataLoader | None,
        strong_views: int = 0,
        steps: UnlabelledSteps = ALL_STEPS,
        deep_supervision: bool = False,
    ) -> None:
        self.labelled = labelled
        self.unlabelled = unlabelled
        self.strong_views = strong_views
        self.steps = steps
        self.deep_supervision = deep_supervision
        self.step = steps.first

    def set_thread_id(self, thread_id: int) -> None:
        """Pass the number of the loader process on; processes begin one step apart, so that work comes evenly."""
        self.step = self.steps.first + thread_id
        for loader in (self.labelled, self.unlabelled):
            if loader is not None:
                loader.set_thread_id(thread_id)

    def __iter__(self) -> TwoStreamLoader:
        """Return itself."""
        return self

    def __next__(self) -> dict[str, Any]:
        """Return ``data`` (B, C, *S), ``target``, ``unlabeled`` (U, C, *S), ``valid`` (B+U, 1, *S) or None, ``keys``.

        ``target`` is nnU-Net's (a list with deep supervision). ``valid`` is None if every voxel is valid, so that the
        common case costs nothing. With strong views ``unlabeled`` is the weak view, and ``unlabeled_strong``,
        ``unlabeled_strong_2`` and so on are the strong ones, ``(B, C, *S)`` each, voxel by voxel at the same place.
        """
        batch = next(self.labelled)
        *targets, valid = batch["target"]
        batch["target"] = targets if self.deep_supervision or len(targets) > 1 else targets[0]
        has_unlabelled = self.unlabelled is not None and self.steps.has_unlabelled(self.step)
        self.step += 1
        if self.unlabelled is not None and has_unlabelled:
            other = next(self.unlabelled)
            batch["unlabeled"] = other["data"]
            *others, valid_unlabelled = other["target"]
            for number in range(self.strong_views, 0, -1):
                batch[strong_key(number)] = others.pop()
            valid = torch.cat([valid, valid_unlabelled])
            batch["keys"] = [*batch["keys"], *other["keys"]]
        batch["valid"] = None if bool(valid.all()) else valid
        return batch


def two_stream_loader(
    trainer: Trainer,
    unlabelled_dataset: Any,
    strong_views: int = 0,
    table: StrongTable = STRONG,
    steps: UnlabelledSteps = ALL_STEPS,
) -> TwoStreamLoader:
    """Build the training loader of a semi-supervised trainer from its own transforms.

    Args:
        trainer: An initialised nnU-Net trainer.
        unlabelled_dataset: :class:`~nnunet_ext.data.unlabeled_store.UnlabeledDataset` or None.
        strong_views: Strong views of each unlabelled patch; 0 augments unlabelled patches as labelled ones.
        table: Probabilities and ranges of the strong views' intensities.
        steps: Which steps have unlabelled patches, and how many.

    Raises:
        ValueError: If the number of strong views is not a whole number from 0.
    """
    if not isinstance(strong_views, int) or strong_views < 0:
        raise ValueError(
            f"the number of strong views of an unlabelled patch must be a whole number from 0, got {strong_views!r}; "
            "0 makes none"
        )
    rotation, dummy_2d, initial_patch_size, mirror_axes = (
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    )
    patch_size = trainer.configuration_manager.patch_size
    labels = trainer.label_manager

    def loader(dataset: Any, unlabelled: bool) -> NamingLoader:
        transforms = trainer.get_training_transforms(
            patch_size,
            rotation,
            None if unlabelled else compat.target_scales(trainer),
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=trainer.configuration_manager.use_mask_for_norm,
            is_cascaded=False,
            foreground_labels=labels.foreground_labels,
            regions=labels.foreground_regions if labels.has_regions and not unlabelled else None,
            ignore_label=labels.ignore_label,
        )
        if unlabelled and strong_views:
            warn_of_foreign_steps(trainer, transforms)
            transforms = with_strong_views(transforms, strong_views, table)
        result = NamingLoader(
            dataset,
            trainer.batch_size if not unlabelled or steps.batch_size is None else steps.batch_size,
            initial_patch_size,
            patch_size,
            labels,
            oversample_foreground_percent=dataset.class_share if unlabelled else trainer.oversample_foreground_percent,
            sampling_probabilities=None,
            pad_sides=None,
            transforms=with_validity(for_data_of(trainer, transforms), unlabelled),
            probabilistic_oversampling=dataset.class_share > 0 if unlabelled else trainer.probabilistic_oversampling,
        )
        again = f"remove {{case}}.json there and run: {unlabelled_command(trainer)}"
        result.remedy = again if unlabelled else f"run: {labelled_command(trainer)}"
        if unlabelled:
            result.has_ignore = False  # with an ignore label nnU-Net samples annotated voxels; here there are none
        return result

    look_at_reference_data(trainer)
    dataset_tr, _ = trainer.get_tr_and_val_datasets()
    labelled = loader(dataset_tr, False)
    unlabelled = None if unlabelled_dataset is None else loader(unlabelled_dataset, True)
    return TwoStreamLoader(labelled, unlabelled, strong_views, steps, compat.target_scales(trainer) is not None)


def warn_of_foreign_steps(trainer: Trainer, transforms: Any) -> None:
    """Say in the log which steps of a trainer's augmentation both views of a patch share, not being nnU-Net's.

    Args:
        trainer: Trainer with the log.
        transforms: What its ``get_training_transforms`` returns.
    """
    names = foreign_steps(transforms)
    if names:
        trainer.print_to_log_file(
            f"get_training_transforms of this trainer has steps that are not nnU-Net's ({', '.join(names)}): they are "
            "drawn once for the weak and the strong views of an unlabelled patch, before the strong intensities"
        )


def validation_loader(trainer: Trainer) -> nnUNetDataLoader:
    """Build nnU-Net's own validation loader."""
    labels = trainer.label_manager
    _, dataset_val = trainer.get_tr_and_val_datasets()
    transforms = trainer.get_validation_transforms(
        compat.target_scales(trainer),
        is_cascaded=False,
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    patch_size = trainer.configuration_manager.patch_size
    loader = NamingLoader(
        dataset_val,
        trainer.batch_size,
        patch_size,
        patch_size,
        labels,
        oversample_foreground_percent=trainer.oversample_foreground_percent,
        sampling_probabilities=None,
        pad_sides=None,
        transforms=for_data_of(trainer, transforms),
        probabilistic_oversampling=trainer.probabilistic_oversampling,
    )
    loader.remedy = f"run: {labelled_command(trainer)}"
    return loader


_produce = compat.loader_process()  # where a process is forked, the module has ours under that name


def _produce_until_parent_ends(*arguments: Any) -> None:
    """Do what a loader process does, but end with the parent; else it goes on for ever where that is killed."""
    end_with_parent()
    _produce(*arguments)


@contextmanager
def workers_that_end_with_this_process() -> Iterator[None]:
    """Let loader processes that are started inside the block end when this process does, also if it is killed."""
    with compat.loader_processes_run(_produce_until_parent_ends):
        yield


class _BackgroundLoader(NonDetMultiThreadedAugmenter):
    """nnU-Net's queue, filled by processes that end with this one."""

    def __next__(self) -> Any:
        """Return the next batch; the first call starts the processes."""
        if self.initialized:
            return super().__next__()
        with workers_that_end_with_this_process():
            return super().__next__()


class _OrderedLoader(_BackgroundLoader):
    """That queue where some batches have no unlabelled patches: whichever process is first, a step gets its own."""

    order: InOrder

    def __next__(self) -> Any:
        """Return the batch of the next step."""
        return self.order.next(super().__next__)


def loader_processes(train: bool) -> int:
    """Return how many processes load: all of nnU-Net's for training and half of them for validation, 0 for none."""
    allowed = int(get_allowed_n_proc_DA())
    return allowed if train or allowed == 0 else max(1, allowed // 2)


def in_background(loader: Any, pin_memory: bool, train: bool, seed: int) -> Any:
    """Let loader processes fill a queue, as nnU-Net does; with ``nnUNet_n_proc_DA=0`` work in this process.

    Args:
        loader: Endless batch source.
        pin_memory: Copy batches to page-locked memory.
        train: Training gets all of nnU-Net's loader processes, validation half of them.
        seed: Each process draws from a seed of its own that follows from this one.
    """
    allowed = get_allowed_n_proc_DA()
    if allowed == 0:
        return SingleThreadedAugmenter(loader, None)
    processes = loader_processes(train)
    ordered = isinstance(loader, TwoStreamLoader) and loader.unlabelled is not None and loader.steps.every > 1
    background = (_OrderedLoader if ordered else _BackgroundLoader)(
        data_loader=loader,
        transform=None,
        num_processes=processes,
        num_cached=max(6, allowed // 2) if train else max(3, allowed // 4),
        seeds=[(seed + 7919 * i) % 2**32 for i in range(processes)],
        pin_memory=pin_memory,
        wait_time=0.002,
    )
    if isinstance(background, _OrderedLoader):
        background.order = InOrder(loader.steps)
    return background
