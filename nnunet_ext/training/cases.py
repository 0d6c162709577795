"""What a training needs of its labelled cases: looked at before anything is built, for every trainer of ours."""

from __future__ import annotations

from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.data.host import Trainer
from nnunet_ext.data.splits import FILE, check_splits
from nnunet_ext.data.training_cases import check_labelled_cases, labelled_names

_FOLDS = 5  # that nnU-Net makes where there is no file of splits


def refuse_unfit_cases(trainer: Trainer) -> None:
    """Raise where there are no labelled cases to train and validate with; nnU-Net's own errors do not say so.

    Raises:
        FileNotFoundError: If no labelled case is preprocessed.
        RuntimeError: If a preprocessed case is damaged.
        ValueError: If the split names unknown cases or none, or there are too few for nnU-Net to draw one.
    """
    if getattr(trainer, "only_validates", False):
        return  # what a training would need is of no concern
    names = labelled_names(trainer)
    if type(trainer).do_split is not nnUNetTrainer.do_split:
        return  # a split of the user's own
    preprocessed = Path(trainer.preprocessed_dataset_folder_base)
    split = check_splits(preprocessed, trainer.fold, names)
    check_labelled_cases(trainer, names if split is None else [*split["train"], *split["val"]])
    if trainer.fold == "all":
        return
    has_file = (preprocessed / FILE).is_file()
    if not has_file and len(names) < _FOLDS:
        raise ValueError(
            f"{trainer.preprocessed_dataset_folder} has {len(names)} labelled case(s), but nnU-Net's five-fold split "
            f"needs at least {_FOLDS}; train with fold all, or write {FILE} yourself"
        )
    if len(names) < 2 and split is None:
        raise ValueError(
            f"{preprocessed / FILE} has no fold {trainer.fold}, for which nnU-Net would draw one of its own, and that "
            f"needs at least 2 labelled cases, got {len(names)}; train with fold all"
        )
